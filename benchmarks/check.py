"""python -m benchmarks.check [--models=cae,vae] [--margin=0.15] [what benchmarks.steps takes]

Measures as benchmarks.steps does, at batch 32 on the processor unless told otherwise, and fails
where a ratio to PyTorch has fallen below its floor in floors.json by more than the margin, which is
for noise. --set writes what was measured there as the new floors of those detectors, with the
machine: floors of one machine say little of another.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import steps

FLOORS = Path(__file__).with_name("floors.json")


def place(row: Mapping) -> str:
    """What a floor is kept under: what a row of benchmarks.steps measures."""
    return f"{row['model']} {row['step']}, batch {row['batch']}, {row['size']} px, {row['dtype']}"


def shortfalls(rows: Sequence[Mapping], floors: Mapping[str, float], margin: float) -> list[str]:
    """A line for each row that is too slow, and for each that has no floor.

    margin: the share of its floor that a ratio may lack.
    """
    told = []
    for row in rows:
        floor = floors.get(place(row))
        if floor is None:
            told.append(f"{place(row)}: no floor; --set takes today's {row['ratio']:.2f} for one")
        elif row["ratio"] < floor * (1 - margin):
            told.append(f"{place(row)}: {row['ratio']:.2f} of PyTorch's speed, the floor {floor}")
    return told


def main(given: Sequence[str] | None = None) -> int:
    options = steps.parser()
    options.description = __doc__
    options.set_defaults(batches=(32,), platform="cpu", seconds=8, repeats=3)
    options.add_argument("--margin", type=float, default=0.15, help="of a floor, for noise")
    options.add_argument("--floors", type=Path, default=FLOORS)
    options.add_argument("--set", action="store_true", help="makes floors of what is measured")
    how = steps.arguments(options, given)
    if not how.torch:
        options.error("--torch=none leaves nothing to compare with")
    known = json.loads(how.floors.read_text()) if how.floors.exists() else {"ratios": {}}

    print(steps.HEADER)
    rows = []
    for task in steps.tasks(how):
        rows += steps.measure(task, how, lambda text: print(text, flush=True))
    if how.output:
        steps.keep(how.output, rows)
    if how.set:
        ratios = known["ratios"] | {place(row): round(row["ratio"], 2) for row in rows}
        floors = {"machine": rows[0]["machine"], "ratios": dict(sorted(ratios.items()))}
        how.floors.write_text(json.dumps(floors, indent=1) + "\n")
        return 0
    told = shortfalls(rows, known["ratios"], how.margin)
    print("\n".join(told) or f"none of {len(rows)} is slower than its floor")
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())
