"""python -m benchmarks.startup [--config=configs/<model>.py:<dataset> --config.<field>=<value> ...]

Seconds from a command's start until its training's first step is done, with an empty folder of
compiled programs and then with what that run left there; and until `launch.py --help` has answered.
By default the README's first command. The aims: the second run in under half of the first's time,
help in under 1.5 s.
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
    """What one start took, in seconds since the process was asked for, and its compilations."""

    imports: float  # until the program's own code runs
    training: float  # until the first step begins: pictures drawn, audited and on the device
    first_step: float  # until it is done
    compiled: int  # programs that were not found in the folder


def measure(arguments: Sequence[str], folder: Path) -> list[Start]:
    """The first run's start and the second's; folder: an empty place for all that they leave."""
    report, cache = folder / "report", folder / "cache"
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "BENCHMARK_REPORT": str(report)}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        environment.pop(name, None)
    starts = []
    for run in ("first", "second"):
        environment["BENCHMARK_BEGAN"] = str(time.time())
        command = [sys.executable, "-m", "benchmarks.startup_run", *arguments]
        subprocess.run(
            [*command, f"--workdir={folder / run}"],
            cwd=ROOT,
            env=environment,
            check=True,
            capture_output=True,
        )
        words = report.read_text().split()
        starts.append(Start(*map(float, words[:3]), int(words[3])))
    return starts


def help_seconds() -> float:
    """Until `launch.py --help` has printed all flags, the better of two."""
    times = []
    for _ in range(2):
        began = time.perf_counter()
        subprocess.run([sys.executable, "launch.py", "--help"], cwd=ROOT, capture_output=True)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Prints the table."""
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
