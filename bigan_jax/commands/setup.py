"""What is to be trained, made ready: pictures that were looked at, a detector, the run's folder."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from bigan_jax.commands.build import Build, build, optimizers, picture_shape
from bigan_jax.commands.evaluate import check_fields, load_audited
from bigan_jax.data.audit import Audit
from bigan_jax.data.dataset import Dataset
from bigan_jax.data.files.unreadable import is_inside
from bigan_jax.detector import State, TrainingSet, init
from bigan_jax.errors import UserError
from bigan_jax.runtime import distributed
from bigan_jax.runtime.lock import alone
from bigan_jax.runtime.run_config import check, claim, write_whole
from bigan_jax.training import divergence, epoch_runner, schedules
from bigan_jax.training.epoch_runner import Runner
from bigan_jax.training.saving.checkpoints import Checkpoints, digest
from bigan_jax.training.saving.progress import Progress

FROZEN = "vgg16.sha256"  # the digest of weights that a loss looks through, and nothing trains


class Task(NamedTuple):
    """What is to be trained, on what, and where the run's files are."""

    config: ConfigDict
    built: Build
    dataset: Dataset
    found: Audit
    weights: str  # the digest of those that a loss looks through; "" where there are none
    steps: int  # in every epoch,
    batch_size: int  # of so many pictures each
    begin: Callable[[int], State]  # from a seed
    runner: Callable[..., Runner]  # from the scale of learning rates, and Runner's last arguments
    workdir: Path

    @property
    def epochs(self) -> int:
        return schedules.total_epochs(self.built.phases)

    def checkpoints(self) -> Checkpoints:
        """Those of the run; whoever asks for them closes them."""
        kept = self.config.checkpoint
        return Checkpoints(self.workdir, kept.keep, kept.keep_every)

    def begin_to_train(self) -> None:
        """Keeps what trains from here on, and by which frozen weights; an evaluation of what was
        trained before goes."""
        self.found.write_split(self.workdir)
        if self.weights:
            write_whole(self.workdir / FROZEN, self.weights)
        (self.workdir / "evaluation.json").unlink(missing_ok=True)

    def newest(self, checkpoints: Checkpoints) -> tuple[Progress, State]:
        """Where the newest sound checkpoint was, or the beginning; of several processes, as process
        0 has it."""
        begin = partial(self.begin, self.config.seed)
        progress, state = checkpoints.restore(jax.eval_shape(begin)) or (Progress(0), begin())
        progress = Progress(**distributed.told_by_primary(progress._asdict()))
        return progress, distributed.from_primary(state)


@contextmanager
def prepared(configs: Mapping[Path, ConfigDict]) -> Iterator[list[Task]]:
    """Runs that are ready to be trained, and whose folders are held: one, or several that differ in
    their seed alone and share all else, compiled programs too.

    configs: by workdir. Raises as `training.train` does.
    """
    configs = {distributed.folder(workdir): config for workdir, config in configs.items()}
    for workdir, each in configs.items():
        check_fields(each)
        divergence.check_policy(each.on_nan)
        _check_place(workdir, each.data.dir)
    config = next(iter(configs.values()))  # in all that is shared as good as any
    build(config, conditions=1, steps_per_epoch=1, frozen=False)  # raises before pictures are read
    with ExitStack() as held:
        for workdir in configs:
            held.enter_context(alone(workdir))
        for workdir, own in configs.items():
            check(workdir, own)
        dataset, found = load_audited(config)
        _compare_notes(config, dataset)
        print(found.table())
        steps, batch_size = epoch_runner.fit_batches(config.batch_size, len(dataset.train.image))
        built = build(config, len(dataset.conditions), steps)
        weights = digest(built.detector.frozen) if built.detector.frozen else ""
        distributed.check_same("VGG16 weights", weights)
        for workdir in configs:
            found.check(workdir)
            _check_frozen(workdir, weights)
        for workdir, own in configs.items():
            claim(workdir, own)
            found.write(workdir)

        # Compiled, so that the initial values do not depend on how operations are fused elsewhere.
        begin = jax.jit(partial(_begin, built, picture_shape(config)))
        runner = cache(partial(_runner, config, built, dataset.train, steps))
        shared = built, dataset, found, weights, steps, batch_size, begin, runner
        yield [Task(own, *shared, workdir) for workdir, own in configs.items()]


def _check_place(workdir, data):
    if data and is_inside(workdir, os.path.expanduser(data)):
        raise UserError(
            f"the run's folder {workdir} lies in config.data.dir={data}, whose pictures its "
            "figures would join: give a --workdir elsewhere"
        )


def _check_frozen(workdir, weights):
    """No field tells which weights a file holds, or another version of a package."""
    if not weights or not (workdir / FROZEN).is_file():
        return
    with (workdir / FROZEN).open("rb") as file:
        theirs = file.read(1000)
    if theirs != weights.encode():
        raise UserError(
            f"{workdir} holds a run that trained by other VGG16 weights: give those again by "
            "--config.vgg16.weights=FILE, or another --workdir"
        )


def _compare_notes(config, dataset):
    """Of several processes, all have to train the same."""
    fields = config.to_dict()
    fields["data"] |= {"dir": "", "tfds_dir": ""}  # may lie elsewhere on another machine
    fields["vgg16"]["weights"] = ""
    distributed.check_same("config", json.dumps(fields, sort_keys=True))
    distributed.check_same("training pictures", json.dumps(dataset.train.path.tolist()))


def _begin(built, shape, seed):
    return init(built.detector, built.optimizers, seed, shape)


def _runner(config, built, pictures, steps, scale, scanned=None, seeds=0):
    training_set = TrainingSet(pictures.image, pictures.condition)
    return Runner(
        built.detector,
        optimizers(config, built.detector, built.phases, steps, scale),
        config.augment.to_dict(),
        epoch_runner.replicate(dict(built.detector.frozen)),
        training_set if config.data.stream else epoch_runner.replicate(training_set),
        scanned=scanned,
        seeds=seeds,
    )
