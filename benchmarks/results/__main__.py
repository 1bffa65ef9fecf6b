"""Keeps the results of finished runs in docs/results.

    python -m benchmarks.results [FOLDER ...]

Adds all runs in and below the folders to results.csv and scores.jsonl.gz, in place of runs of the same name, and
regenerates the pages. Without folders it only regenerates them. `--fresh` starts without the runs stored before.
"""

import argparse
from pathlib import Path

from bigan_jax.errors import UserError

from . import runs, synthetic
from .pages import OutdatedText, pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="*", help="folders of finished runs, or folders that contain some")
    parser.add_argument("--fresh", action="store_true", help="forget the runs that were stored before")
    parser.add_argument("--commit", default=runs.head(), help="commit of the code that made the runs; default: HEAD")
    arguments = parser.parse_args()
    rows, lines = ({}, {}) if arguments.fresh else (runs.read_rows(), runs.read_lines())
    try:
        for workdir in runs.find_runs(arguments.folder):
            runs.add(rows, lines, workdir, arguments.commit)
    except UserError as error:
        raise SystemExit(str(error)) from error
    runs.write_rows(rows)
    runs.write_lines(lines)
    try:
        files = pages(rows, lines, synthetic.read_rows())
    except OutdatedText as error:
        raise SystemExit(f"The runs are stored, but the pages are not written. {error}") from error
    for name, text in files.items():
        (runs.RESULTS / name).write_text(text, encoding="utf-8")
    print(f"{len(rows)} runs; {', '.join(files)} in {runs.RESULTS}")


if __name__ == "__main__":
    main()
