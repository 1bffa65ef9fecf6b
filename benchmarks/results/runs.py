"""The stored results of finished runs: docs/results/results.csv, and scores.jsonl.gz with the scores of each image.

results.csv has a row per run. scores.jsonl.gz has a line per test set (paths, labels, groups, and the baselines'
scores) and a line per run (its scores in the order of these paths), so that later scores can be paired with these.
"""

import csv
import gzip
import importlib
import json
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigan_jax.configs import common
from bigan_jax.errors import UserError
from bigan_jax.evaluation.finished_run import FinishedRun, flat_fields, read_baseline_scores, read_run, read_scores
from bigan_jax.evaluation.result import CALIBRATED, NATIVE, PAPER, SCORE_NAMES
from bigan_jax.evaluation.verdict import strongest
from bigan_jax.metrics.image import IMAGE_METRICS
from bigan_jax.metrics.pixel import PIXEL_METRICS
from bigan_jax.runtime.run_config import default_name, read_config

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
CSV = RESULTS / "results.csv"
SCORES = RESULTS / "scores.jsonl.gz"

# These name folders of one machine, or say how runs are made and shown, and do not influence a result.
_NO_INFLUENCE = ("data.dir", "data.tfds_dir", "vgg16.weights", "loggers", "checkpoint.", "sweep.")
_BASELINES = (
    *("mean_image", "pca_8", "pca_64", "nearest_neighbor", "mahalanobis_16", "mean_intensity"),
    "corner_pixels",
)
_PIXEL = (*PIXEL_METRICS, "dice")
COLUMNS = (
    *("run", "model", "group", "ablations", "dataset", "category", "seed", "split_seed", "image_size", "channels"),
    *("dtype", "epochs", "quick", "n_train", "n_calibration", "n_test_normal", "n_test_anomalous", "score"),
    *(f"{name}{end}" for name in IMAGE_METRICS for end in ("", "_low", "_high")),
    *(f"paper_{name}" for name in IMAGE_METRICS),
    *("calibration_mean", "calibration_std", "paper_calibration_mean", "paper_calibration_std"),
    *(f"pixel_{name}" for name in _PIXEL),
    *("pixel_auroc_low", "pixel_auroc_high", "pixel_raw_intensity_auroc"),
    *(f"baseline_{name}" for name in _BASELINES),
    *(f"paper_baseline_{name}" for name in _BASELINES),
    *("minutes", "jax", "commit", "overrides", "command"),
)
Row = dict[str, str]
Line = dict[str, Any]


def find_runs(folders: Iterable[Path]) -> Iterator[Path]:
    """Yields the folders of finished runs among and below the given ones; raises UserError if one has none."""
    for folder in folders:
        found = sorted(path.parent for path in folder.rglob("evaluation.json"))
        if not found:
            raise UserError(f"{folder} has no finished run: there is no evaluation.json in it or below.")
        yield from found


def name_of(workdir: Path) -> str:
    """Returns the name of a run: that of its folder if it ends in the seed, else the default one."""
    config = read_config(workdir)
    return workdir.name if workdir.name.endswith(f"-seed{config.seed}") else default_name(config).name


def read_rows() -> dict[str, Row]:
    """Returns the rows of results.csv by the name of the run."""
    if not CSV.exists():
        return {}
    with CSV.open(encoding="utf-8", newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def write_rows(rows: Mapping[str, Mapping[str, str]]) -> None:
    """Writes results.csv, sorted by the name of the run."""
    with CSV.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))


def read_lines() -> dict[str, Line]:
    """Returns the lines of scores.jsonl.gz by the name of the test set or run."""
    if not SCORES.exists():
        return {}
    lines = map(json.loads, gzip.decompress(SCORES.read_bytes()).decode().splitlines())
    return {line["name"]: line for line in lines}


def write_lines(lines: Mapping[str, Line]) -> None:
    """Writes scores.jsonl.gz, sorted by name; equal lines give equal bytes."""
    text = "".join(json.dumps(lines[name], separators=(",", ":")) + "\n" for name in sorted(lines))
    SCORES.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def add(rows: dict[str, Row], lines: dict[str, Line], workdir: Path, commit: str) -> None:
    """Adds a finished run to the rows and lines, in place of those of the same name.

    Raises:
      UserError: the run is damaged, its name is that of a run with another config, or its test images differ from
        those of other runs on the same split.
    """
    run, name = read_run(workdir), name_of(workdir)
    config = read_config(workdir).to_dict()
    if name in rows and rows[name]["overrides"] != shlex.join(overrides(config)):
        raise UserError(
            f"{workdir}: {name} is stored with another config. If it is to stay, rename this folder to "
            f"NAME-seed{config['seed']} with a NAME of its own; else start with --fresh."
        )
    lines[name] = _scores(run, name, test := _test_set(run))
    known = lines.setdefault(test["name"], test)
    if any(known[field] != test[field] for field in ("path", "label", "group")):
        raise UserError(f"{workdir} was tested on other images than earlier runs on {test['name']}.")
    for score, by_baseline in test["baselines"].items():
        known["baselines"].setdefault(score, by_baseline)
    rows[name] = _row(run, name, config, commit)


