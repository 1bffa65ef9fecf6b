"""Several seeds by one command: each a run as it would be alone, in a folder of its own.

On an accelerator they train side by side, through one program. On a CPU they take turns at the
same programs: side by side their convolutions are grouped ones, which XLA:CPU runs far slower.
"""

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bigan_jax import cluster, divergence, evaluation, schedule, tables, training
from bigan_jax.comparison import compare
from bigan_jax.errors import UserError
from bigan_jax.interrupts import Stopped, deferred
from bigan_jax.record import Record, Watch, progress_bar
from bigan_jax.training import Task, epoch_order
from bigan_jax.workdir import default_name, write_json

_FOLDER = re.compile(r"seed-?\d+")


def train(
    config: ConfigDict, workdir: str | Path | None = None, side_by_side: bool | None = None
) -> dict:
    """Trains a detector, or goes on where an earlier call stopped, then evaluates it.

    config: of a file in configs/, as `configs.cae.get_config("phantom")` gives it. Its seeds, where
      they are more than one, count from config.seed: each is a run in a folder seed<k>.
    workdir: where the run's files go, or those folders; by default one in runs/ named after the
      config.
    side_by_side: several seeds as one program, in one process; by default wherever that is quicker.
    Returns the evaluation, as in evaluation.json; of several seeds the summary, as in summary.json;
      in another process than process 0, {}.
    Raises UserError for what the user can mend: names, folders, a workdir of another config, a full
    disk, a training that diverged, once the other seeds are done; and Stopped, a KeyboardInterrupt,
    when it was asked to stop and has saved where it was.
    """
    if config.seeds == 1:
        return training.train(config, workdir)
    if config.seeds < 1:
        raise UserError(f"config.seeds={config.seeds}: there must be at least 1")
    workdir = Path(workdir or default_name(config))
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds a run of one seed: give another --workdir")
    seeds = range(config.seed, config.seed + config.seeds)
    if side_by_side is None:
        side_by_side = jax.default_backend() != "cpu" and not cluster.several()
    failed = []
    with training.prepared({workdir / f"seed{k}": of_seed(config, k) for k in seeds}) as tasks:
        if side_by_side:
            train_abreast(tasks)
        for task in tasks:
            try:
                training.finish(task)
            except UserError as error:  # the other seeds are none the worse for it
                if cluster.several():  # which cannot know what became of each other's
                    raise
                print(f"Warning: {task.workdir}: {error}")
                failed.append(f"{task.workdir}: {error}")
    if not cluster.is_primary():
        return {}
    summary = summarise(workdir, [t.workdir for t in tasks]) if len(failed) < len(tasks) else {}
    if failed:
        raise UserError(f"{len(failed)} of {len(tasks)} seeds failed\n" + "\n".join(failed))
    return summary


def evaluate(workdir: str | Path, config: ConfigDict | None = None) -> dict:
    """Scores the test pictures anew from the workdir's newest checkpoint, and writes the results;
    where it holds the folders of several seeds, for each of them.

    config: that of the workdir by default; another may differ in score and threshold only.
    Returns what evaluation.json holds, or summary.json. Raises UserError where there is no run.
    """
    workdir = Path(workdir)
    folders = sorted(p for p in workdir.glob("seed*/") if _FOLDER.fullmatch(p.name))
    if not folders or (workdir / "config.json").exists():
        return evaluation.evaluate(workdir, config)
    for folder in folders:
        seed = int(folder.name.removeprefix("seed"))
        evaluation.evaluate(folder, config and of_seed(config, seed))
    return summarise(workdir, folders)


def of_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """The config of one of several seeds, as it would be alone."""
    alone = config.copy_and_resolve_references()
    with alone.unlocked():
        alone.seed, alone.seeds = seed, 1
    return alone.lock()


def summarise(workdir: Path, folders: Sequence[Path]) -> dict:
    """Mean and spread over the runs that are finished, as a comparison has them; also written to
    summary.json."""
    ((standings,), *_) = compare(folders, workdir)
    (row,) = standings.rows
    figures = {name: figure and figure._asdict() for name, figure in row.figures.items()}
    seeds = [run.evaluation["seed"] for run in row.runs]
    summary = {"model": row.label, "dataset": standings.title, "seeds": seeds, "figures": figures}
    write_json(workdir / "summary.json", summary)
    shown = {"AUROC": "auroc", "F1": "f1", "pixel AUROC": "pixel_auroc", "control": "control"}
    told = [f"{word} {tables.text(row.figures[name])}" for word, name in shown.items()]
    numbers = ", ".join(map(str, seeds))
    print(f"{row.label} on {standings.title}, seeds {numbers}: {'; '.join(told)}")
    return summary


