"""A run from start to end: data, training or its resumption, evaluation, report."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bigan_jax import cluster, divergence, parallel, schedule
from bigan_jax import detector as game
from bigan_jax.audit import Audit
from bigan_jax.build import Build, build, optimizers, picture_shape
from bigan_jax.checkpoint import Checkpoints
from bigan_jax.data import Dataset
from bigan_jax.detector import State, TrainingSet
from bigan_jax.divergence import Diverged
from bigan_jax.evaluation import check_fields, evaluate_run, load_audited
from bigan_jax.interrupts import Asked, Stopped, deferred
from bigan_jax.locking import alone
from bigan_jax.parallel import Runner
from bigan_jax.progress import Progress
from bigan_jax.record import Record, Watch, progress_bar
from bigan_jax.workdir import check, claim, default_name, write_json

NOTE = "this step is finished and saved; Ctrl-C again ends at once"  # when it is asked to stop


def train(config: ConfigDict, workdir: str | Path | None = None) -> dict:
    """Trains a detector, or goes on where an earlier call stopped, then evaluates it.

    config: of a file in configs/, as `configs.cae.get_config("phantom")` gives it.
    workdir: where the run's files go; by default a folder in runs/ named after the config.
    Returns the evaluation, as in evaluation.json; of several processes, process 0 alone evaluates
    and writes, and the others return {}.
    Raises UserError for what the user can mend: names, folders, a workdir of another config, a full
    disk, a training that diverged; and Stopped, a KeyboardInterrupt, when it was asked to stop and
    has saved where it was.
    """
    with prepared({Path(workdir or default_name(config)): config}) as (task,):
        return finish(task)


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

    configs: by workdir. Raises as `train` does.
    """
    configs = {cluster.folder(workdir): config for workdir, config in configs.items()}
    with ExitStack() as held:
        for workdir in configs:
            held.enter_context(alone(workdir))
        for workdir, config in configs.items():
            check(workdir, config)
        check_fields(config)
        divergence.check_policy(config.on_nan)
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


def finish(task: Task) -> dict:
    """Trains what is still to be trained of a run, and evaluates it. Raises as `train` does."""
    state = fit(task)
    with cluster.primary_first(f"evaluation of {task.workdir.name}"):
        if not cluster.is_primary():
            return {}
        return evaluate_run(
            task.config, task.dataset, task.found, task.built.detector, state, task.workdir
        )


def fit(task: Task) -> State:
    """The trained state, with BatchNorm statistics of the training pictures.

    Goes on from the newest checkpoint that is sound; where training diverges, `on_nan` says whether
    it goes back to it and on from there more slowly. Raises as `train` does.
    """
    checkpoints = task.checkpoints()
    progress, state = task.newest(checkpoints)
    if progress.epochs or progress.step:
        print(f"{task.workdir}: going on after {progress.place()} of {task.epochs} epochs")
    for note in task.built.detector.notes:
        print(f"Note: {note}")
    with deferred(NOTE) as asked:
        while progress.epochs < task.epochs and not asked.heeded:
            try:
                progress, state = _train(task, checkpoints, progress, state, asked)
            except Diverged as diverged:
                write_json(task.workdir / "nan.json", diverged.finding.as_dict())
                before, policy = progress.rollbacks, task.config.on_nan
                progress, state = task.newest(checkpoints)
                progress = divergence.go_back(diverged.finding, before, policy, progress)
        checkpoints.close()
        asked.heeded = asked.heeded or cluster.highest(asked.signum or 0)
    if asked.heeded:
        raise Stopped(asked.heeded, f"saved after {progress.place()} of {task.epochs} epochs")
    return state


def _train(
    task: Task, checkpoints: Checkpoints, progress: Progress, state: State, asked: Asked
) -> tuple[Progress, State]:
    """Trains to the end, or until that is asked for; what it returns has been saved.

    Raises Diverged, and has saved nothing of it then.
    """
    config, pictures, phases = task.config, task.dataset.train, task.built.phases
    steps, batch_size = task.steps, task.batch_size
    make_runner = partial(task.runner, divergence.rate_scale(progress.rollbacks))
    runner = make_runner()
    in_order = np.arange(steps * batch_size).reshape(steps, batch_size)
    state = parallel.replicate(state)

    with (
        closing(Record(task.workdir, progress)) as record,
        closing(progress_bar(task.epochs, steps, progress)) as bar,
    ):
        for epoch in range(progress.epochs, task.epochs):
            moment = schedule.moment(phases, epoch)
            due = schedule.due(moment)
            bar.set_description(f"epoch {epoch + 1}/{task.epochs} {moment.phase.name}", False)
            if progress.steps != steps:  # of an epoch that was begun when there were other pictures
                progress = progress.at_step(0, steps)
            order = epoch_order(config.seed, epoch, len(pictures.image), steps, batch_size)
            order = order[progress.step :]
            diverged = partial(
                divergence.diverged, make_runner, parallel.copy(state), due, order, pictures.path,
                progress,
            )  # fmt: skip

            watch = Watch(bar, progress.step, steps, asked)
            began = time.perf_counter()
            state, logs = runner.epoch(state, due, order, watch)
            progress = progress.after(watch.done, logs, time.perf_counter() - began)
            if not divergence.finite_losses(logs):
                raise diverged(logs, parallel.first(state))
            if asked.heeded:
                checkpoints.save(progress, parallel.first(state))
                break

            progress = record.add(progress, moment, batch_size, bar)
            if epoch + 1 == task.epochs or (epoch + 1) % config.checkpoint.every == 0:
                state = runner.with_statistics(state, in_order)
                saved = parallel.first(state)
                if divergence.lost_networks(saved):
                    raise diverged(logs, saved)
                checkpoints.save(progress, saved)
    return progress, parallel.first(state)


def epoch_order(seed: int, epoch: int, pictures: int, steps: int, batch_size: int) -> np.ndarray:
    """[steps, batch_size] indices of the pictures: a function of seed and epoch alone. What does
    not fill a batch waits for another epoch's shuffle."""
    shuffled = np.random.default_rng((seed, epoch)).permutation(pictures)
    return shuffled[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)
