"""Measures the start of a run: seconds until its first training step is done.

    python -m benchmarks.startup [--config=configs/<model>.py:<dataset> --config.<field>=<value>]

Runs a command (by default the first one of the README) with an empty compilation cache and again
with the cache of the first run, and `launch.py --help`. Targets: the second run takes less than
half the time of the first, help less than 1.5 s.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PHANTOM = ("--config=configs/improved_bigan.py:phantom",)


class Start(NamedTuple):
    """Seconds of one start, since the process was created, and its compilations."""

    imports: float  # until the code of the program runs
    training: float  # until the first step begins: data are loaded, audited and on the device
    first_step: float  # until the first step is done
    compiled: int  # programs that were not in the cache


def measure(arguments: Sequence[str], folder: Path) -> list[Start]:
    """Measures the first and the second start; `folder` is an empty folder for their files."""
    report, cache = folder / "report", folder / "cache"
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "BENCHMARK_REPORT": str(report)}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        environment.pop(name, None)
    starts = []
    for run in ("first", "second"):
        environment["BENCHMARK_BEGAN"] = str(time.time())
        command = [sys.executable, "-m", "benchmarks.startup_run", *arguments]
        subprocess.run(
            [*command, f"--workdir={folder / run}"], cwd=ROOT, env=environment, check=True, capture_output=True
        )
        values = report.read_text().split()
        starts.append(Start(*map(float, values[:3]), int(values[3])))
    return starts


def help_seconds() -> float:
    """Seconds of `launch.py --help`, the better of two runs."""
    times = []
    for _ in range(2):
        began = time.perf_counter()
        subprocess.run([sys.executable, "launch.py", "--help"], cwd=ROOT, capture_output=True)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Prints a table of both starts."""
    with tempfile.TemporaryDirectory() as folder:
        starts = measure(sys.argv[1:] or PHANTOM, Path(folder))
    print("run     imports  training  first step done  compiled")
    for name, start in zip(("first", "second"), starts, strict=True):
        row = f"{start.imports:7.2f}  {start.training:8.2f}  {start.first_step:15.2f}"
        print(f"{name:6}  {row}  {start.compiled:8}")
    print(f"second / first: {starts[1].first_step / starts[0].first_step:.2f}")
    print(f"--help: {help_seconds():.2f} s")


if __name__ == "__main__":
    main()
