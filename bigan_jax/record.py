"""What is shown of a training while it goes on, and what is kept of each epoch."""

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bigan_jax import cluster, divergence, health
from bigan_jax.events import Events
from bigan_jax.history import History
from bigan_jax.interrupts import Asked
from bigan_jax.progress import Progress
from bigan_jax.schedule import Moment

_LOOK = 10  # steps between two looks at the losses: a look waits for the device


def progress_bar(epochs: int, steps: int, progress: Progress) -> tqdm:
    """Of all steps of a training; steps: in every epoch."""
    return tqdm(
        total=epochs * steps,
        initial=progress.epochs * steps + progress.step,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 30,  # a log file wants few lines
        disable=not cluster.is_primary(),
    )


class Record:
    """What is kept of each epoch: train.jsonl, and events for TensorBoard."""

    def __init__(self, workdir: Path, progress: Progress):
        self._history = History(workdir, progress.history)
        self._events = Events(workdir / "events", progress.epochs + 1)

    def add(self, progress: Progress, moment: Moment, batch_size: int, bar: tqdm) -> Progress:
        """Keeps and tells what is to be told of the epoch that was just done, and counts it."""
        row = _row(progress, moment, batch_size)
        for warning in row["health"]:
            bar.write(f"epoch {row['epoch']}: {warning}")
        self._history.append(row)
        curves = row.keys() - {"epoch", "phase", "step", "health", "rollbacks"}
        self._events.add({name: row[name] for name in sorted(curves)}, row["epoch"])
        return Progress(row["epoch"], history=self._history.text, rollbacks=progress.rollbacks)

    def close(self) -> None:
        self._events.close()


class Watch:
    """Shows each step of an epoch, and ends it where that was asked for or a loss is not finite."""

    def __init__(self, bar: tqdm, done: int, steps: int, asked: Asked):
        self.done, self._bar, self._steps, self._asked = done, bar, steps, asked
        self._before = done

    def __call__(self, fresh: int, logs: dict) -> bool:
        diverged, done = False, self._before + fresh
        look = done == self._steps or done // _LOOK > self.done // _LOOK
        if look:  # reading a loss waits for the device
            # Each objective's own loss; the terms it is made of stay in train.jsonl.
            losses = {n: np.ravel(v) for n, v in logs.items() if n.endswith("/loss")}
            shown = {name.removesuffix("/loss"): f"{v[0]:.3g}" for name, v in losses.items()}
            self._bar.set_postfix(shown, refresh=False)
            diverged = not divergence.finite_losses(losses)
        self._bar.update(done - self.done)
        self.done = done
        if look or not cluster.several():  # which would wait for each other as well
            self._asked.heeded = cluster.highest(self._asked.signum or 0)
        return diverged or self._asked.heeded > 0


def _row(progress: Progress, moment: Moment, batch_size: int) -> dict:
    """What train.jsonl tells of the epoch that was just done."""
    row = {
        "epoch": progress.epochs + 1,
        "phase": moment.phase.name,
        "step": (progress.epochs + 1) * progress.steps,
        "seconds": progress.seconds,
        "images_per_second": progress.steps * batch_size / progress.seconds,
        **{name: float(np.mean(values)) for name, values in progress.logs.items()},
    }
    if progress.rollbacks and progress.rollbacks[-1]["back_to"] == progress.epochs:
        row["rollbacks"] = progress.rollbacks
    row["health"] = health.warnings(row)
    return row
