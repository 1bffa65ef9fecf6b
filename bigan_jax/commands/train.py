"""The train command: data, training or its resumption, evaluation and report."""

from contextlib import closing
from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict

from bigan_jax.commands.evaluate import evaluate_run
from bigan_jax.commands.folds import evaluate_folds, fold_configs
from bigan_jax.commands.seeds import config_for_seed, finish_each_seed, train_side_by_side
from bigan_jax.commands.settings import parse_settings
from bigan_jax.commands.setup import load_audited, prepare_jobs
from bigan_jax.detector import TrainState
from bigan_jax.errors import UserError
from bigan_jax.runtime import distributed
from bigan_jax.runtime.files import write_json
from bigan_jax.runtime.jax_setup import require_platforms
from bigan_jax.runtime.run_config import default_name, require_same_config
from bigan_jax.runtime.stop_signals import Stopped, defer_signals
from bigan_jax.training import divergence
from bigan_jax.training.fit_loop import fit_passes
from bigan_jax.training.loop import STOP_NOTICE, train_epochs
from bigan_jax.training.run import TrainingJob, TrainingRun


@require_platforms
def train(config: ConfigDict, workdir: str | Path | None = None, side_by_side: bool | None = None) -> dict:
    """Trains a detector, or resumes its training, then evaluates it.

    Args:
      config: of a file in configs/, such as `configs.cae.get_config("phantom")`. With several config.seeds, each is a
        run in a folder `seed<k>`.
      workdir: folder for the run's files, or the folders of the seeds; by default `runs/<name of the config>`.
      side_by_side: whether several seeds train as one program in one process; by default on accelerators, unless
        several processes train together.

    Returns:
      The content of evaluation.json; for several seeds, of summary.json. Of several processes, all but process 0
      return {}.

    Raises:
      UserError: a name, value, folder or file is wrong, the disk is full, or training diverged. Of several seeds, the
        others are finished first.
      Stopped: a stop was requested, and the state is saved. It is a KeyboardInterrupt.
    """
    settings = parse_settings(config)
    workdir = Path(workdir or default_name(config))
    if settings.seeds > 1 and (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds a run of one seed. Use another --workdir.")
    if settings.threshold.folds and distributed.is_multiprocess():
        raise UserError("config.threshold.folds trains in one process. Leave it out, or use one process.")
    if settings.seeds == 1 and settings.threshold.folds:
        return _train_folds(config, workdir)
    if settings.seeds == 1:
        with prepare_jobs({workdir: config}) as (job,):
            return train_and_evaluate(job, config)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    configs = {workdir / f"seed{seed}": config_for_seed(config, seed) for seed in seeds}
    if settings.threshold.folds:
        return finish_each_seed(workdir, {folder: partial(train, own, folder) for folder, own in configs.items()})
    if side_by_side is None:
        side_by_side = jax.default_backend() != "cpu" and not distributed.is_multiprocess()
    with prepare_jobs(configs) as jobs:
        if side_by_side and not jobs[0].fitter:
            train_side_by_side(jobs)
        pairs = zip(jobs, configs.values(), strict=True)
        return finish_each_seed(workdir, {job.workdir: partial(train_and_evaluate, job, own) for job, own in pairs})


def _train_folds(config: ConfigDict, workdir: Path) -> dict:
    require_same_config(workdir, config)
    configs = fold_configs(config, workdir)
    for folder, own in configs.items():  # an error of the last fold would come after all other trainings
        load_audited(parse_settings(own), [folder])
    for index, (folder, own) in enumerate(configs.items(), 1):
        print(f"Fold {index} of {config.threshold.folds}: {folder}")
        train(own, folder)
    return evaluate_folds(workdir, config)


def train_and_evaluate(job: TrainingJob, config: ConfigDict) -> dict:
    """Trains the remaining epochs of a run and evaluates it. Returns and raises what `train` does for one seed."""
    state = fit(job)
    with distributed.primary_first(f"evaluation of {job.workdir.name}"):
        if not distributed.is_primary():
            return {}
        evaluated = job.dataset, job.audit, job.built.detector, state, job.epochs, job.workdir
        return evaluate_run(config, *evaluated, job.fitter)


def fit(job: TrainingJob) -> TrainState:
    """Returns the state after the remaining epochs of a run, with the BatchNorm statistics of the training images.

    After a divergence, config.on_nan decides whether the run stops or rolls back to the latest valid checkpoint and
    resumes with lower learning rates. Raises what `train` does.
    """
    run = TrainingRun(job)
    with defer_signals(STOP_NOTICE) as stop:
        with closing(run):
            if run.progress.epochs or run.progress.step:
                position = run.progress.describe()
                print(f"{job.workdir}: resuming after {position} of {job.epochs} epochs")
            for note in job.built.detector.notes:
                print(f"Note: {note}")
            if job.fitter:
                fit_passes(run, job.fitter, stop)
            while not job.fitter and run.progress.epochs < job.epochs and not stop.acted_on:
                make_runner = partial(job.make_runner, divergence.rate_scale(run.progress.rollbacks))
                for diverged in train_epochs([run], make_runner(), stop):
                    _roll_back(diverged, make_runner)
        stop.acted_on = stop.acted_on or distributed.all_max(stop.received or 0)
    if stop.acted_on:
        position = run.progress.describe()
        raise Stopped(stop.acted_on, f"saved after {position} of {job.epochs} epochs")
    return run.state


def _roll_back(attempt, make_runner):
    """Rolls back to the latest checkpoint; raises UserError if config.on_nan forbids it."""
    run, job, progress = attempt.run, attempt.run.job, attempt.progress
    inputs = attempt.initial_state, attempt.objectives, attempt.indices, job.dataset.train.path
    finding = divergence.locate(make_runner, *inputs, progress, attempt.logs, run.state)
    write_json(job.workdir / "nan.json", finding.as_dict())
    run.restore()
    run.progress = divergence.roll_back(finding, progress.rollbacks, job.on_nan, run.progress)
