"""Epoch after epoch, of one run or of several side by side, for as long as they go together.

Where an epoch is one program and a short one, the devices are given the next before the host looks
at what came of the last: while losses are read, rows written and checkpoints saved, they go on.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from bigan_jax.detector import TrainState
from bigan_jax.runtime import distributed
from bigan_jax.runtime.preemption import StopRequest
from bigan_jax.training import divergence, epoch_runner, schedules
from bigan_jax.training.epoch_logger import EpochLogger, StepMonitor, progress_bar
from bigan_jax.training.epoch_runner import STATISTICS, EpochRunner
from bigan_jax.training.run import TrainingRun
from bigan_jax.training.saving.progress import Progress
from bigan_jax.training.schedules import ScheduledEpoch

_LONG = 1.0  # seconds of an epoch beside which the host's work is little


class EpochResult(NamedTuple):
    """An epoch as one run went through it, or what had been left of it."""

    run: TrainingRun
    progress: Progress  # before it
    start: TrainState | None  # the state then, replicated; not kept where several go side by side
    due: tuple[str, ...]
    order: Int[np.ndarray, "steps batch"]
    logs: Mapping[str, Float[np.ndarray, "done"]]


def train_epochs(
    runs: Sequence[TrainingRun], runner: EpochRunner, asked: StopRequest
) -> list[EpochResult]:
    """Trains to the end, or until that is asked for or a run diverges: the attempts that did.

    All other runs are saved, and have the progress and state to go on from.

    runs: equally far, and different in their seed alone. runner: for as many.
    Raises UserError where something cannot be written.
    """
    job, start = runs[0].job, runs[0].progress
    for run in runs:
        run.job.mark_started()
    with ExitStack() as held:
        bar = held.enter_context(closing(progress_bar(job.epochs, job.steps_per_epoch, start)))
        records = {
            run: held.enter_context(closing(EpochLogger(run.job.workdir, run.progress)))
            for run in runs
        }
        loop = held.enter_context(closing(TrainLoop(records, runner, asked, bar)))
        loop.prepare()
        begun = deque()
        for number in range(start.epochs, job.epochs):
            if begun and not loop.may_run_ahead(number):
                loop.finish_epoch(begun.popleft())
            asked.acted_on = distributed.all_max(asked.received or 0)
            if asked.acted_on or loop.diverged:
                break
            begun.append(loop.dispatch_epoch(number))
            if len(begun) > 1:
                loop.finish_epoch(begun.popleft())
        for epoch in begun:
            loop.finish_epoch(epoch)
        loop.save_unsaved()
    return list(loop.diverged.values())


def epoch_order(seed: int, epoch: int, pictures: int, steps: int, batch_size: int) -> np.ndarray:
    """[steps, batch_size] indices of the pictures: a function of seed and epoch alone. What does
    not fill a batch waits for another epoch's shuffle."""
    shuffled = np.random.default_rng((seed, epoch)).permutation(pictures)
    return shuffled[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


class PendingEpoch(NamedTuple):
    """One that the devices were given."""

    moment: ScheduledEpoch
    orders: list[Int[np.ndarray, "steps batch"]]  # each run's
    start: TrainState | None
    rows: list[dict]  # logs, still on the devices
    to_save: bool  # whether what it leaves is,
    left: list["Snapshot"] | None  # which is taken at once where the next may begin before its end
    watch: StepMonitor
    began: float


class Snapshot(NamedTuple):
    """What an epoch left of a run, on one device."""

    state: TrainState
    finite: dict[str, Bool[Array, ""]]  # by network, still on the device


class TrainLoop:
    """The runs' way through epochs, which begin in turn and end in turn."""

    def __init__(
        self,
        records: Mapping[TrainingRun, EpochLogger],
        runner: EpochRunner,
        asked: StopRequest,
        bar: tqdm,
    ):
        self.records, self.runner, self.asked, self.bar = records, runner, asked, bar
        self.runs, self.diverged = list(records), {}
        self.job, self.several = self.runs[0].job, runner.layout.seeds > 0
        self.attempts: dict[TrainingRun, EpochResult] = {}  # at the epoch that ended last;
        self.ended, self.seconds = 0.0, 0.0  # when that was, what it took,
        self.unsaved: int | None = None  # and its steps, while what it left is not saved
        for run in self.runs:
            if (
                run.progress.steps != self.job.steps_per_epoch
            ):  # of an epoch begun with other pictures
                run.progress = run.progress.at_step(0, self.job.steps_per_epoch)
        states = [run.state for run in self.runs]
        together = jax.tree.map(lambda *x: jnp.stack(x), *states) if self.several else states[0]
        self.state = runner.layout.to_devices(together)
        # Several processes have to agree after each epoch on whether they go on.
        self.ahead = runner.whole_epochs and not distributed.is_multiprocess()

    def prepare(self) -> None:
        """Begins to compile all programs that are to come, where they are whole epochs."""
        if self.ahead:
            left = map(self._moment, range(self.runs[0].progress.epochs, self.job.epochs))
            order = self._together(self._orders(0))
            self.runner.compile_ahead(
                self.state, dict.fromkeys(map(schedules.active_objectives, left)), order
            )

    def close(self) -> None:
        self.runner.stop_compiling()

    def may_run_ahead(self, number: int) -> bool:
        """Whether an epoch may begin before the one before has ended, which shall not wait for a
        compilation; and is not worth it where the host's work is little beside the devices'."""
        needed = [
            schedules.active_objectives(self._moment(number)),
            *[STATISTICS] * self._is_saved(number),
        ]
        compiled = all(map(self.runner.is_compiled, needed))
        return self.ahead and self.seconds < _LONG and compiled

    def dispatch_epoch(self, number: int) -> PendingEpoch:
        """Gives the devices an epoch, or what is left of it."""
        self.attempts = {}  # which would hold states that nobody will ask for
        job, moment = self.job, self._moment(number)
        self.bar.set_description(f"epoch {number + 1}/{job.epochs} {moment.phase.name}", False)
        progress = self.runs[0].progress
        done = progress.step if number == progress.epochs else 0
        orders = [order[done:] for order in self._orders(number)]
        start = None if self.several else epoch_runner.copy(self.state)
        watch = StepMonitor(self.bar, done, job.steps_per_epoch, self.asked)
        began = time.perf_counter()
        self.state, rows = self.runner.dispatch(
            self.state, schedules.active_objectives(moment), self._together(orders), watch
        )
        to_save = self._is_saved(number) and watch.done == job.steps_per_epoch
        left = self._take(watch.done) if to_save and self.ahead else None
        return PendingEpoch(moment, orders, start, rows, to_save, left, watch, began)

    def finish_epoch(self, epoch: PendingEpoch) -> None:
        """Waits for what came of it, tells it, and keeps what is sound."""
        logs, due = self.runner.fetch_logs(epoch.rows), schedules.active_objectives(epoch.moment)
        ended = time.perf_counter()
        self.seconds, self.ended = ended - max(epoch.began, self.ended), ended
        epoch.watch.end(logs)
        self.unsaved = epoch.watch.done
        self.attempts = {
            run: EpochResult(run, run.progress, epoch.start, due, order, its)
            for run, order, its in zip(self.runs, epoch.orders, self._each(logs), strict=True)
            if run not in self.diverged
        }
        for run, attempt in self.attempts.items():
            run.checkpoints.raise_if_failed()
            share = self.seconds / len(self.runs)
            run.progress = run.progress.after(epoch.watch.done, attempt.logs, share)
            if not divergence.losses_are_finite(attempt.logs):
                self.diverged[run] = attempt
            elif epoch.watch.done == self.job.steps_per_epoch:
                record, batch_size = self.records[run], self.job.batch_size
                run.progress = record.add(run.progress, epoch.moment, batch_size, self.bar)
        if epoch.to_save and len(self.diverged) < len(self.runs):
            self._save(epoch.left or self._take(epoch.watch.done))

    def save_unsaved(self) -> None:
        """Saves what the last epoch left, where that was not due."""
        if self.unsaved is not None:
            self._save(self._take(self.unsaved))

    def _save(self, left):
        """Hands each run what the last epoch left of it, and saves those that are sound."""
        self.unsaved = None
        for run, (state, finite) in zip(self.runs, left, strict=True):
            run.state = state
            if run in self.diverged:
                continue
            if not all(jax.device_get(finite).values()):
                self.diverged[run] = self.attempts[run]
            else:
                run.checkpoints.save(run.progress, state)

    def _take(self, done):
        """What was left of each run, after so many steps of an epoch; after its last, and unless
        all have diverged, with BatchNorm's statistics those of the training pictures."""
        if done == self.job.steps_per_epoch and len(self.diverged) < len(self.runs):
            # Shuffled as in training: as they lie, a batch would hold pictures of one kind alone.
            order = self._together(self._orders(0))
            self.state = self.runner.with_statistics(self.state, order)
        states = self.runner.layout.unstack_seeds(self.state)
        return [Snapshot(state, divergence.finite_networks(state)) for state in states]

    def _is_saved(self, number):
        done = number + 1
        return done == self.job.epochs or done % self.job.checkpointing.every == 0

    def _moment(self, number):
        return schedules.schedule_at(self.job.built.phases, number)

    def _orders(self, number):
        shape = len(self.job.dataset.train.image), self.job.steps_per_epoch, self.job.batch_size
        return [epoch_order(run.job.seed, number, *shape) for run in self.runs]

    def _together(self, orders):
        """[steps, *seeds, batch], as the runner takes them."""
        return np.stack(orders, 1) if self.several else orders[0]

    def _each(self, logs):
        """Each run's own."""
        if not self.several:
            return [logs]
        return [{name: log[i] for name, log in logs.items()} for i in range(len(self.runs))]


STOP_NOTICE = (
    "what was begun is finished and saved; Ctrl-C again ends at once"  # when it is asked to stop
)
