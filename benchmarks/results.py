"""Keeps the results of finished runs in docs/results/.

    python -m benchmarks.results [WORKDIR ...]

Adds a row to results.csv for each run, in place of a row of the same name, and regenerates index.md
from all rows. A run that was evaluated again with a perceptual term in its score
(`--mode=evaluate --config.score.perceptual=0.3`) only fills `perceptual_auroc` in its row.
"""

import argparse
import csv
import importlib
import json
import re
import shlex
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from bigan_jax.configs import common
from bigan_jax.errors import UserError
from bigan_jax.evaluation.finished_run import flat_fields
from bigan_jax.runtime.run_config import default_name, read_config

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
CSV = RESULTS / "results.csv"
PAGE = RESULTS / "index.md"

# These name folders of one machine and do not influence a result.
_PATHS = "data.dir", "data.tfds_dir", "vgg16.weights"
# Commands state the weights of the score even if they are the defaults: every AUROC depends on
# them.
_PINNED = "score.mse", "score.ssim"

_IMAGE_METRICS = (
    *("auroc", "average_precision", "accuracy", "precision", "recall", "f1", "specificity"),
    "balanced_accuracy",
)
_PIXEL_METRICS = "auroc", "average_precision", "aupro", "dice"
_BASELINES = (
    *("mean_image", "pca_8", "pca_64", "nearest_neighbor", "mahalanobis_16", "mean_intensity"),
    "corner_pixels",
)
COLUMNS = (
    *("run", "model", "ablations", "dataset", "category", "seed", "split_seed", "image_size"),
    *("channels", "dtype", "epochs", "quick", "n_train", "n_calibration"),
    *("n_test_normal", "n_test_anomalous", "threshold", "calibration_score"),
    *(f"{name}{end}" for name in _IMAGE_METRICS for end in ("", "_low", "_high")),
    *(f"pixel_{name}{end}" for name in _PIXEL_METRICS for end in ("", "_low", "_high")),
    *("pixel_raw_intensity_auroc", "pixel_raw_intensity_aupro"),
    *("mse_auroc", "ssim_auroc", "top1_auroc", "native_auroc", "perceptual_auroc"),
    *(f"baseline_{name}" for name in _BASELINES),
    *("best_baseline", "best_baseline_auroc", "minutes", "jax", "commit", "overrides", "command"),
)

_ABLATED = "mvtec (bottle)"  # the data set of the ablations

