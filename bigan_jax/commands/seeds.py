"""Several seeds in one command: each is a run of its own in a folder seed<k>.

On an accelerator they train side by side, as one program. On a CPU, which a single seed keeps busy, they train one
after another and share the compiled programs.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from ml_collections import ConfigDict

from bigan_jax.commands.compare import compare
from bigan_jax.errors import UserError
from bigan_jax.evaluation.comparison import differing_fields
from bigan_jax.reports import table_formats
from bigan_jax.runtime import distributed
from bigan_jax.runtime.files import write_json
from bigan_jax.runtime.stop_signals import Stopped, defer_signals
from bigan_jax.training.loop import STOP_NOTICE, train_epochs
from bigan_jax.training.run import TrainingJob, TrainingRun

_FOLDER = re.compile(r"seed(\d+)")


def seed_folders(workdir: Path) -> dict[int, Path]:
    """Returns the folders of the seeds in a folder, in the order of their names."""
    matches = {path: _FOLDER.fullmatch(path.name) for path in sorted(workdir.glob("seed*/"))}
    return {int(match[1]): path for path, match in matches.items() if match}


def config_for_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """Returns the config that trains one of several seeds alone."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.seed, config.seeds = seed, 1
    return config.lock()


def finish_each_seed(workdir: Path, calls: Mapping[Path, Callable[[], object]]) -> dict:
    """Calls a function for each seed, then summarizes the seeds that finished.

    An error of one seed is printed, and raised again after the others are finished. Several processes raise it at
    once, as they do not know each other's errors.

    Args:
      workdir: folder of the seeds' folders.
      calls: the function of each seed, by its folder.

    Returns:
      The summary (`summarize`); {} in another process than process 0.

    Raises:
      UserError: a seed failed, or the finished seeds cannot be summarized.
    """
    errors = {}
    for folder, call in calls.items():
        try:
            call()
        except UserError as error:
            if distributed.is_multiprocess():
                raise
            print(f"Warning: {folder}: {error}")
            errors[folder] = error
    if not distributed.is_primary():
        return {}
    finished = [folder for folder in calls if folder not in errors]
    summary = summarize(workdir, finished) if finished else {}
    if errors:
        lines = [f"{folder}: {error}" for folder, error in errors.items()]
        raise UserError("\n".join([f"{len(errors)} of {len(calls)} seeds failed", *lines]))
    return summary


def summarize(workdir: Path, folders: Sequence[Path]) -> dict:
    """Compares the runs in `folders`, and writes and returns their mean and standard deviation, as summary.json.

    Raises:
      UserError: the runs differ in more than their seed.
    """
    dataset, *other_datasets = compare(folders, workdir).datasets
    if other_datasets:
        titles = "; ".join(s.title for s in (dataset, *other_datasets))
        raise UserError(
            f"The seeds in {workdir} are of different images ({titles}). Move each dataset's runs to their own folder."
        )
    row, *other_rows = dataset.rows
    if other_rows:
        fields = ", ".join(differing_fields(row, other_rows[0]))
        raise UserError(
            f"The seeds in {workdir} differ in {fields} and have no common mean. If the field is of the score or the "
            f"threshold, evaluate all with one value: --mode=evaluate --workdir={workdir}."
        )
    seeds = [run.result.seed for run in row.runs]
    figures = {name: figure and figure._asdict() for name, figure in row.values.items()}
    summary = {"model": row.label, "dataset": dataset.title, "seeds": seeds, "figures": figures}
    write_json(workdir / "summary.json", summary)
    labels = {"AUROC": "auroc", "F1": "f1", "pixel AUROC": "pixel_auroc", "baseline": "baseline"}
    cells = [f"{label} {table_formats.format_cell(row.values[name])}" for label, name in labels.items()]
    print(f"{row.label} on {dataset.title}, seeds {', '.join(map(str, seeds))}: {'; '.join(cells)}")
    return summary


def train_side_by_side(jobs: Sequence[TrainingJob], scanned: bool | None = None) -> None:
    """Trains the runs, which differ in their seed alone, that have done equally many steps, as long as there are two.

    `commands.train.fit` does the rest of each run. A run that diverges stays at its latest checkpoint; `fit` reaches
    the same step again there and handles it as config.on_nan says. `scanned` is as in `EpochRunner`.

    Raises:
      Stopped: a stop was requested, and all runs are saved.
    """
    remaining = list(jobs)
    while True:
        with ExitStack() as stack:
            stop = stack.enter_context(defer_signals(STOP_NOTICE))
            runs = [stack.enter_context(closing(TrainingRun(job))) for job in remaining]
            group = _largest_group(runs)
            if len(group) > 1:
                runner = group[0].job.make_runner(1.0, scanned, len(group))
                diverged = {result.run for result in train_epochs(group, runner, stop)}
                runs = [run for run in runs if run not in diverged]
                remaining = [run.job for run in runs]
        if signum := stop.acted_on or stop.received:
            positions = ", ".join(sorted({run.progress.describe() for run in runs}))
            raise Stopped(signum, f"saved after {positions or 'none'} of {jobs[0].epochs} epochs")
        if len(group) < 2:
            return


def _largest_group(runs):
    """Returns the most unfinished runs that have done equally many steps and never rolled back."""
    groups = defaultdict(list)
    for run in runs:
        progress = run.progress
        if progress.epochs < run.job.epochs and not progress.rollbacks:
            groups[progress.epochs, progress.step, progress.steps].append(run)
    return max(groups.values(), key=len, default=[])
