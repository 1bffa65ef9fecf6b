"""python -m benchmarks.soak [--epochs=2000]

A long run in short: does an epoch cost the same after 2,000 of them, in time, memory and open
files? A small model goes through the whole of a training, so that what is measured is what
goes on around the steps: checkpoints, history, events, the progress bar. Exit status 1 where the
last tenth takes over 5 % more processor time or memory than the first, or holds more files open.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bigan_jax import record, training
from bigan_jax.workdir import History
from configs import fcae
from configs.common import override

WARM_UP = 50  # epochs, in which programs are compiled and pools are filled
EVERY = 10  # epochs between two checkpoints
MOST = 1.05


class Sample(NamedTuple):
    """What was seen at the end of an epoch."""

    processor: float  # seconds, of all threads
    time: float  # seconds, by a monotonic clock
    memory: int  # bytes that are resident
    files: int  # open


def look() -> Sample:
    """Linux's own account of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(os.listdir("/proc/self/fd"))
    return Sample(time.process_time(), time.perf_counter(), pages * resource.getpagesize(), files)


def soak(epochs: int, workdir: Path) -> list[Sample]:
    """Trains so many epochs, on one device; a sample of each."""
    config = fcae.get_config("phantom")
    override(
        config,
        {
            "data.image_size": 32,
            "data.phantom_normal": 400,
            "data.phantom_anomalous": 4,
            "model.hidden": (128, 32),
            "batch_size": 16,
            "phases.phase1.epochs": epochs,
            "checkpoint.every": EVERY,
        },
    )
    samples = []

    class Watched(History):
        def append(self, row):
            super().append(row)
            samples.append(look())

    before = record.History, training.evaluate_run
    record.History, training.evaluate_run = Watched, lambda *_: {}
    try:
        training.train(config, workdir)
    finally:
        record.History, training.evaluate_run = before
    return samples


class Tenths(NamedTuple):
    """The first tenth after the warm-up, and the last."""

    processor: tuple[float, float]  # seconds of an epoch, the median of ten's means
    seconds: tuple[float, float]  # the same by the clock, which a busy machine moves
    memory: tuple[float, float]  # mean, bytes
    files: tuple[int, int]  # fewest, as a save that goes on has some more

    def flat(self) -> bool:
        return (
            self.processor[1] <= MOST * self.processor[0]
            and self.memory[1] <= MOST * self.memory[0]
            and self.files[1] <= self.files[0]
        )


def tenths(samples: list[Sample], warm_up: int = WARM_UP) -> Tenths:
    """Compares the two ends of a soak."""
    processor, times, memory, files = map(np.array, zip(*samples[warm_up:], strict=True))
    part = max(len(times) // 10 // EVERY, 1) * EVERY + 1
    ends = slice(0, part), slice(len(times) - part, None)

    def an_epoch(clock):
        # Of ten epochs one saves: means of ten have it in, and their median no neighbour's work.
        return tuple(float(np.median(np.diff(clock[end][::EVERY]))) / EVERY for end in ends)

    return Tenths(
        an_epoch(processor),
        an_epoch(times),
        tuple(float(memory[end].mean()) for end in ends),
        tuple(int(files[end].min()) for end in ends),
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2000)
    epochs = parser.parse_args().epochs
    with tempfile.TemporaryDirectory() as folder:
        found = tenths(soak(epochs, Path(folder) / "run"))
    print(f"{epochs} epochs; first tenth, last tenth, after {WARM_UP} epochs of warm-up")
    for name, (first, last), unit, scale in (
        ("processor time of an epoch", found.processor, "ms", 1e3),
        ("time of an epoch", found.seconds, "ms", 1e3),
        ("resident memory", found.memory, "MiB", 2**-20),
        ("open files", found.files, "", 1),
    ):
        change = f"{last / first - 1:+.1%}"
        print(f"  {name:26} {first * scale:9.2f} {last * scale:9.2f} {unit:4} {change}")
    return 0 if found.flat() else 1


if __name__ == "__main__":
    sys.exit(main())