_PAGE = """\
# Results

Image AUROC of the score 0.7 MSE + 0.3 (1 - SSIM), the score of the paper. Other weights give other
numbers.

- **Protocol.** Train on normal images, set the threshold on held-out normal images, test on the
  rest. Patients and camera blocks stay in one split. Labels are used for the test metrics only.
- **The paper** uses 128x128 images and 150 + 500 epochs. Here images are 64x64 with shorter
  schedules, and the Improved BiGAN has half the widths and no perceptual loss.
- **To be measured again**: the runs are older than exact split counts, than BatchNorm statistics of
  reconstructions (which change the VAEs, AnoGAN and BiGAN) and than the calibrated score.
- **At the paper's size** are `plant_128` and `mvtec_128`: full schedules in bfloat16 on an H200.

## Models and data sets

Mean, standard deviation and (number of runs). On plant and brain each run has its own split, which
changes an AUROC more than the choice of model does: compare models on equal splits. On bottle and
brain_mixed only the training seed changes.

{models}

- A baseline needs no training. The best of seven is chosen with the labels of the test set.
- On brain_mixed the source of an image predicts its label, so these numbers say little about
  detection.
- On data sets with one condition CVAE is the VAE.

## Ablations of the Improved BiGAN on bottle

{ablations}

`plain` has all parts off, `no_pretrain` has no first phase. Apart from `plain`, no paired interval
of a difference excludes 0 ([log](log.md), 46).

## Where each number comes from

[results.csv](results.csv) has one row per run: all metrics with 95 % intervals (`_low`, `_high`),
all baselines, the command that repeats the run (`DIR` is the folder of the images), and the commit
that last changed its files. `git show COMMIT:results/RUN/scores.csv` shows the scores of its test
images; `config.json`, `evaluation.json` and `train.jsonl` lie next to it. [log.md](log.md) has the
experiments behind the defaults. `python -m benchmarks.results WORKDIR` adds a run and regenerates
this page.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path, nargs="*", help="folders of finished runs to add")
    rows = read_rows()
    for workdir in parser.parse_args().workdir:
        add(rows, workdir)
    write_rows(rows)
    PAGE.write_text(page(rows.values()), encoding="utf-8")
    print(f"{PAGE}: {len(rows)} runs")


def read_rows() -> dict[str, dict[str, str]]:
    """The rows of results.csv by the name of the run."""
    with CSV.open(encoding="utf-8", newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def write_rows(rows: Mapping[str, Mapping[str, str]]) -> None:
    """Writes results.csv, sorted by the name of the run."""
    with CSV.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))


def add(rows: dict[str, dict[str, str]], workdir: Path) -> None:
    """Adds the run in a folder to the rows, or its perceptual score to the row of the same run."""
    config = read_config(workdir)
    name = default_name(config).name
    evaluation = json.loads((workdir / "evaluation.json").read_text(encoding="utf-8"))
    if not config.score.perceptual:
        rows[name] = _row(name, workdir, config.to_dict(), evaluation)
    elif name in rows:
        rows[name]["perceptual_auroc"] = _cell(evaluation["scores"]["paper"]["auroc"])
    else:
        raise UserError(f"{workdir} has a perceptual term in its score. Add {name} without the term first.")


def _row(name, workdir, config, evaluation):
    log = (workdir / "train.jsonl").read_text(encoding="utf-8").splitlines()
    pixel, raw = evaluation["pixel"], evaluation["pixel_baselines"]["raw_intensity"]
    paper = evaluation["scores"]["paper"]
    baselines = {k: v for k, v in paper["baselines"].items() if v is not None}
    best = max(baselines, key=baselines.get, default=None)
    table = evaluation["score_table"]
    used = next(row for row in table if row["used"]) | {"reduction": "top1"}
    same = "score", "standardize", "reduction"
    top1 = next(row["auroc"] for row in table if all(row[key] == used[key] for key in same))
    values = {
        "run": name,
        **{key: evaluation[key] for key in ("model", "dataset", "category", "seed", "quick")},
        "ablations": "+".join(evaluation["ablations"]),
        **{key: config["data"][key] for key in ("split_seed", "image_size", "channels")},
        "dtype": config["dtype"],
        "epochs": len(log),
        **{key: evaluation[key] for key in ("n_train", "n_calibration")},
        "threshold": paper["threshold"],
        **{f"n_test_{kind}": evaluation[f"n_{kind}"] for kind in ("normal", "anomalous")},
        "calibration_score": float(np.mean(paper["calibration_scores"])),
        **_with_intervals("", paper, paper["intervals"], _IMAGE_METRICS),
        **_with_intervals("pixel_", pixel, pixel["intervals"], _PIXEL_METRICS),
        "pixel_raw_intensity_auroc": raw.get("auroc"),
        "pixel_raw_intensity_aupro": raw.get("aupro"),
        **{f"{name}_auroc": evaluation["term_aurocs"][name] for name in ("mse", "ssim")},
        "top1_auroc": top1,
        "native_auroc": (evaluation["native"] or {}).get("auroc"),
        **{f"baseline_{key}": paper["baselines"].get(key) for key in _BASELINES},
        "best_baseline": best,
        "best_baseline_auroc": baselines.get(best),
        "minutes": round(sum(json.loads(line)["seconds"] for line in log) / 60, 1),
        "jax": evaluation["versions"]["jax"],
        "commit": _head(),
        "overrides": shlex.join(overrides(config)),
        "command": command(config),
    }
    return {column: _cell(values.get(column)) for column in COLUMNS}


def _with_intervals(prefix, values, intervals, names):
    cells = {}
    for name in names:
        low, high = (intervals or {}).get(name) or (None, None)
        column = prefix + name
        cells |= {column: values.get(name), f"{column}_low": low, f"{column}_high": high}
    return cells


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


def _head():
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def argument(config: Mapping) -> str:
    """The config file and its argument: `configs/<model>.py:<dataset>[,quick][,<ablation>...]`."""
    data = config["data"]
    dataset = data["name"] if data["name"] in common.DATASETS else data["source"]
    modifiers = ["quick"] * config["quick"] + list(config["ablations"])
    return f"configs/{config['name']}.py:{','.join([dataset, *modifiers])}"


def overrides(config: Mapping) -> list[str]:
    """Flags for all fields that differ from the config file's defaults, and the score weights."""
    _, _, arguments = argument(config).partition(":")
    module = importlib.import_module(f"bigan_jax.configs.{config['name']}")
    default = flat_fields(json.loads(json.dumps(module.get_config(arguments).to_dict())))
    words = []
    for name, text in flat_fields(config).items():
        changed = name in default and text != default[name]
        if name in _PINNED or (changed and name not in _PATHS):
            value = json.loads(text)
            value = tuple(value) if isinstance(value, list) else value
            words.append(f"--config.{name}={value}".replace(" ", ""))
    return words