def _test_set(run: FinishedRun) -> Line:
    images = read_scores(run, PAPER)
    fields = (json.loads(run.fields[f"data.{name}"]) for name in ("split_seed", "image_size", "channels"))
    key = "-".join(["test", run.result.dataset, run.result.category, *map(str, fields)])
    baselines = {
        _default(score): {name: _short(read_baseline_scores(run, score, name).score) for name in of_score.baselines}
        for score, of_score in run.result.scores.items()
    }
    return {
        "name": key,
        "path": images.path.tolist(),
        "label": images.label.astype(int).tolist(),
        "group": images.group.tolist(),
        "baselines": baselines,
    }


def _default(score: str) -> str:
    """Returns the name of the score of the baselines: a detector's own is compared with their calibrated one."""
    return CALIBRATED if score == NATIVE else score


def _scores(run: FinishedRun, name: str, test: Line) -> Line:
    scores = {score: _short(read_scores(run, score).score) for score in SCORE_NAMES if score in run.result.scores}
    return {"name": name, "test": test["name"], "scores": scores}


def _short(values: np.ndarray) -> list[float]:
    """Rounds to six digits, which keeps the order of nearly all pairs in half of the bytes."""
    return [float(f"{value:.6g}") for value in values]


def _row(run: FinishedRun, name: str, config: Mapping, commit: str) -> Row:
    result, main = run.result, run.result.main
    log = (run.workdir / "train.jsonl").read_text(encoding="utf-8").splitlines()
    paper = result.scores.get(PAPER)
    values = {
        "run": name,
        **{key: getattr(result, key) for key in ("model", "group", "dataset", "category", "seed", "quick")},
        "ablations": "+".join(result.ablations),
        **{key: config["data"][key] for key in ("split_seed", "image_size", "channels")},
        "dtype": config["dtype"],
        **{key: getattr(result, key) for key in ("epochs", "n_train", "n_calibration")},
        **{f"n_test_{kind}": getattr(result, f"n_{kind}") for kind in ("normal", "anomalous")},
        "score": result.score_name,
        **_with_intervals("", main.metrics, main.intervals),
        **_calibration("", main.calibration_scores),
        **{f"pixel_{metric}": getattr(result.pixel, metric) for metric in _PIXEL},
        "pixel_raw_intensity_auroc": result.pixel_baselines["raw_intensity"].auroc,
        **{f"baseline_{baseline}": main.baselines.get(baseline) for baseline in _BASELINES},
        "minutes": round(sum(json.loads(line)["seconds"] for line in log) / 60, 1),
        "jax": result.versions["jax"],
        "commit": commit,
        "overrides": shlex.join(overrides(config)),
        "command": command(config),
    }
    values["pixel_auroc_low"], values["pixel_auroc_high"] = (result.pixel.intervals or {}).get("auroc") or (None, None)
    if paper:
        values |= {f"paper_{metric}": value for metric, value in paper.metrics.items()}
        values |= _calibration("paper_", paper.calibration_scores)
        values |= {f"paper_baseline_{baseline}": paper.baselines.get(baseline) for baseline in _BASELINES}
    return {column: _cell(values.get(column)) for column in COLUMNS}


def _with_intervals(prefix, values, intervals):
    cells = {}
    for name, value in values.items():
        low, high = (intervals or {}).get(name) or (None, None)
        cells |= {prefix + name: value, f"{prefix}{name}_low": low, f"{prefix}{name}_high": high}
    return cells


def _calibration(prefix, scores: Sequence[float]):
    mean, std = float(np.mean(scores)), float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return {f"{prefix}calibration_mean": mean, f"{prefix}calibration_std": std}


def _cell(value):
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.6g}"
        case _:
            return str(value)


def head() -> str:
    """Returns the short hash of the repository's commit."""
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def best_baseline(row: Mapping[str, str], prefix: str = "") -> tuple[str, float] | None:
    """Returns the strongest training-free baseline of a row and its AUROC."""
    return strongest({name: float(text) for name in _BASELINES if (text := row[f"{prefix}baseline_{name}"])})


def argument(config: Mapping) -> str:
    """Returns the config as commands name it: `<model>:<dataset>[,quick][,<ablation>...]`."""
    data = config["data"]
    dataset = data["name"] if data["name"] in common.DATASETS else data["source"]
    return f"{config['name']}:{','.join([dataset, *['quick'] * config['quick'], *config['ablations']])}"


def overrides(config: Mapping) -> list[str]:
    """Returns flags for all fields that influence a result and differ from the config's defaults."""
    module = importlib.import_module(f"bigan_jax.configs.{config['name']}")
    default = module.get_config(argument(config).partition(":")[2]).to_dict()
    fields = flat_fields(json.loads(json.dumps(default)))
    words = []
    for name, text in flat_fields(json.loads(json.dumps(config))).items():
        if name in fields and text != fields[name] and not name.startswith(_NO_INFLUENCE):
            value = json.loads(text)
            value = tuple(value) if isinstance(value, list) else value
            words.append(f"--{name}={value}".replace(" ", ""))
    return words


def command(config: Mapping) -> str:
    """Returns the command that repeats a run, with DIR for the folder of its images."""
    words = ["bigan-jax", "train", argument(config)]
    if config["data"]["source"] != "phantom":
        words.append("--data.dir=DIR")
    return shlex.join([*words, *overrides(config)])
