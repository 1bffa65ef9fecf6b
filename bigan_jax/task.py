"""What is to be trained, made ready: pictures that were looked at, a detector, the run's folder."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from bigan_jax import cluster, divergence, parallel, schedule
from bigan_jax import detector as game
from bigan_jax.audit import Audit
from bigan_jax.build import Build, build, optimizers, picture_shape
from bigan_jax.checkpoint import Checkpoints
from bigan_jax.data import Dataset
from bigan_jax.detector import State, TrainingSet
from bigan_jax.evaluation import check_fields, load_audited
from bigan_jax.locking import alone
from bigan_jax.parallel import Runner
from bigan_jax.progress import Progress
from bigan_jax.workdir import check, claim


class Task(NamedTuple):
    """What is to be trained, on what, and where the run's files are."""

    config: ConfigDict
    built: Build
    dataset: Dataset
    found: Audit
    steps: int  # in every epoch,
    batch_size: int  # of so many pictures each
    begin: Callable[[int], State]  # from a seed
    runner: Callable[..., Runner]  # from the scale of learning rates, and Runner's last arguments
    workdir: Path

    @property
    def epochs(self) -> int:
        return schedule.total_epochs(self.built.phases)

    def checkpoints(self) -> Checkpoints:
        """Those of the run; whoever asks for them closes them."""
        kept = self.config.checkpoint
        return Checkpoints(self.workdir, kept.keep, kept.keep_every)

    def newest(self, checkpoints: Checkpoints) -> tuple[Progress, State]:
        """Where the newest sound checkpoint was, or the beginning; of several processes, as process
        0 has it."""
        begin = partial(self.begin, self.config.seed)
        progress, state = checkpoints.restore(jax.eval_shape(begin)) or (Progress(0), begin())
        progress = Progress(**cluster.told_by_primary(progress._asdict()))
        return progress, cluster.from_primary(state)


@contextmanager
def prepared(configs: Mapping[Path, ConfigDict]) -> Iterator[list[Task]]:
    """Runs that are ready to be trained, and whose folders are held: one, or several that differ in
    their seed alone and share all else, compiled programs too.

    configs: by workdir. Raises as `training.train` does.
    """
    configs = {cluster.folder(workdir): config for workdir, config in configs.items()}
    for config in configs.values():
        check_fields(config)
        divergence.check_policy(config.on_nan)
    with ExitStack() as held:
        for workdir in configs:
            held.enter_context(alone(workdir))
        for workdir, config in configs.items():
            check(workdir, config)
        dataset, found = load_audited(config)
        _compare_notes(config, dataset)
        print(found.table())
        steps, batch_size = parallel.fit_batches(config.batch_size, len(dataset.train.image))
        built = build(config, len(dataset.conditions), steps)
        for workdir in configs:
            found.check(workdir)
        for workdir, config in configs.items():
            claim(workdir, config)
            found.write(workdir)

        # Compiled, so that the initial values do not depend on how operations are fused elsewhere.
        begin = jax.jit(partial(_begin, built, picture_shape(config)))
        runner = cache(partial(_runner, config, built, dataset.train, steps))
        shared = built, dataset, found, steps, batch_size, begin, runner
        yield [Task(config, *shared, workdir) for workdir, config in configs.items()]


def _compare_notes(config, dataset):
    """Of several processes, all have to train the same."""
    fields = config.to_dict()
    fields["data"] |= {"dir": "", "tfds_dir": ""}  # may lie elsewhere on another machine
    fields["vgg16"]["weights"] = ""
    cluster.check_same("config", json.dumps(fields, sort_keys=True))
    cluster.check_same("training pictures", json.dumps(dataset.train.path.tolist()))


def _begin(built, shape, seed):
    return game.init(built.detector, built.optimizers, seed, shape)


def _runner(config, built, pictures, steps, scale, scanned=None, seeds=0):
    training_set = TrainingSet(pictures.image, pictures.condition)
    return Runner(
        built.detector,
        optimizers(config, built.detector, built.phases, steps, scale),
        config.augment.to_dict(),
        parallel.replicate(dict(built.detector.frozen)),
        training_set if config.data.stream else parallel.replicate(training_set),
        scanned=scanned,
        seeds=seeds,
    )
