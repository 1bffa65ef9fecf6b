"""Reports a training: a progress bar by step, and train.jsonl and the loggers of the config by epoch."""

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bigan_jax.runtime import distributed
from bigan_jax.runtime.progress_bar import progress_bar
from bigan_jax.runtime.stop_signals import StopRequest
from bigan_jax.training import divergence, health
from bigan_jax.training.saving.loggers import DEFAULT_LOGGERS, open_logger
from bigan_jax.training.saving.progress import Progress
from bigan_jax.training.saving.train_log import TrainLog
from bigan_jax.training.schedules import ScheduledEpoch

_CHECK_EVERY = 10  # steps between two checks of the losses: reading a loss waits for the device


def make_progress_bar(epochs: int, steps: int, progress: Progress) -> tqdm:
    """Returns a progress bar over all steps of a training, disabled in all processes but one."""
    done = progress.epochs * steps + progress.step
    return progress_bar(epochs * steps, initial=done, unit="step", disable=not distributed.is_primary())


class CompilationNotice:
    """Prints that the training step is being compiled, and how long that took if it was over a second.

    The time includes that of reading the first images.
    """

    def __init__(self, progress_bar: tqdm):
        self._progress_bar, self._started = progress_bar, time.perf_counter()
        self._write("Compiling the training step ...")

    def done(self) -> None:
        """Prints the time since the notice was made."""
        seconds = time.perf_counter() - self._started
        if seconds > 1:
            self._write(f"Compiled the training step in {seconds:.0f} s.")

    def _write(self, text):
        if not self._progress_bar.disable:
            self._progress_bar.write(text)


class EpochLogger:
    """Writes each finished epoch to train.jsonl and to loggers such as TensorBoard."""

    def __init__(self, workdir: Path, progress: Progress, batch_size: int, loggers: Sequence[str] = DEFAULT_LOGGERS):
        """Opens the files and loggers. Raises UserError if one cannot be opened."""
        self._batch_size = batch_size
        self._train_log = TrainLog(workdir, progress.train_log)
        with ExitStack() as stack:
            # Of several processes, which train the same state, one logs.
            names = loggers if distributed.is_primary() else ()
            self._loggers = [
                stack.enter_context(closing(open_logger(name, workdir, progress.epochs + 1))) for name in names
            ]
            self._close = stack.pop_all().close

    def log_epoch(self, progress: Progress, schedule: ScheduledEpoch, progress_bar: tqdm) -> Progress:
        """Logs the epoch that has just finished, and prints its health warnings.

        Returns the progress at the beginning of the next epoch. Raises UserError if a file could not be written.
        """
        row = _row(progress, schedule, self._batch_size)
        for warning in row["health"]:
            progress_bar.write(f"epoch {row['epoch']}: {warning}")
        self._train_log.append(row)
        scalars = row.keys() - {"epoch", "phase", "step", "health", "rollbacks"}
        for logger in self._loggers:
            logger.log({name: row[name] for name in sorted(scalars)}, row["epoch"])
        return progress.at_step(0, progress.steps)._replace(epochs=row["epoch"], train_log=self._train_log.text)

    def close(self) -> None:
        """Closes the loggers. Raises UserError if one could not write."""
        self._close()


class StepMonitor:
    """Shows the steps of an epoch, and ends it at a stop request or a loss that is not finite."""

    def __init__(
        self,
        progress_bar: tqdm,
        steps_done: int,
        steps: int,
        stop_request: StopRequest,
        compilation: CompilationNotice | None = None,
    ):
        """Makes a monitor; `compilation` is to end with the first step."""
        self._compilation = compilation
        self.steps_done = steps_done  # number of dispatched steps, those before a resumption included
        self._progress_bar, self._steps, self._stop_request = progress_bar, steps, stop_request
        self._steps_before = self._steps_shown = steps_done

    def __call__(self, steps: int, logs: dict) -> bool:
        """Counts the steps dispatched so far, and returns whether the epoch ends here.

        The callback of `EpochRunner.dispatch`, with the logs of the last step.
        """
        before, self.steps_done = self.steps_done, self._steps_before + steps
        if self._compilation:
            self._compilation.done()
            self._compilation = None
        if self.steps_done == self._steps:
            return False  # `finish` reads the logs of the last step
        check = self.steps_done // _CHECK_EVERY > before // _CHECK_EVERY
        losses = _losses(logs) if check else {}
        self._show(losses)
        # Several processes would wait for each other, too, and compare their requests less often.
        if check or not distributed.is_multiprocess():
            self._stop_request.acted_on = distributed.all_max(self._stop_request.received or 0)
        return self._stop_request.acted_on > 0 or not divergence.losses_are_finite(losses)

    def finish(self, logs: dict) -> int:
        """Shows the losses of the last step, from the logs of all steps, and returns the number of steps done."""
        self._show({name: values[..., -1:] for name, values in _losses(logs).items()})
        return self.steps_done

    def _show(self, losses):
        if losses:
            texts = {n.removesuffix("/loss"): f"{np.ravel(v)[0]:.3g}" for n, v in losses.items()}
            self._progress_bar.set_postfix(texts, refresh=False)
        self._progress_bar.update(self.steps_done - self._steps_shown)
        self._steps_shown = self.steps_done


def _losses(logs):  # without their terms
    return {name: values for name, values in logs.items() if name.endswith("/loss")}


def _row(progress, schedule, batch_size) -> dict:
    row = {
        "epoch": progress.epochs + 1,
        "phase": schedule.phase.name,
        "step": (progress.epochs + 1) * progress.steps,
        "seconds": progress.seconds,
        "images_per_second": progress.steps * batch_size / progress.seconds,
        **{name: float(np.mean(values)) for name, values in progress.logs.items()},
    }
    if progress.rollbacks and progress.rollbacks[-1]["rolled_back_to"] == progress.epochs:
        row["rollbacks"] = progress.rollbacks
    row["health"] = health.health_warnings(row)
    return row
