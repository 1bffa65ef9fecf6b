"""Measures how well trained detectors find synthetic defects on their calibration images.

    python -m benchmarks.results.synthetic FOLDER ...

Writes docs/results/synthetic.csv, with a row per run and score. Rows of runs that are not given stay.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from bigan_jax.commands.load import load
from bigan_jax.commands.settings import parse_settings
from bigan_jax.commands.setup import load_audited
from bigan_jax.errors import UserError
from bigan_jax.evaluation.synthetic_defects import DEFECTS, synthetic_aurocs
from bigan_jax.runtime.run_config import read_config

from .runs import RESULTS, find_runs, name_of

CSV = RESULTS / "synthetic.csv"
COLUMNS = ("run", "score", "mean", *DEFECTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="folders of runs, or folders that contain some")
    parser.add_argument("--again", action="store_true", help="measure runs again that have rows")
    arguments = parser.parse_args()
    rows = read_rows()
    known = set() if arguments.again else {run for run, _ in rows}
    workdirs = [workdir for workdir in find_runs(arguments.folder) if name_of(workdir) not in known]
    for name, aurocs in measure(workdirs):
        for score, values in aurocs.items():
            rows[name, score] = {"run": name, "score": score} | {k: f"{v:.4f}" for k, v in values.items()}
        write_rows(rows)
        means = (f"{score} {values['mean']:.3f}" for score, values in aurocs.items())
        print(f"{name}: {', '.join(means)}", flush=True)


def measure(workdirs: Iterable[Path]) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Yields for each run its name and the result of `synthetic_aurocs`; runs on equal data share one reading."""
    by_data = defaultdict(list)
    for workdir in workdirs:
        by_data[parse_settings(read_config(workdir)).data].append(workdir)
    for together in by_data.values():
        dataset, _ = load_audited(parse_settings(read_config(together[0])))
        images = dataset.calibration
        for workdir in together:
            try:
                yield name_of(workdir), synthetic_aurocs(load(workdir), images.image, images.condition)
            except UserError as error:
                print(f"{workdir} is left out: {error}")


def read_rows() -> dict[tuple[str, str], dict[str, str]]:
    """Returns the rows of synthetic.csv by run and score."""
    if not CSV.exists():
        return {}
    with CSV.open(encoding="utf-8", newline="") as file:
        return {(row["run"], row["score"]): row for row in csv.DictReader(file)}


def write_rows(rows: dict[tuple[str, str], dict[str, str]]) -> None:
    """Writes synthetic.csv, sorted by run and score."""
    with CSV.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))


if __name__ == "__main__":
    main()
