"""The training loop: dispatches epochs to the devices, then logs and checkpoints their results."""

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
from bigan_jax.runtime.stop_signals import StopRequest
from bigan_jax.training import device_layout, divergence
from bigan_jax.training.epoch_logger import CompilationNotice, EpochLogger, StepMonitor, make_progress_bar
from bigan_jax.training.epoch_runner import STATISTICS, EpochRunner
from bigan_jax.training.run import TrainingRun
from bigan_jax.training.saving.progress import Progress
from bigan_jax.training.schedules import ScheduledEpoch, active_objectives, schedule_at

STOP_NOTICE = "finishing and saving the current work; press Ctrl-C again to quit at once"
_LONG_EPOCH = 1.0  # seconds; the host's work is small against longer epochs


class EpochResult(NamedTuple):
    """The result of an epoch, or of the rest of a resumed one, for one run."""

    run: TrainingRun
    progress: Progress  # before these steps
    initial_state: TrainState | None  # replicated, before these steps; None for several runs
    objectives: tuple[str, ...]  # the updates of each step
    indices: Int[np.ndarray, "steps batch"]  # the training images of each step
    logs: Mapping[str, Float[np.ndarray, "done"]]  # each log by step


def train_epochs(runs: Sequence[TrainingRun], runner: EpochRunner, stop_request: StopRequest) -> list[EpochResult]:
    """Trains to the end of the schedule, or until a stop is requested or a run diverges.

    The runs have equal progress, and differ in their seed alone. Those that do not diverge are saved, and their
    `progress` and `state` are up to date. Raises UserError if a file could not be written.

    Returns:
      The result of the last epoch of each run that diverged.
    """
    job, start = runs[0].job, runs[0].progress
    for run in runs:
        run.job.mark_started()
    with ExitStack() as stack:

        def closed_at_end(resource):
            return stack.enter_context(closing(resource))

        progress_bar = closed_at_end(make_progress_bar(job.epochs, job.steps_per_epoch, start))
        loggers = {
            run: closed_at_end(EpochLogger(run.job.workdir, run.progress, job.batch_size, job.loggers)) for run in runs
        }
        loop = closed_at_end(TrainLoop(loggers, runner, stop_request, progress_bar))
        loop.compile_ahead()
        pending = deque()
        for number in range(start.epochs, job.epochs):
            if pending and not loop.may_run_ahead(number):
                loop.finish_epoch(pending.popleft())
            stop_request.acted_on = distributed.all_max(stop_request.received or 0)
            if stop_request.acted_on or loop.diverged:
                break
            pending.append(loop.dispatch_epoch(number))
            if len(pending) > 1:
                loop.finish_epoch(pending.popleft())
        for epoch in pending:
            loop.finish_epoch(epoch)
        loop.save_unsaved()
    return list(loop.diverged.values())


