"""What is shown of a training while it goes on, and what is kept of each epoch."""

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bigan_jax.runtime import distributed
from bigan_jax.runtime.preemption import StopRequest
from bigan_jax.training import divergence, health
from bigan_jax.training.saving.progress import Progress
from bigan_jax.training.saving.tensorboard import TensorBoardWriter
from bigan_jax.training.saving.train_log import TrainLog
from bigan_jax.training.schedules import ScheduledEpoch

_LOOK = 10  # steps between two looks at the losses: a look waits for the device


def progress_bar(epochs: int, steps: int, progress: Progress) -> tqdm:
    """Of all steps of a training; steps: in every epoch."""
    return tqdm(
        total=epochs * steps,
        initial=progress.epochs * steps + progress.step,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 30,  # a log file wants few lines
        disable=not distributed.is_primary(),
    )


class EpochLogger:
    """What is kept of each epoch: train.jsonl, and events for TensorBoard."""

    def __init__(self, workdir: Path, progress: Progress):
        self._history = TrainLog(workdir, progress.history)
        self._events = TensorBoardWriter(workdir / "events", progress.epochs + 1)

    def add(
        self, progress: Progress, moment: ScheduledEpoch, batch_size: int, bar: tqdm
    ) -> Progress:
        """Keeps and tells what is to be told of the epoch that was just done, and counts it."""
        row = _row(progress, moment, batch_size)
        for warning in row["health"]:
            bar.write(f"epoch {row['epoch']}: {warning}")
        self._history.append(row)
        curves = row.keys() - {"epoch", "phase", "step", "health", "rollbacks"}
        self._events.add({name: row[name] for name in sorted(curves)}, row["epoch"])
        return progress.at_step(0, progress.steps)._replace(
            epochs=row["epoch"], history=self._history.text
        )

    def close(self) -> None:
        self._events.close()


class StepMonitor:
    """Shows the steps of an epoch, and ends it where that was asked for or a loss is not finite."""

    def __init__(self, bar: tqdm, done: int, steps: int, asked: StopRequest):
        self.done, self._bar, self._steps, self._asked = done, bar, steps, asked
        self._before = self._shown = done

    def __call__(self, fresh: int, logs: dict) -> bool:
        """Told of steps that were begun; whether no more are to be. logs: of the last of them."""
        before, self.done = self.done, self._before + fresh
        if self.done == self._steps:
            return False  # it is the end that looks at the last one
        look, diverged = self.done // _LOOK > before // _LOOK, False
        if look:  # reading a loss waits for the device
            losses = _losses(logs)
            diverged = not divergence.losses_are_finite(losses)
            self._show(losses)
        else:
            self._count()
        if look or not distributed.is_multiprocess():  # which would wait for each other as well
            self._asked.acted_on = distributed.all_max(self._asked.received or 0)
        return diverged or self._asked.acted_on > 0

    def end(self, logs: dict) -> None:
        """Told, once the epoch ends, of the logs of its steps."""
        self._show({n: values[..., -1:] for n, values in _losses(logs).items()})

    def _show(self, losses):
        shown = {n.removesuffix("/loss"): f"{np.ravel(v)[0]:.3g}" for n, v in losses.items()}
        self._bar.set_postfix(shown, refresh=False)
        self._count()

    def _count(self):
        self._bar.update(self.done - self._shown)
        self._shown = self.done


def _losses(logs):
    """Each objective's own loss; the terms that it is made of stay in train.jsonl."""
    return {name: values for name, values in logs.items() if name.endswith("/loss")}


def _row(progress: Progress, moment: ScheduledEpoch, batch_size: int) -> dict:
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
    row["health"] = health.health_warnings(row)
    return row
