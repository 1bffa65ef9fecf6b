"""TODO docstring."""

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


class DetectorBuild(NamedTuple):
    """What a config describes."""

    detector: Detector
    optimizers: dict[str, optax.GradientTransformation]
    phases: tuple[schedules.Phase, ...]


class TrainingJob(NamedTuple):
    """What is to be trained, on what, and where the run's files are."""

    seed: int
    on_nan: str  # one of divergence.POLICIES
    checkpointing: CheckpointSettings
    built: DetectorBuild
    dataset: Dataset
    audit: Audit
    weights: str  # the digest of those that a loss looks through; "" where there are none
    steps_per_epoch: int
    batch_size: int  # of so many pictures each
    init_state: Callable[[int], TrainState]  # from a seed
    make_runner: Callable[
        ..., EpochRunner
    ]  # from the scale of learning rates, and Runner's last arguments
    workdir: Path

    @property
    def epochs(self) -> int:
        return schedules.total_epochs(self.built.phases)

    def checkpoints(self) -> CheckpointManager:
        """Those of the run; whoever asks for them closes them."""
        settings = self.checkpointing
        return CheckpointManager(self.workdir, settings.keep, settings.keep_every)

    def mark_started(self) -> None:
        """Keeps what trains from here on, and by which frozen weights; an evaluation of what was
        trained before goes."""
        self.audit.write_split(self.workdir)
        if self.weights:
            write_atomic(self.workdir / FROZEN_DIGEST_FILE, self.weights)
        (self.workdir / "evaluation.json").unlink(missing_ok=True)

    def restore_latest(self, checkpoints: CheckpointManager) -> tuple[Progress, TrainState]:
        """Where the newest sound checkpoint was, or the beginning; of several processes, as process
        0 has it."""
        begin = partial(self.init_state, self.seed)
        progress, state = checkpoints.restore(jax.eval_shape(begin)) or (Progress(0), begin())
        progress = Progress(**distributed.broadcast_json(progress._asdict()))
        return progress, distributed.broadcast(state)


class TrainingRun:
    """How far a run has come, and its checkpoints."""

    def __init__(self, job: TrainingJob):
        self.job = job
        with ExitStack() as held:
            self.checkpoints = held.enter_context(closing(job.checkpoints()))
            self.restore()
            held.pop_all()

    def restore(self) -> None:
        """Goes to the newest sound checkpoint, or to the beginning."""
        self.progress, self.state = self.job.restore_latest(self.checkpoints)

    def close(self) -> None:
        """Waits for what is still being written. Raises UserError where it cannot be."""
        self.checkpoints.close()


FROZEN_DIGEST_FILE = (
    "vgg16.sha256"  # the digest of weights that a loss looks through, and nothing trains
)