def command(config: Mapping) -> str:
    """The command that trains a run of this config, with DIR for the folder of its images."""
    words = ["python", "launch.py", f"--config={argument(config)}"]
    if config["data"]["source"] != "phantom":
        words.append("--config.data.dir=DIR")
    return shlex.join([*words, *overrides(config)])


def page(rows: Iterable[Mapping[str, str]]) -> str:
    """The text of index.md for the rows of results.csv."""
    groups = defaultdict(list)  # runs that differ only in seed and split
    for row in rows:
        dataset = f"{row['dataset']} ({row['category']})" if row["category"] else row["dataset"]
        groups[row["model"], row["ablations"], row["quick"], dataset].append(row)
    datasets = sorted({key[-1] for key in groups}, key=lambda name: ("_128" in name, name))
    # Of variants with the same ablations, the one with the most runs.
    cells = defaultdict(dict)
    for (model, ablations, _, dataset), group in sorted(groups.items(), key=lambda g: len(g[1])):
        cells[model, ablations][dataset] = mean_and_std(group)
    lines = [
        [f"{model} ({ablations})" if ablations else model, *map(cell_of.get, datasets)]
        for (model, ablations), cell_of in sorted(cells.items())
        if len(cell_of) > 1 or not ablations
    ]
    by_dataset = [_one_per_split(groups, dataset) for dataset in datasets]
    for title, column in ("PCA-64", "baseline_pca_64"), ("best baseline", "best_baseline_auroc"):
        lines.append([title, *(mean_and_std(group, column) for group in by_dataset)])
    main_table = _table(["model", *datasets], lines)

    bottle = [(key, group) for key, group in sorted(groups.items()) if key[-1] == _ABLATED]
    lines = [
        [
            ablations.replace("+", ", ") or "none (all parts)",
            *(re.findall(r"model\.widths=\(([\d,]+)\)", group[0]["overrides"]) or ["default"]),
            group[0]["epochs"],
            mean_and_std(group),
            mean_and_std(group, "calibration_score", digits=4),
        ]
        for (model, ablations, _, _), group in bottle
        if model == "improved_bigan"
    ]
    headings = ["ablations", "widths", "epochs", "AUROC", "mean score of calibration images"]
    return _PAGE.format(models=main_table, ablations=_table(headings, lines))


def mean_and_std(rows: Sequence[Mapping[str, str]], column: str = "auroc", digits: int = 3) -> str:
    """The mean of a column, its standard deviation (n - 1), and n: "0.983 ± 0.003 (5)"."""
    values = [float(row[column]) for row in rows if row[column]]
    if not values:
        return "-"
    std = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{std} ({len(values)})"


def _one_per_split(groups, dataset):
    """One run of each split of a data set: baselines depend on nothing else."""
    rows = [row for key, group in groups.items() if key[-1] == dataset for row in group]
    return list({row["split_seed"]: row for row in rows}.values())


def _table(headings, lines):
    rows = [headings, ["---", *["---:"] * (len(headings) - 1)], *lines]
    return "\n".join(f"| {' | '.join(cell or '-' for cell in row)} |" for row in rows)


if __name__ == "__main__":
    main()
