"""Checks that no detector has become slower relative to PyTorch, and no command relative to a reference.

    python -m benchmarks.check [--waiting] [--models=cae,vae] [--margin=0.15] [options of benchmarks.steps]

Measures like benchmarks.steps, by default with batches of 32 on the CPU. Exits with status 1 if a
ratio to PyTorch is below its floor in floors.json by more than the margin, which allows for noise.
--set writes the measured ratios as new floors, with the machine: floors of one machine say little
about another. --waiting measures commands like benchmarks.waiting instead: none may take more than
its limit, in processor seconds relative to a reference.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import sides, steps, waiting

_WAITING_CASES = ("help", "wrong flag", "predict eleven")
FLOORS = Path(__file__).with_name("floors.json")


def floor_key(row: Mapping) -> str:
    """The key of a floor: what a row of benchmarks.steps measures."""
    return f"{row['model']} {row['step']}, batch {row['batch']}, {row['size']} px, {row['dtype']}"


def shortfalls(rows: Sequence[Mapping], floors: Mapping[str, float], margin: float) -> list[str]:
    """Describes each row that is too slow or has no floor.

    Args:
      rows: rows of benchmarks.steps.
      floors: ratios to PyTorch by `floor_key`.
      margin: the fraction of its floor by which a ratio may fall below it.
    """
    messages = []
    for row in rows:
        floor = floors.get(floor_key(row))
        if floor is None:
            messages.append(f"{floor_key(row)}: no floor; --set would write {row['ratio']:.2f}")
        elif row["ratio"] < floor * (1 - margin):
            messages.append(f"{floor_key(row)}: {row['ratio']:.2f} of PyTorch's speed, the floor is {floor}")
    return messages


def main(arguments: Sequence[str] | None = None) -> int:
    parser = steps.make_parser()
    parser.description = __doc__
    parser.set_defaults(batches=(32,), platform="cpu", seconds=8, repeats=3)
    parser.add_argument("--margin", type=float, default=0.15, help="fraction of a floor, for noise")
    parser.add_argument("--floors", type=Path, default=FLOORS)
    parser.add_argument("--set", action="store_true", help="write the measured ratios as floors")
    parser.add_argument("--waiting", action="store_true", help="check the commands in place of the detectors")
    options = steps.parse(parser, arguments)
    if options.waiting:
        return _check_waiting(options)
    if not options.torch:
        parser.error("--torch=none leaves nothing to compare with")
    known = json.loads(options.floors.read_text()) if options.floors.exists() else {"ratios": {}}

    print(steps.HEADER)
    rows = []
    for task in steps.tasks(options):
        rows += steps.measure(task, options, lambda text: print(text, flush=True))
    if options.output:
        steps.merge_rows(options.output, rows)
    if options.set:
        ratios = known["ratios"] | {floor_key(row): round(row["ratio"], 2) for row in rows}
        floors = known | {"machine": rows[0]["machine"], "ratios": dict(sorted(ratios.items()))}
        options.floors.write_text(json.dumps(floors, indent=1) + "\n")
        return 0
    messages = shortfalls(rows, known["ratios"], options.margin)
    print("\n".join(messages) or f"none of {len(rows)} is slower than its floor")
    return int(bool(messages))


def _check_waiting(options) -> int:
    with tempfile.TemporaryDirectory() as folder:
        rows = waiting.measure_all(Path(folder), _WAITING_CASES, options.repeats, 11)
    print("\n".join([waiting.HEADER, *map(waiting.table_row, rows)]))
    known = json.loads(options.floors.read_text()) if options.floors.exists() else {"ratios": {}}
    if options.set:
        limits = {row["name"]: round(row["ratio"], 2) for row in rows}
        known["waiting"] = {"machine": f"{sides.processor()}, {sides.cores()} cores", "ratios": limits}
        options.floors.write_text(json.dumps(known, indent=1) + "\n")
        return 0
    messages = waiting.excesses(rows, known.get("waiting", {}).get("ratios", {}), options.margin)
    print("\n".join(messages) or f"none of {len(rows)} commands is over its limit")
    return int(bool(messages))


if __name__ == "__main__":
    sys.exit(main())
