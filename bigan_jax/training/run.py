"""A training job (its detector, data, settings and folder) and a run's current state."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import optax

from bigan_jax.data.audit import Audit
from bigan_jax.data.dataset import Dataset
from bigan_jax.detector import Detector, TrainState
from bigan_jax.errors import UserError
from bigan_jax.runtime import distributed
from bigan_jax.runtime.files import write_atomic
from bigan_jax.training import schedules
from bigan_jax.training.epoch_runner import EpochRunner
from bigan_jax.training.fitting import Fitter
from bigan_jax.training.saving.checkpoints import CheckpointManager, CheckpointSettings
from bigan_jax.training.saving.loggers import DEFAULT_LOGGERS
from bigan_jax.training.saving.progress import Progress

_FROZEN_DIGEST_FILE = "vgg16.sha256"  # digest of the frozen weights that a loss or a fitted detector uses


def require_same_frozen(workdir: Path, digest: str) -> None:
    """Raises UserError if the run in a folder had frozen networks of another digest, that of `tree_digest`.

    The config does not show that a file or a package has other weights.
    """
    if not digest or not (workdir / _FROZEN_DIGEST_FILE).is_file():
        return
    with (workdir / _FROZEN_DIGEST_FILE).open("rb") as file:
        saved = file.read(1000)
    if saved != digest.encode():
        raise UserError(
            f"{workdir} was trained with another frozen network. Set its file by --config.vgg16.weights=FILE or "
            "--config.model.network=FILE, or use another --workdir."
        )


class DetectorBuild(NamedTuple):
    """A detector with its optimizers, by objective, and its schedule."""

    detector: Detector
    optimizers: dict[str, optax.GradientTransformation]
    phases: tuple[schedules.Phase, ...]

    @property
    def epochs(self) -> int:
        """The number of epochs of the schedule, or of passes of a fit."""
        return len(self.detector.fit.passes) if self.detector.fit else schedules.total_epochs(self.phases)


class TrainingJob(NamedTuple):
    """Everything that one run needs for training: detector, data set, settings and folder."""

    seed: int  # of initial values, shuffling, augmentation and noise
    on_nan: str  # one of `divergence.POLICIES`
    checkpointing: CheckpointSettings
    built: DetectorBuild
    dataset: Dataset
    audit: Audit
    weights: str  # digest of the frozen networks' weights; "" if there are none
    steps_per_epoch: int
    batch_size: int  # over all devices
    init_state: Any  # a function of jax.jit from a seed to the TrainState before the first step
    make_runner: Callable[..., EpochRunner]  # from the scale of learning rates, and optionally `scanned` and `seeds`
    fitter: Fitter | None  # of a detector that is fitted
    workdir: Path
    loggers: tuple[str, ...] = DEFAULT_LOGGERS

    @property
    def epochs(self) -> int:
        """The number of epochs of the schedule, or of passes of a fit."""
        return self.built.epochs

    def mark_started(self) -> None:
        """Records the training images and the frozen weights, and deletes an earlier evaluation."""
        self.audit.write_split(self.workdir)
        if self.weights:
            write_atomic(self.workdir / _FROZEN_DIGEST_FILE, self.weights)
        (self.workdir / "evaluation.json").unlink(missing_ok=True)


class TrainingRun:
    """The current state and progress of a job, and its checkpoints."""

    progress: Progress
    state: TrainState  # when it was last restored or saved, on one device

    def __init__(self, job: TrainingJob):
        self.job = job
        settings = job.checkpointing
        with ExitStack() as stack:
            self.checkpoints = CheckpointManager(job.workdir, settings.keep, settings.keep_every)
            stack.enter_context(closing(self.checkpoints))
            self.restore()
            stack.pop_all()

    def restore(self) -> None:
        """Returns to the latest valid checkpoint, or to the initial state if there is none.

        With several processes, process 0 restores and broadcasts.
        """
        init, seed, fitter = self.job.init_state, self.job.seed, self.job.fitter
        like = partial(fitter.abstract_state, seed) if fitter else init.eval_shape(seed)
        progress, state = self.checkpoints.restore(like) or (Progress(0), init(seed))
        self.progress = Progress(**distributed.broadcast_json(progress._asdict()))
        self.state = distributed.broadcast(state)

    def close(self) -> None:
        """Waits for pending writes. Raises UserError if a checkpoint could not be written."""
        self.checkpoints.close()
