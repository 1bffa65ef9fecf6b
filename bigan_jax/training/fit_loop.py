"""The passes of a fitted detector's run: progress, checkpoints, and a stop within a pass."""

import time
from contextlib import closing

import jax

from bigan_jax.runtime import distributed
from bigan_jax.runtime.stop_signals import StopRequest
from bigan_jax.training import device_layout
from bigan_jax.training.epoch_logger import EpochLogger, make_progress_bar
from bigan_jax.training.fitting import Fitter
from bigan_jax.training.run import TrainingRun
from bigan_jax.training.saving.progress import Progress
from bigan_jax.training.schedules import Phase, ScheduledEpoch

_SAVE_EVERY = 300.0  # seconds; sums may take hundreds of megabytes


def fit_passes(run: TrainingRun, fitter: Fitter, stop_request: StopRequest) -> None:
    """Fits the remaining passes over the training images; each counts as an epoch, and each batch as a step.

    The run's `progress` and `state` are up to date after a stop or the last pass, and saved.

    Raises:
      UserError: an image cannot be read, a file cannot be written, or parameters are not finite.
    """
    images = run.job.dataset.train.image
    run.job.mark_started()
    steps = [fitter.steps(number, len(images)) for number in range(len(fitter.passes))]
    # An image more or less changes the sums: a pass over other images begins again.
    if run.progress.step and run.progress.steps != steps[run.progress.epochs]:
        run.progress = run.progress.at_step(0, 0)
    before = sum(steps[: run.progress.epochs]) + run.progress.step
    bar = make_progress_bar(1, sum(steps), Progress(0, before))
    logger = EpochLogger(run.job.workdir, run.progress, fitter.batch_size, run.job.loggers)
    with closing(bar), closing(logger):
        for number in range(run.progress.epochs, len(steps)):
            bar.set_description(f"fit {number + 1}/{len(steps)} {fitter.passes[number].name}")
            if not run.progress.step:
                run.progress = run.progress.at_step(0, steps[number])
            if not _fit_pass(run, fitter, number, bar, stop_request):
                return
            name = fitter.passes[number].name
            run.progress = logger.log_epoch(run.progress, ScheduledEpoch(Phase(name, 1, {}), 0), bar)
            run.checkpoints.save(run.progress, run.state)


def _fit_pass(run, fitter, number, bar, stop_request) -> bool:
    """Fits the rest of a pass; returns False if a stop was requested first, and then has saved the sums."""
    progress = run.progress
    done = jax.device_get(run.state.opt_state[fitter.passes[number].name]) if progress.step else None
    state = run.state._replace(opt_state={})
    began = saved = time.perf_counter()
    step = progress.step
    for sums in fitter.sums(number, state, run.job.dataset.train.image, done, step):
        jax.block_until_ready(sums)  # images would accumulate on the devices
        step += 1
        bar.update()
        now = time.perf_counter()
        stop_request.acted_on = distributed.all_max(stop_request.received or 0)
        run.progress = progress.after(step, {}, now - began)
        due = stop_request.acted_on or now - saved > _SAVE_EVERY
        if due and step < progress.steps:
            run.checkpoints.raise_if_failed()
            # Fetched at once: the next batch is added in the memory of these sums.
            on_host = jax.device_get(device_layout.first(sums))
            run.state = state._replace(opt_state={fitter.passes[number].name: on_host})
            run.checkpoints.save(run.progress, run.state)
            saved = now
            if stop_request.acted_on:
                return False
    run.state = fitter.finish(number, state, sums)
    return True