def epoch_order(
    seed: int, epoch: int, images: int, steps: int, batch_size: int
) -> Int[np.ndarray, "{steps} {batch_size}"]:
    """Returns the shuffled image indices of an epoch, a function of seed and epoch (from 0) alone.

    Of the number of training images, those that do not fill a batch are left out.
    """
    shuffled = np.random.default_rng((seed, epoch)).permutation(images)
    return shuffled[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


class Snapshot(NamedTuple):
    """A run's state after an epoch, on one device."""

    state: TrainState
    finite: dict[str, Bool[Array, ""]]  # whether the values of each network are finite


class PendingEpoch(NamedTuple):
    """An epoch that was dispatched to the devices and has not been finished."""

    schedule: ScheduledEpoch
    indices: list[Int[np.ndarray, "steps batch"]]  # each run's
    initial_state: TrainState | None  # as in `EpochResult`
    logs: list[dict]  # on the devices
    save_checkpoint: bool  # whether its final state is to be saved
    snapshots: list[Snapshot] | None  # each run's final state, taken at once if the next epoch may be dispatched early
    monitor: StepMonitor
    started: float  # `time.perf_counter()` at its dispatch


class TrainLoop:
    """Dispatches and finishes the epochs of one run, or of several that differ in their seed alone, in order.

    When an epoch is one compiled program and takes less than a second, the next epoch is dispatched before the results
    of the previous one are read. Logging and checkpointing then overlap with computation.
    """

    def __init__(
        self,
        loggers: Mapping[TrainingRun, EpochLogger],
        runner: EpochRunner,
        stop_request: StopRequest,
        progress_bar: tqdm,
    ):
        self.loggers, self.runner = loggers, runner
        self.stop_request, self.progress_bar = stop_request, progress_bar
        self.runs, self.job = list(loggers), next(iter(loggers)).job
        self.diverged: dict[TrainingRun, EpochResult] = {}  # of the last epoch of runs with values that are not finite
        self.results: dict[TrainingRun, EpochResult] = {}  # of the epoch that finished last
        self.last_finished, self.last_seconds = 0.0, 0.0  # when it finished; how long it took
        self.unsaved_steps: int | None = None  # its number of steps, if its state is not saved
        for run in self.runs:
            # The step of an epoch with another number of images has no meaning in this one.
            if run.progress.steps != self.job.steps_per_epoch:
                run.progress = run.progress.at_step(0, self.job.steps_per_epoch)
        self._has_seeds = runner.layout.seeds > 0
        states = [run.state for run in self.runs]
        state = jax.tree.map(lambda *x: jnp.stack(x), *states) if self._has_seeds else states[0]
        self.state = runner.layout.to_devices(state)
        # Several processes must agree after each epoch on whether to continue.
        self.runs_ahead = runner.epoch_is_one_program and not distributed.is_multiprocess()

    def compile_ahead(self) -> None:
        """Starts to compile the programs of all remaining epochs, unless several processes train."""
        if not distributed.is_multiprocess():
            remaining = range(self.runs[0].progress.epochs, self.job.epochs)
            programs = dict.fromkeys(active_objectives(self._schedule(n)) for n in remaining)
            self.runner.compile_ahead(self.state, programs, self._stack(self._indices(0)))

    def close(self) -> None:
        """Stops compiling."""
        self.runner.stop_compiling()

    def may_run_ahead(self, number: int) -> bool:
        """Returns whether an epoch may be dispatched before the previous one is finished.

        If its programs were still being compiled, the previous epoch's log would wait for them.
        """
        programs = [active_objectives(self._schedule(number)), *[STATISTICS] * self._is_saved(number)]
        compiled = all(map(self.runner.is_compiled, programs))
        return self.runs_ahead and self.last_seconds < _LONG_EPOCH and compiled

    def dispatch_epoch(self, number: int) -> PendingEpoch:
        """Dispatches an epoch, or the rest of a resumed one, to the devices."""
        self.results = {}  # frees initial states that are no longer needed
        job, schedule, progress = self.job, self._schedule(number), self.runs[0].progress
        self.progress_bar.set_description(f"epoch {number + 1}/{job.epochs} {schedule.phase.name}", False)
        steps_done = progress.step if number == progress.epochs else 0
        indices = [of_run[steps_done:] for of_run in self._indices(number)]
        initial_state = None if self._has_seeds else device_layout.copy(self.state)
        objectives = active_objectives(schedule)
        compilation = None if self.runner.has_run(objectives) else CompilationNotice(self.progress_bar)
        monitor = StepMonitor(self.progress_bar, steps_done, job.steps_per_epoch, self.stop_request, compilation)
        started = time.perf_counter()
        self.state, logs = self.runner.dispatch(self.state, objectives, self._stack(indices), monitor)
        save = self._is_saved(number) and monitor.steps_done == job.steps_per_epoch
        snapshots = self._take_snapshots(monitor.steps_done) if save and self.runs_ahead else None
        return PendingEpoch(schedule, indices, initial_state, logs, save, snapshots, monitor, started)

    def finish_epoch(self, epoch: PendingEpoch) -> None:
        """Waits for an epoch, updates each run's progress, logs it, and saves a checkpoint if due.

        A run with a loss that is not finite is recorded in `self.diverged`; its epoch is neither logged nor saved.
        Raises UserError if an earlier checkpoint, a log or an event file could not be written.
        """
        logs = self.runner.fetch_logs(epoch.logs)
        now = time.perf_counter()
        # Only the seconds that the devices had for this epoch alone.
        self.last_seconds, self.last_finished = now - max(epoch.started, self.last_finished), now
        steps_done = self.unsaved_steps = epoch.monitor.finish(logs)
        objectives = active_objectives(epoch.schedule)
        self.results = {
            run: EpochResult(run, run.progress, epoch.initial_state, objectives, indices, run_logs)
            for run, indices, run_logs in zip(self.runs, epoch.indices, self._per_run(logs), strict=True)
            if run not in self.diverged
        }
        for run, result in self.results.items():
            run.checkpoints.raise_if_failed()
            run.progress = run.progress.after(steps_done, result.logs, self.last_seconds / len(self.runs))
            if not divergence.losses_are_finite(result.logs):
                self.diverged[run] = result
            elif steps_done == self.job.steps_per_epoch:
                run.progress = self.loggers[run].log_epoch(run.progress, epoch.schedule, self.progress_bar)
        if epoch.save_checkpoint and len(self.diverged) < len(self.runs):
            self._save(epoch.snapshots or self._take_snapshots(steps_done))

    def save_unsaved(self) -> None:
        """Saves the state after the last epoch, unless its checkpoint was due."""
        if self.unsaved_steps is not None:
            self._save(self._take_snapshots(self.unsaved_steps))

    def _save(self, snapshots):
        self.unsaved_steps = None
        for run, (state, finite) in zip(self.runs, snapshots, strict=True):
            run.state = state
            if run in self.diverged:
                continue
            if all(jax.device_get(finite).values()):
                run.checkpoints.save(run.progress, state)
            else:
                self.diverged[run] = self.results[run]

    def _take_snapshots(self, steps_done):
        """Estimates BatchNorm statistics after a complete epoch, unless all runs have diverged."""
        if steps_done == self.job.steps_per_epoch and len(self.diverged) < len(self.runs):
            # Shuffled as in training. Images are sorted by condition, and a batch of one condition would lack the
            # variance between conditions.
            indices = self._stack(self._indices(0))
            self.state = self.runner.with_statistics(self.state, indices)
        states = self.runner.layout.unstack_seeds(self.state)
        return [Snapshot(state, divergence.finite_networks(state)) for state in states]

    def _is_saved(self, number):
        return number + 1 == self.job.epochs or (number + 1) % self.job.checkpointing.every == 0

    def _schedule(self, number):
        return schedule_at(self.job.built.phases, number)

    def _indices(self, number):
        shape = len(self.job.dataset.train.image), self.job.steps_per_epoch, self.job.batch_size
        return [epoch_order(run.job.seed, number, *shape) for run in self.runs]

    def _stack(self, indices):
        """[steps, *seeds, batch], as the runner expects them."""
        return np.stack(indices, 1) if self._has_seeds else indices[0]

    def _per_run(self, logs):
        seeds = range(self.runner.layout.seeds)
        return [{name: log[i] for name, log in logs.items()} for i in seeds] or [logs]
