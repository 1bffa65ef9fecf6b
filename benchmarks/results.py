"""python -m benchmarks.results [WORKDIR ...]

Copies what is small of finished runs (evaluation, scores, config, history; no pictures, no
checkpoints) to results/, and writes RESULTS.md from all that lie there: its first part is
results/PREFACE.md, its tables are those of `--mode=compare`, and each run stands with the command
that repeats it.

Of a copy of a run that was evaluated once more with a perceptual term in its score
(`--mode=evaluate --config.score.perceptual=0.3`) only the table of scores is added to that run's.
"""

import argparse
import importlib
import json
import shlex
import shutil
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import bigan_jax
from bigan_jax.configs import common
from bigan_jax.evaluation.finished_run import flat_fields
from bigan_jax.reports.tables import Table, markdown
from bigan_jax.runtime.run_config import default_name, read_config

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
PAGE = ROOT / "RESULTS.md"
_KEPT = "config.json", "evaluation.json", "scores.csv", "train.jsonl"
_RESCORED = "perceptual.json"  # the score table of the same run with a perceptual term
# Of one machine: they have no part in a result, and others have other folders.
_PLACES = "data.dir", "data.tfds_dir", "vgg16.weights"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path, nargs="*", help="finished runs to add")
    for workdir in parser.parse_args().workdir:
        keep(workdir)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: {len(runs())} runs")


def runs() -> list[Path]:
    """The folders of the runs in results/, by name."""
    return sorted(path.parent for path in RESULTS.glob("*/evaluation.json"))


def keep(workdir: Path) -> None:
    """Copies a run's small files to results/, without the folders of this machine."""
    config = read_config(workdir)
    folder = RESULTS / default_name(config).name
    folder.mkdir(parents=True, exist_ok=True)
    if config.score.perceptual:
        table = json.dumps(_evaluation(workdir)["score_table"], indent=1)
        (folder / _RESCORED).write_text(table + "\n", encoding="utf-8")
        return
    (folder / _RESCORED).unlink(missing_ok=True)  # of an earlier run in this one's place
    for name in _KEPT:
        shutil.copyfile(workdir / name, folder / name)
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for place in _PLACES:
        group, _, field = place.partition(".")
        fields[group][field] = ""
    (folder / "config.json").write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def page() -> str:
    """RESULTS.md as it should be for what lies in results/."""
    preface = (RESULTS / "PREFACE.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as output, redirect_stdout(StringIO()):
        bigan_jax.compare(runs(), output)
        tables = (Path(output) / "comparison.md").read_text(encoding="utf-8")
    tables = tables.replace("# Comparison\n", "", 1).strip()
    scores = [markdown(table) for table in (other_scores(), perceptual_scores())]
    return "\n".join([preface, tables, "", *scores, "## The runs", "", *_listed(), ""])


def other_scores() -> Table:
    """The AUROC of every way to score the reconstructions that the runs' evaluations have."""
    title = "Other scores of the same reconstructions: AUROC"
    return _of_ways(title, {folder: _evaluation(folder)["score_table"] for folder in runs()})


def perceptual_scores() -> Table:
    """Of the runs that were evaluated with a perceptual term as well: the common score without and
    with it, and the term alone, as means of the error map and of its highest 1 %."""
    tables = {
        path.parent: [
            row
            for row in json.loads(path.read_text(encoding="utf-8"))
            if row["reduction"] != "max" and row["score"] not in ("mse", "ssim")
        ]
        for path in sorted(RESULTS.glob(f"*/{_RESCORED}"))
    }
    return _of_ways(
        "Beyond the paper: a perceptual term (VGG16's relu3_3, scaled), the top 1 %", tables
    )


def _of_ways(title, tables):
    """A row for each folder, a column for each way to score that its table has."""

    def way(row):
        return f"{'standardized ' * row['standardize']}{row['score']}, {row['reduction']}"

    found = {
        folder.name: {way(row): row["auroc"] for row in rows} for folder, rows in tables.items()
    }
    ways = list(dict.fromkeys(name for row in found.values() for name in row))
    return Table(
        title,
        [("run", ""), *((name, "") for name in ways)],
        [[folder, *map(row.get, ways)] for folder, row in found.items()],
        ["To pick the best of a row is an oracle: it has seen the labels of the test set."],
    )


def _evaluation(folder):
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def _listed():
    """Each run: its result, how long it trained, what made it, by which versions."""
    for folder in runs():
        config = read_config(folder).to_dict()
        evaluation = _evaluation(folder)
        rows = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
        minutes = sum(json.loads(row)["seconds"] for row in rows) / 60
        versions = ", ".join(f"{name} {v}" for name, v in sorted(evaluation["versions"].items()))
        interval = "no interval, as a class comes from fewer than two groups"
        if evaluation["auroc_ci"]:
            interval = "95 % interval {:.3f} to {:.3f}".format(*evaluation["auroc_ci"])
        result = f"AUROC {evaluation['auroc']:.3f} ({interval})"
        trained = f"{len(rows)} epochs in {minutes:.1f} min"
        yield f"- `results/{folder.name}`: {result}; {trained}; {versions}"
        yield f"  `{command(config)}`"


def command(config: dict) -> str:
    """The command that trains a run of this config: DIR stands for the folder of its pictures."""
    modifiers = ["quick"] * config["quick"] + list(config["ablations"])
    data = config["data"]
    dataset = data["name"] if data["name"] in common.DATASETS else data["source"]
    argument = ",".join([dataset, *modifiers])
    default = importlib.import_module(f"configs.{config['name']}").get_config(argument)
    default = flat_fields(json.loads(json.dumps(default.to_dict())))
    words = ["python", "launch.py", f"--config=configs/{config['name']}.py:{argument}"]
    if data["source"] != "phantom":
        words.append("--config.data.dir=DIR")
    for name, text in flat_fields(config).items():
        if name not in _PLACES and name in default and text != default[name]:
            value = json.loads(text)
            value = tuple(value) if isinstance(value, list) else value
            words.append(f"--config.{name}={value}".replace(" ", ""))
    return shlex.join(words)


if __name__ == "__main__":
    main()
