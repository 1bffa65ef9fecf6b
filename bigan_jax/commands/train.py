"""A run from start to end: data, training or its resumption, evaluation, report."""

from contextlib import closing
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from bigan_jax.commands.evaluate import evaluate_run
from bigan_jax.commands.setup import prepare_jobs
from bigan_jax.detector import TrainState
from bigan_jax.runtime import distributed
from bigan_jax.runtime.files import write_json
from bigan_jax.runtime.preemption import Stopped, defer_signals
from bigan_jax.runtime.run_config import default_name
from bigan_jax.training import divergence
from bigan_jax.training.loop import STOP_NOTICE, train_epochs
from bigan_jax.training.run import TrainingJob, TrainingRun


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
    with prepare_jobs({Path(workdir or default_name(config)): config}) as (job,):
        return train_and_evaluate(job, config)


def train_and_evaluate(job: TrainingJob, config: ConfigDict) -> dict:
    """Trains what is still to be trained of a run, and evaluates it. Raises as `train` does."""
    state = fit(job)
    with distributed.primary_first(f"evaluation of {job.workdir.name}"):
        if not distributed.is_primary():
            return {}
        what = config, job.dataset, job.audit, job.built.detector
        return evaluate_run(*what, state, job.epochs, job.workdir)


def fit(job: TrainingJob) -> TrainState:
    """The trained state, with BatchNorm statistics of the training pictures.

    Goes on from the newest checkpoint that is sound; where training diverges, `on_nan` says whether
    it goes back to it and on from there more slowly. Raises as `train` does.
    """
    run = TrainingRun(job)
    with defer_signals(STOP_NOTICE) as asked:
        with closing(run):
            if run.progress.epochs or run.progress.step:
                place = run.progress.describe()
                print(f"{job.workdir}: going on after {place} of {job.epochs} epochs")
            for note in job.built.detector.notes:
                print(f"Note: {note}")
            while run.progress.epochs < job.epochs and not asked.acted_on:
                make_runner = partial(
                    job.make_runner, divergence.rate_scale(run.progress.rollbacks)
                )
                for attempt in train_epochs([run], make_runner(), asked):
                    _roll_back(attempt, make_runner)
        asked.acted_on = asked.acted_on or distributed.all_max(asked.received or 0)
    if asked.acted_on:
        kept = f"saved after {run.progress.describe()} of {job.epochs} epochs"
        raise Stopped(asked.acted_on, kept)
    return run.state


def _roll_back(attempt, make_runner):
    """To where the run was last saved, as config.on_nan says."""
    run, job, progress = attempt.run, attempt.run.job, attempt.progress
    paths = job.dataset.train.path
    finding = divergence.locate(
        make_runner, attempt.start, attempt.due, attempt.order, paths, progress, attempt.logs,
        run.state,
    )  # fmt: skip
    write_json(job.workdir / "nan.json", finding.as_dict())
    run.restore()
    policy = job.on_nan
    run.progress = divergence.roll_back(finding, progress.rollbacks, policy, run.progress)
