"""Several seeds by one command: each a run as it would be alone, in a folder of its own.

On an accelerator they train side by side, through one program. On a CPU, which one alone keeps
busy, they take turns at the same programs.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import jax
from ml_collections import ConfigDict

from bigan_jax.commands import evaluate as evaluation
from bigan_jax.commands import train as training
from bigan_jax.commands.compare import compare
from bigan_jax.commands.setup import prepare_jobs
from bigan_jax.errors import UserError
from bigan_jax.evaluation.comparison import differing_fields
from bigan_jax.reports import tables
from bigan_jax.runtime import distributed
from bigan_jax.runtime.files import write_json
from bigan_jax.runtime.preemption import Stopped, defer_signals
from bigan_jax.runtime.run_config import default_name
from bigan_jax.training import loop
from bigan_jax.training.loop import train_epochs
from bigan_jax.training.run import TrainingJob, TrainingRun

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
        side_by_side = jax.default_backend() != "cpu" and not distributed.is_multiprocess()
    failed = {}
    with prepare_jobs({workdir / f"seed{k}": config_for_seed(config, k) for k in seeds}) as jobs:
        if side_by_side:
            train_side_by_side(jobs)
        for job in jobs:
            with _noted(failed, job.workdir):
                training.train_and_evaluate(job, config_for_seed(config, job.seed))
    return _summary(workdir, [t.workdir for t in jobs], failed) if distributed.is_primary() else {}


def evaluate(workdir: str | Path, config: ConfigDict | None = None) -> dict:
    """Scores the test pictures anew from the workdir's newest checkpoint, and writes the results;
    where it holds the folders of several seeds, for each of them.

    config: that of the workdir by default; another may differ in what has no part in training
      only, such as score, threshold, and where the pictures lie.
    Returns what evaluation.json holds, or summary.json. Raises UserError where there is no run; of
    several seeds, once the others are evaluated.
    """
    workdir = Path(workdir)
    folders = sorted(p for p in workdir.glob("seed*/") if _FOLDER.fullmatch(p.name))
    if not folders or (workdir / "config.json").exists():
        return evaluation.evaluate(workdir, config)
    failed = {}
    for folder in folders:
        seed = int(folder.name.removeprefix("seed"))
        with _noted(failed, folder):
            evaluation.evaluate(folder, config and config_for_seed(config, seed))
    return _summary(workdir, folders, failed)


@contextmanager
def _noted(failed: dict[Path, UserError], folder: Path) -> Iterator[None]:
    """Keeps a seed's error for later: the other seeds are none the worse for it."""
    try:
        yield
    except UserError as error:
        if distributed.is_multiprocess():  # which cannot know what became of each other's
            raise
        print(f"Warning: {folder}: {error}")
        failed[folder] = error


def _summary(workdir, folders, failed):
    sound = [folder for folder in folders if folder not in failed]
    summary = summarize(workdir, sound) if sound else {}
    if failed:
        lines = [f"{folder}: {error}" for folder, error in failed.items()]
        raise UserError(f"{len(failed)} of {len(folders)} seeds failed\n" + "\n".join(lines))
    return summary


def config_for_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """The config of one of several seeds, as it would be alone."""
    alone = config.copy_and_resolve_references()
    with alone.unlocked():
        alone.seed, alone.seeds = seed, 1
    return alone.lock()


def summarize(workdir: Path, folders: Sequence[Path]) -> dict:
    """Mean and spread over the runs that are finished, as a comparison has them; also written to
    summary.json. Raises UserError where they differ in more than their seed."""
    standings, *elsewhere = compare(folders, workdir).standings
    if elsewhere:
        titles = "; ".join(s.title for s in (standings, *elsewhere))
        raise UserError(
            f"the seeds in {workdir} are of different pictures ({titles}): put each set's into a "
            "folder of its own"
        )
    row, *others = standings.rows
    if others:
        raise UserError(
            f"the seeds in {workdir} differ in "
            f"{', '.join(differing_fields(row, others[0]))}, so that they "
            f"have no common mean: {workdir / 'comparison.md'} has them one by one. Where a field "
            f"tells how to score, --mode=evaluate --workdir={workdir} with one value of it helps"
        )
    figures = {name: figure and figure._asdict() for name, figure in row.values.items()}
    seeds = [run.result.seed for run in row.runs]
    summary = {"model": row.label, "dataset": standings.title, "seeds": seeds, "figures": figures}
    write_json(workdir / "summary.json", summary)
    shown = {"AUROC": "auroc", "F1": "f1", "pixel AUROC": "pixel_auroc", "baseline": "baseline"}
    told = [f"{word} {tables.format_cell(row.values[name])}" for word, name in shown.items()]
    numbers = ", ".join(map(str, seeds))
    print(f"{row.label} on {standings.title}, seeds {numbers}: {'; '.join(told)}")
    return summary


# --- side by side ---------------------------------------------------------------------------------


def train_side_by_side(jobs: Sequence[TrainingJob], scanned: bool | None = None) -> None:
    """Trains runs as far as they go side by side; what is left of each, `training.finish` does.

    Those go together that have come equally far. One that diverges stays at its last checkpoint,
    where `finish` finds the step again and does as config.on_nan says; the others go on.

    scanned: as parallel.Runner takes it. Raises Stopped, when all have been saved.
    """
    left = list(jobs)
    while True:
        with ExitStack() as held:
            asked = held.enter_context(defer_signals(loop.STOP_NOTICE))
            runs = [held.enter_context(closing(TrainingRun(job))) for job in left]
            group = _largest_group(runs)
            if len(group) > 1:
                runner = group[0].job.make_runner(1.0, scanned, len(group))
                diverged = {attempt.run for attempt in train_epochs(group, runner, asked)}
                runs = [run for run in runs if run not in diverged]
                left = [run.job for run in runs]
        if signum := asked.acted_on or asked.received:
            places = ", ".join(sorted({run.progress.describe() for run in runs}))
            raise Stopped(signum, f"saved after {places or 'none'} of {jobs[0].epochs} epochs")
        if len(group) < 2:
            return


def _largest_group(runs):
    groups = defaultdict(list)
    for run in runs:
        done = run.progress
        if done.epochs < run.job.epochs and not done.rollbacks:
            groups[done.epochs, done.step, done.steps].append(run)
    return max(groups.values(), key=len, default=[])
