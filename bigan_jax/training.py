"""A run from start to end: data, training or its resumption, evaluation, report."""

import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter
from tqdm import tqdm

from bigan_jax import detector as game
from bigan_jax import divergence, health, parallel, schedule
from bigan_jax.build import Build, build, optimizers, picture_shape
from bigan_jax.checkpoint import Checkpoints, Progress
from bigan_jax.data import Pictures
from bigan_jax.detector import State, TrainingSet
from bigan_jax.divergence import Diverged
from bigan_jax.evaluation import check_fields, evaluate_run, load_audited
from bigan_jax.interrupts import Asked, Stopped, deferred
from bigan_jax.locking import alone
from bigan_jax.workdir import History, check, claim, default_name, write_json

_LOOK = 10  # steps between two looks at the losses: a look waits for the device


def train(config: ConfigDict, workdir: str | Path | None = None) -> dict:
    """Trains a detector, or goes on where an earlier call stopped, then evaluates it.

    config: of a file in configs/, as `configs.cae.get_config("phantom")` gives it.
    workdir: where the run's files go; by default a folder in runs/ named after the config.
    Returns the evaluation, as in evaluation.json.
    Raises UserError for what the user can mend: names, folders, a workdir of another config, a full
    disk, a training that diverged; and Stopped, a KeyboardInterrupt, when it was asked to stop and
    has saved where it was.
    """
    workdir = Path(workdir or default_name(config))
    with alone(workdir):
        check(workdir, config)
        check_fields(config)
        divergence.check_policy(config.on_nan)
        dataset, found = load_audited(config)
        print(found.table())
        steps, batch_size = parallel.fit_batches(config.batch_size, len(dataset.train.image))
        built = build(config, len(dataset.conditions), steps)
        claim(workdir, config)
        found.write(workdir)
        state = fit(Task(config, built, dataset.train, steps, batch_size, workdir))
        return evaluate_run(config, dataset, found, built.detector, state, workdir)


class Task(NamedTuple):
    """What is to be trained, on what, and where the run's files are."""

    config: ConfigDict
    built: Build
    pictures: Pictures
    steps: int  # in every epoch,
    batch_size: int  # of so many pictures each
    workdir: Path

    @property
    def epochs(self) -> int:
        return schedule.total_epochs(self.built.phases)


def fit(task: Task) -> State:
    """The trained state, with BatchNorm statistics of the training pictures.

    Goes on from the newest checkpoint that is sound; where training diverges, `on_nan` says whether
    it goes back to it and on from there more slowly. Raises as `train` does.
    """
    config, detector = task.config, task.built.detector

    # Compiled, so that the initial values do not depend on how operations are fused elsewhere.
    @jax.jit
    def begin():
        return game.init(detector, task.built.optimizers, config.seed, picture_shape(config))

    like = jax.eval_shape(begin)
    checkpoints = Checkpoints(task.workdir, config.checkpoint.keep, config.checkpoint.keep_every)
    progress, state = checkpoints.restore(like) or (Progress(0), begin())
    if progress.epochs or progress.step:
        print(f"{task.workdir}: going on after {progress.place()} of {task.epochs} epochs")
    for note in detector.notes:
        print(f"Note: {note}")
    with deferred("this step is finished and saved; Ctrl-C again ends at once") as asked:
        while progress.epochs < task.epochs and not asked.signum:
            try:
                progress, state = _train(task, checkpoints, progress, state, asked)
            except Diverged as diverged:
                write_json(task.workdir / "nan.json", diverged.finding.as_dict())
                before = progress.rollbacks
                progress, state = checkpoints.restore(like) or (Progress(0), begin())
                progress = divergence.go_back(diverged.finding, before, config.on_nan, progress)
        checkpoints.close()
    if asked.signum:
        raise Stopped(asked.signum, f"saved after {progress.place()} of {task.epochs} epochs")
    return state


def _train(
    task: Task, checkpoints: Checkpoints, progress: Progress, state: State, asked: Asked
) -> tuple[Progress, State]:
    """Trains to the end, or until that is asked for; what it returns has been saved.

    Raises Diverged, and has saved nothing of it then.
    """
    config, (detector, _, phases), pictures, steps, batch_size, workdir = task
    scale = divergence.rate_scale(progress.rollbacks)

    # --- onto the devices ---
    training_set = TrainingSet(pictures.image, pictures.condition)
    make_runner = partial(
        parallel.Runner,
        detector,
        optimizers(config, detector, phases, steps, scale),
        config.augment.to_dict(),
        parallel.replicate(dict(detector.frozen)),
        training_set if config.data.stream else parallel.replicate(training_set),
    )
    runner = make_runner()
    in_order = np.arange(steps * batch_size).reshape(steps, batch_size)
    state = parallel.replicate(state)

    # --- epochs ---
    history = History(workdir, progress.history)
    events = SummaryWriter(str(workdir / "events"), purge_step=progress.epochs + 1)
    bar = tqdm(
        total=task.epochs * steps,
        initial=progress.epochs * steps + progress.step,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 30,  # a log file wants few lines
    )
    with closing(bar), closing(events):
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

            watch = _Watch(bar, progress.step, steps, asked)
            began = time.perf_counter()
            state, logs = runner.epoch(state, due, order, watch)
            progress = progress.after(watch.done, logs, time.perf_counter() - began)
            if not divergence.finite_losses(logs):
                raise diverged(logs, parallel.first(state))
            if asked.signum:
                checkpoints.save(progress, parallel.first(state))
                break

            row = _row(progress, moment, batch_size)
            for warning in row["health"]:
                bar.write(f"epoch {epoch + 1}: {warning}")
            history.append(row)
            for name in row.keys() - {"epoch", "phase", "step", "health", "rollbacks"}:
                events.add_scalar(name, row[name], epoch + 1)
            progress = Progress(epoch + 1, history=history.text, rollbacks=progress.rollbacks)
            if epoch + 1 == task.epochs or (epoch + 1) % config.checkpoint.every == 0:
                state = runner.with_statistics(state, in_order)
                saved = parallel.first(state)
                if divergence.lost_networks(saved):
                    raise diverged(logs, saved)
                checkpoints.save(progress, saved)
    return progress, parallel.first(state)


class _Watch:
    """Shows each step of an epoch, and ends it where that was asked for or a loss is not finite."""

    def __init__(self, bar: tqdm, done: int, steps: int, asked: Asked):
        self.done, self._bar, self._steps, self._asked = done, bar, steps, asked
        self._before = done

    def __call__(self, fresh: int, logs: dict) -> bool:
        diverged, done = False, self._before + fresh
        if done == self._steps or done % _LOOK == 0:  # reading a loss waits for the device
            # Each objective's own loss; the terms it is made of stay in train.jsonl.
            losses = {n: np.ravel(v)[0] for n, v in logs.items() if n.endswith("/loss")}
            shown = {name.removesuffix("/loss"): f"{v:.3g}" for name, v in losses.items()}
            self._bar.set_postfix(shown, refresh=False)
            diverged = not divergence.finite_losses(losses)
        self._bar.update(done - self.done)
        self.done = done
        return diverged or self._asked.signum is not None


def _row(progress: Progress, moment: schedule.Moment, batch_size: int) -> dict:
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
    row["health"] = health.warnings(row)
    return row


def epoch_order(seed: int, epoch: int, pictures: int, steps: int, batch_size: int) -> np.ndarray:
    """[steps, batch_size] indices of the pictures: a function of seed and epoch alone. What does
    not fill a batch waits for another epoch's shuffle."""
    shuffled = np.random.default_rng((seed, epoch)).permutation(pictures)
    return shuffled[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)