# --- side by side ---------------------------------------------------------------------------------


class _Run:
    """One of several: how far it has come, and its checkpoints."""

    def __init__(self, task: Task):
        self.task, self.checkpoints = task, task.checkpoints()
        self.progress, self.state = task.newest(self.checkpoints)

    def close(self) -> None:
        self.checkpoints.close()


def train_abreast(tasks: Sequence[Task], scanned: bool | None = None) -> None:
    """Trains runs as far as they go side by side; what is left of each, `training.finish` does.

    Those go together that have come equally far. One that diverges stays at its last checkpoint,
    where `finish` finds the step again and does as config.on_nan says; the others go on.

    scanned: as parallel.Runner takes it. Raises Stopped, when all have been saved.
    """
    left = {task.workdir: task for task in tasks}
    while True:
        with ExitStack() as held:
            runs = [held.enter_context(closing(_Run(task))) for task in left.values()]
            group = _largest_group(runs)
            if len(group) < 2:
                return
            for workdir in _advance(group, scanned):
                del left[workdir]


def _largest_group(runs):
    groups = defaultdict(list)
    for run in runs:
        done = run.progress
        if done.epochs < run.task.epochs and not done.rollbacks:
            groups[done.epochs, done.step, done.steps].append(run)
    return max(groups.values(), key=len, default=[])


def _advance(runs: Sequence[_Run], scanned: bool | None) -> list[Path]:
    """Trains to the end, or until that is asked for or a run diverges: returns whose."""
    task, start = runs[0].task, runs[0].progress
    steps, batch_size, pictures = task.steps, task.batch_size, len(task.dataset.train.image)
    runner = task.runner(1.0, scanned, len(runs))
    state = runner.layout.place(jax.tree.map(lambda *x: jnp.stack(x), *(r.state for r in runs)))
    in_order = np.arange(steps * batch_size).reshape(steps, 1, batch_size).repeat(len(runs), 1)
    diverged = []
    with ExitStack() as held:
        asked = held.enter_context(deferred(training.NOTE))
        bar = held.enter_context(closing(progress_bar(task.epochs, steps, start)))
        records = [held.enter_context(closing(Record(r.task.workdir, r.progress))) for r in runs]
        for epoch in range(start.epochs, task.epochs):
            moment = schedule.moment(task.built.phases, epoch)
            bar.set_description(f"epoch {epoch + 1}/{task.epochs} {moment.phase.name}", False)
            for run in runs:
                if run.progress.steps != steps:
                    run.progress = run.progress.at_step(0, steps)
            begun = runs[0].progress.step
            seeds = [run.task.config.seed for run in runs]
            orders = [epoch_order(seed, epoch, pictures, steps, batch_size) for seed in seeds]

            watch = Watch(bar, begun, steps, asked)
            began = time.perf_counter()
            order = np.stack(orders, 1)[begun:]
            state, logs = runner.epoch(state, schedule.due(moment), order, watch)
            seconds = (time.perf_counter() - began) / len(runs)  # each one's share
            for i, run in enumerate(runs):
                its = {name: values[i] for name, values in logs.items()}
                run.progress = run.progress.after(watch.done, its, seconds)
                if not divergence.finite_losses(its):
                    diverged.append(run.task.workdir)

            if not diverged and not asked.signum:
                for run, record in zip(runs, records, strict=True):
                    run.progress = record.add(run.progress, moment, batch_size, bar)
                if epoch + 1 < task.epochs and (epoch + 1) % task.config.checkpoint.every:
                    continue
                state = runner.with_statistics(state, in_order)
            diverged += _save(runs, runner.layout.take(state), diverged)
            if diverged or asked.signum:
                break
    if asked.signum:
        place = runs[0].progress.place()
        raise Stopped(asked.signum, f"saved after {place} of {task.epochs} epochs")
    return diverged


def _save(runs, states, diverged):
    """Saves the runs that are sound, and returns whose are not, beside those known to be."""
    found = []
    for i, run in enumerate(runs):
        state = jax.tree.map(lambda x, i=i: x[i], states)
        if run.task.workdir in diverged:
            continue
        if divergence.lost_networks(state):
            found.append(run.task.workdir)
        else:
            run.checkpoints.save(run.progress, state)
    return found
