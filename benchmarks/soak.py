"""Checks that epochs cost the same at the end of a long run, in time, memory and open files.

    python -m benchmarks.soak [--epochs=2000] [--runs=5]

Trains a very small model with everything around the steps: checkpoints, training log, TensorBoard
summaries, progress bar. The exit status is 1 if the last tenth takes over 5 % more processor time
or memory than the first, or has more files open.

On a shared machine the speed changes during a run. Therefore the last tenth alternates with the
first tenth of a second run, ten epochs each, and all is repeated several times: other processes
still change the time of a block by a tenth and more.
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

WARM_UP = 5  # blocks in which programs are compiled and memory pools grow
BLOCK = 10  # epochs; one of them saves a checkpoint
MAX_RATIO = 1.05


class Sample(NamedTuple):
    """The cost of a block of epochs, and memory and files at its end."""

    processor: float  # seconds per epoch, all threads
    seconds: float  # the same, wall time
    memory: int  # resident bytes
    files: int  # open files


def train(epochs: int, workdir: Path, on_block: Callable[[Sample], None]) -> None:
    """Trains a small model.

    Args:
      epochs: the number of epochs.
      workdir: the folder of the run.
      on_block: called with a sample of each block, halfway between two checkpoints. Saving is
        synchronous, so that none is in progress then.
    """
    from bigan_jax.commands import train as training
    from bigan_jax.configs import fcae
    from bigan_jax.configs.common import override
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

    append, save = TrainLog.append, CheckpointManager.save

    def append_and_sample(log, row):
        nonlocal done, before
        append(log, row)
        done += 1
        if done % BLOCK == BLOCK // 2:
            costs = [(b - a) / BLOCK for a, b in zip(before, _clocks(), strict=True)]
            on_block(Sample(*costs, *_memory_and_files()))
            before = _clocks()

    def save_and_wait(checkpoints, progress, state):
        save(checkpoints, progress, state)
        checkpoints.wait()

    with (
        patch.object(TrainLog, "append", append_and_sample),
        patch.object(CheckpointManager, "save", save_and_wait),
        patch.object(training, "evaluate_run", lambda *_: {}),
    ):
        training.train(config, workdir)


def _clocks():
    return time.process_time(), time.perf_counter()


def _memory_and_files():
    """Resident bytes and open files of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize(), len(os.listdir("/proc/self/fd"))


class Run:
    """A training in a process of its own on one core, advanced block by block."""

    def __init__(self, epochs: int):
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(epochs, child_pipe))
        self._process.start()
        child_pipe.close()

    def block(self) -> Sample:
        """Trains the next block."""
        self._pipe.send(None)
        return self._pipe.recv()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join()


def _serve(epochs, pipe):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # avoids threads that wait busily
    os.environ["XLA_FLAGS"] = ""

    def on_block(sample):
        pipe.send(sample)
        pipe.recv()

    with tempfile.TemporaryDirectory() as folder, suppress(EOFError):  # raised when the run is closed
        pipe.recv()
        train(epochs, Path(folder) / "run", on_block)


class Ends(NamedTuple):
    """The first tenth after the warm-up, and the last."""

    processor: tuple[float, float]  # seconds per epoch, median of blocks
    seconds: tuple[float, float]  # the same, wall time
    ratio: float  # processor time, last tenth to first, median of pairs
    memory: tuple[float, float]  # bytes, mean
    files: tuple[int, int]  # maximum

    def is_flat(self) -> bool:
        return (
            self.ratio <= MAX_RATIO and self.memory[1] <= MAX_RATIO * self.memory[0] and self.files[1] <= self.files[0]
        )


def soak(epochs: int, runs: int, warm_up: int = WARM_UP) -> Ends:
    """Trains `runs` times, alternating the last tenth with the first tenth of another run."""
    blocks = epochs // BLOCK
    tenth = max(blocks // 10, 1)
    first, pairs = [], []
    for _ in range(runs):
        with closing(Run(epochs)) as old, closing(Run(epochs)) as young:
            before = [old.block() for _ in range(blocks - tenth)]
            first += before[warm_up : warm_up + tenth]
            for _ in range(warm_up):
                young.block()
            pairs += [(young.block(), old.block()) for _ in range(tenth)]
    return compare(first, pairs)


def compare(first: list[Sample], pairs: list[tuple[Sample, Sample]]) -> Ends:
    """Compares first and last tenths.

    Args:
      first: blocks of the first tenth, for memory and files.
      pairs: alternating blocks of the first tenth of other runs and of the last tenth, for times.
    """
    young, old = (np.array(side) for side in zip(*pairs, strict=True))
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
    ends = soak(args.epochs, args.runs)
    print(f"{args.runs} runs of {args.epochs} epochs: first tenth after {WARM_UP * BLOCK}, last tenth")
    for name, (first, last), unit, scale in (
        ("processor time per epoch", ends.processor, "ms", 1e3),
        ("wall time per epoch", ends.seconds, "ms", 1e3),
        ("resident memory", ends.memory, "MiB", 2**-20),
        ("open files", ends.files, "", 1),
    ):
        change = f"{last / first - 1:+.1%}"
        print(f"  {name:26} {first * scale:9.2f} {last * scale:9.2f} {unit:4} {change}")
    print(f"  processor time, median of pairs: {ends.ratio - 1:+.1%}")
    return 0 if ends.is_flat() else 1


if __name__ == "__main__":
    sys.exit(main())
