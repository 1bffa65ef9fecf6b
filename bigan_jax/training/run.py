"""A training job (its detector, data, settings and folder) and a run's current state."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import optax

from bigan_jax.data.audit import Audit
from bigan_jax.data.dataset import Dataset
from bigan_jax.detector import Detector, TrainState
from bigan_jax.runtime import distributed
from bigan_jax.runtime.files import write_atomic
from bigan_jax.training import schedules
from bigan_jax.training.epoch_runner import EpochRunner
from bigan_jax.training.saving.checkpoints import CheckpointManager, CheckpointSettings
from bigan_jax.training.saving.progress import Progress

FROZEN_DIGEST_FILE = "vgg16.sha256"  # digest of the frozen weights that a loss uses


class DetectorBuild(NamedTuple):
    """A detector with its optimizers, by objective, and its schedule."""

    detector: Detector
    optimizers: dict[str, optax.GradientTransformation]
    phases: tuple[schedules.Phase, ...]


class TrainingJob(NamedTuple):
    """Everything that one run needs for training: detector, data set, settings and folder.

    Attributes:
      seed: seed of initial values, shuffling, augmentation and noise.
      on_nan: one of `divergence.POLICIES`.
      checkpointing: when to save, and how many checkpoints to keep.
      built: detector, optimizers and phases.
      dataset: training, calibration and test images.
      audit: leak audit of the data set.
      weights: digest of the frozen weights that a loss uses; "" if there are none.
      steps_per_epoch: number of steps of each epoch.
      batch_size: images of a step, over all devices.
      init_state: from a seed to the initial state.
      make_runner: from the scale of learning rates, and optionally `scanned` and `seeds` of `EpochRunner`, to a
        runner.
      workdir: the run's folder.
    """

    seed: int
    on_nan: str
    checkpointing: CheckpointSettings
    built: DetectorBuild
    dataset: Dataset
    audit: Audit
    weights: str
    steps_per_epoch: int
    batch_size: int
    init_state: Callable[[int], TrainState]
    make_runner: Callable[..., EpochRunner]
    workdir: Path

    @property
    def epochs(self) -> int:
        """The number of epochs of the schedule."""
        return schedules.total_epochs(self.built.phases)

    def checkpoints(self) -> CheckpointManager:
        """Returns a manager of the run's checkpoints; the caller closes it."""
        settings = self.checkpointing
        return CheckpointManager(self.workdir, settings.keep, settings.keep_every)

    def mark_started(self) -> None:
        """Records the training images and the frozen weights, and deletes an earlier evaluation."""
        self.audit.write_split(self.workdir)
        if self.weights:
            write_atomic(self.workdir / FROZEN_DIGEST_FILE, self.weights)
        (self.workdir / "evaluation.json").unlink(missing_ok=True)

    def restore_latest(self, checkpoints: CheckpointManager) -> tuple[Progress, TrainState]:
        """Returns the latest valid checkpoint, or the initial state if there is none.

        With several processes, process 0 restores and broadcasts.
        """
        begin = partial(self.init_state, self.seed)
        progress, state = checkpoints.restore(jax.eval_shape(begin)) or (Progress(0), begin())
        progress = Progress(**distributed.broadcast_json(progress._asdict()))
        return progress, distributed.broadcast(state)


class TrainingRun:
    """The current state and progress of a job, and its checkpoints.

    Attributes:
      job: the job.
      checkpoints: the manager of the run's checkpoints.
      progress: how far the run has been trained.
      state: the state when it was last restored or saved, on one device.
    """

    def __init__(self, job: TrainingJob):
        self.job = job
        with ExitStack() as stack:
            self.checkpoints = stack.enter_context(closing(job.checkpoints()))
            self.restore()
            stack.pop_all()

    def restore(self) -> None:
        """Returns to the latest valid checkpoint, or to the initial state."""
        self.progress, self.state = self.job.restore_latest(self.checkpoints)

    def close(self) -> None:
        """Waits for pending writes. Raises UserError if a checkpoint could not be written."""
        self.checkpoints.close()
