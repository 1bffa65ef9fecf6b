"""Measures how well trained detectors find synthetic defects on their calibration images.

    python -m benchmarks.results.synthetic FOLDER ...

Writes docs/results/synthetic.csv, with a row per run and score. Rows of runs that are not given stay.
"""

import argparse
import csv
from pathlib import Path

from bigan_jax.commands.synthetic import measure_runs
from bigan_jax.evaluation.synthetic_defects import DEFECTS

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
    for workdir, aurocs in measure_runs(workdirs):
        if isinstance(aurocs, str):
            print(f"{workdir} is left out: {aurocs}")
            continue
        name = name_of(workdir)
        for score, values in aurocs.items():
            rows[name, score] = {"run": name, "score": score} | {k: f"{v:.4f}" for k, v in values.items()}
        write_rows(rows)
        means = (f"{score} {values['mean']:.3f}" for score, values in aurocs.items())
        print(f"{name}: {', '.join(means)}", flush=True)


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
