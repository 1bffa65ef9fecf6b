"""python -m benchmarks.soak [--epochs=2000] [--runs=5]

A long run in short: does an epoch cost the same after 2,000 of them, in time, memory and open
files? A very small model goes through the whole of a training, so that what is measured is what
goes on around the steps: checkpoints, history, events, the progress bar. Exit status 1 where the
last tenth takes over 5 % more processor time or memory than the first, or holds more files open.

A machine that others use too is not as fast at the end as it was at the start. So the last tenth
takes turns with the first of a second run: ten epochs of the one, then ten of the other. All this
is done several times, as a neighbor's work still moves a block's time by a tenth and more.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np

WARM_UP = 5  # blocks, in which programs are compiled and pools are filled
BLOCK = 10  # epochs, of which one saves a checkpoint
MOST = 1.05


class Sample(NamedTuple):
    """What a block of epochs took, and what was held at its end."""

    processor: float  # seconds of an epoch, of all threads
    seconds: float  # the same by a monotonic clock
    memory: int  # bytes that are resident
    files: int  # open


def train(epochs: int, workdir: Path, turn: Callable[[Sample], None]) -> None:
    """Trains so many epochs. turn: called with a sample of each block, halfway between two saves.
    Each save is waited for, so that none goes on in the background then."""
    from bigan_jax.commands import setup
    from bigan_jax.commands import train as training
    from bigan_jax.configs import fcae
    from bigan_jax.configs.common import override
    from bigan_jax.training import epoch_logger
    from bigan_jax.training.saving.checkpoints import CheckpointManager
    from bigan_jax.training.saving.train_log import TrainLog

    config = fcae.get_config("phantom")
    override(
        config,
        {
            "data.image_size": 16,
            "data.phantom_normal": 100,
            "data.phantom_anomalous": 4,
            "model.hidden": (16, 8),
            "batch_size": 16,
            "phases.phase1.epochs": epochs,
            "checkpoint.every": BLOCK,
        },
    )
    done, before = 0, _clocks()

    class Watched(TrainLog):
        def append(self, row):
            nonlocal done, before
            super().append(row)
            done += 1
            if done % BLOCK == BLOCK // 2:
                spent = [(b - a) / BLOCK for a, b in zip(before, _clocks(), strict=True)]
                turn(Sample(*spent, *_held()))
                before = _clocks()

    class Waited(CheckpointManager):
        def save(self, progress, state):
            super().save(progress, state)
            self.wait()

    with (
        patch.object(epoch_logger, "TrainLog", Watched),
        patch.object(setup, "CheckpointManager", Waited),
        patch.object(training, "evaluate_run", lambda *_: {}),
    ):
        training.train(config, workdir)


def _clocks():
    return time.process_time(), time.perf_counter()


def _held():
    """Linux's own account of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize(), len(os.listdir("/proc/self/fd"))


class Run:
    """A training in a process of its own, on one core, that goes on a block at a time."""

    def __init__(self, epochs: int):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(epochs, theirs))
        self._process.start()
        theirs.close()

    def block(self) -> Sample:
        """Trains the next one."""
        self._pipe.send(None)
        return self._pipe.recv()

    def close(self) -> None:
        """Ends it, wherever it is."""
        self._pipe.close()
        self._process.join()


def _serve(epochs, pipe):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # no threads that wait busily
    os.environ["XLA_FLAGS"] = ""

    def turn(sample):
        pipe.send(sample)
        pipe.recv()

    with tempfile.TemporaryDirectory() as folder, suppress(EOFError):  # when it is closed
        pipe.recv()
        train(epochs, Path(folder) / "run", turn)


class Ends(NamedTuple):
    """A first tenth after the warm-up, and the last."""

    processor: tuple[float, float]  # seconds of an epoch, the median block's
    seconds: tuple[float, float]  # the same by the clock
    ratio: float  # of the last tenth's processor time to the first's, the median of the turns'
    memory: tuple[float, float]  # mean, bytes
    files: tuple[int, int]  # most

    def flat(self) -> bool:
        return (
            self.ratio <= MOST
            and self.memory[1] <= MOST * self.memory[0]
            and self.files[1] <= self.files[0]
        )


def soak(epochs: int, runs: int, warm_up: int = WARM_UP) -> Ends:
    """Trains so many epochs, and beside the last tenth a first one; all that several times."""
    blocks = epochs // BLOCK
    tenth = max(blocks // 10, 1)
    first, turns = [], []
    for _ in range(runs):
        with closing(Run(epochs)) as old, closing(Run(epochs)) as young:
            before = [old.block() for _ in range(blocks - tenth)]
            first += before[warm_up : warm_up + tenth]
            for _ in range(warm_up):
                young.block()
            turns += [(young.block(), old.block()) for _ in range(tenth)]
    return compare(first, turns)


def compare(first: list[Sample], turns: list[tuple[Sample, Sample]]) -> Ends:
    """first: of runs, whose memory and files tell. turns: of the first tenth of other runs, and of
    these ones' last, taken in turn, whose times tell."""
    young, old = (np.array(side) for side in zip(*turns, strict=True))
    first = np.array(first)
    processor, seconds = ((np.median(young[:, i]), np.median(old[:, i])) for i in (0, 1))
    ratio = float(np.median(old[:, 0] / young[:, 0]))
    memory = first[:, 2].mean(), old[:, 2].mean()
    return Ends(processor, seconds, ratio, memory, (first[:, 3].max(), old[:, 3].max()))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    found = soak(args.epochs, args.runs)
    print(
        f"{args.runs} times {args.epochs} epochs; first tenth after {WARM_UP * BLOCK}, last tenth"
    )
    for name, (first, last), unit, scale in (
        ("processor time of an epoch", found.processor, "ms", 1e3),
        ("time of an epoch", found.seconds, "ms", 1e3),
        ("resident memory", found.memory, "MiB", 2**-20),
        ("open files", found.files, "", 1),
    ):
        change = f"{last / first - 1:+.1%}"
        print(f"  {name:26} {first * scale:9.2f} {last * scale:9.2f} {unit:4} {change}")
    print(f"  processor time, taken in turn: {found.ratio - 1:+.1%}")
    return 0 if found.flat() else 1


if __name__ == "__main__":
    sys.exit(main())
