"""A run from start to end: data, training or its resumption, evaluation, report."""

import sys
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter
from tqdm import tqdm

from bigan_jax import detector as game
from bigan_jax import health, parallel, schedule
from bigan_jax.build import Build, build, picture_shape
from bigan_jax.checkpoint import Checkpoints
from bigan_jax.data import Pictures
from bigan_jax.detector import State, TrainingSet
from bigan_jax.evaluation import check_fields, evaluate_run, load_audited
from bigan_jax.workdir import History, check, claim, default_name


def train(config: ConfigDict, workdir: str | Path | None = None) -> dict:
    """Trains a detector, or goes on where an earlier call stopped, then evaluates it.

    config: of a file in configs/, as `configs.cae.get_config("phantom")` gives it.
    workdir: where the run's files go; by default a folder in runs/ named after the config.
    Returns the evaluation, as in evaluation.json.
    Raises UserError for what the user can mend: names, folders, a workdir of another config.
    """
    workdir = Path(workdir or default_name(config))
    check(workdir, config)
    check_fields(config)
    dataset, found = load_audited(config)
    print(found.table())
    steps, batch_size = parallel.fit_batches(config.batch_size, len(dataset.train.image))
    built = build(config, len(dataset.conditions), steps)
    claim(workdir, config)
    found.write(workdir)
    state = fit(config, built, dataset.train, steps, batch_size, workdir)
    return evaluate_run(config, dataset, found, built.detector, state, workdir)


def fit(
    config: ConfigDict,
    built: Build,
    pictures: Pictures,
    steps: int,
    batch_size: int,
    workdir: Path,
) -> State:
    """The trained state, with BatchNorm statistics of the training pictures.

    steps: of batch_size pictures each, in every epoch.
    """
    epochs = schedule.total_epochs(built.phases)

    # --- where to begin ---
    # Compiled, so that the initial values do not depend on how operations are fused elsewhere.
    state = jax.jit(
        lambda: game.init(built.detector, built.optimizers, config.seed, picture_shape(config))
    )()
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)
    done = checkpoints.latest() or 0
    if done:
        state = checkpoints.restore(done, state)
        print(f"{workdir}: going on after epoch {done} of {epochs}")
    for note in built.detector.notes:
        print(f"Note: {note}")
    history = History(workdir, done)
    events = SummaryWriter(str(workdir / "events"), purge_step=done + 1)

    # --- onto the devices ---
    training_set = TrainingSet(pictures.image, pictures.condition)
    runner = parallel.Runner(
        built.detector,
        built.optimizers,
        config.augment.to_dict(),
        parallel.replicate(dict(built.detector.frozen)),
        training_set if config.data.stream else parallel.replicate(training_set),
    )
    in_order = np.arange(steps * batch_size).reshape(steps, batch_size)
    state = parallel.replicate(state)

    # --- epochs ---
    bar = tqdm(
        total=epochs * steps,
        initial=done * steps,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 30,  # a log file wants few lines
    )
    for epoch in range(done, epochs):
        moment = schedule.moment(built.phases, epoch)
        bar.set_description(f"epoch {epoch + 1}/{epochs} {moment.phase.name}", refresh=False)
        order = epoch_order(config.seed, epoch, len(pictures.image), steps, batch_size)
        began, seen = time.perf_counter(), bar.n

        def show(step, logs, seen=seen):
            if step == steps or step % 10 == 0:  # reading a loss waits for the device
                bar.set_postfix(_headline(logs), refresh=False)
            bar.update(seen + step - bar.n)

        state, logs = runner.epoch(state, schedule.due(moment), order, show)
        seconds = time.perf_counter() - began
        row = {
            "epoch": epoch + 1,
            "phase": moment.phase.name,
            "step": (epoch + 1) * steps,
            "seconds": seconds,
            "images_per_second": order.size / seconds,
            **logs,
        }
        row["health"] = health.warnings(row)
        for warning in row["health"]:
            bar.write(f"epoch {epoch + 1}: {warning}")
        # Before the checkpoint: a row too many is dropped on resumption, one too few is lost.
        history.append(row)
        for name in row.keys() - {"epoch", "phase", "step", "health"}:
            events.add_scalar(name, row[name], epoch + 1)
        if epoch + 1 == epochs or (epoch + 1) % config.checkpoint.every == 0:
            state = runner.with_statistics(state, in_order)
            checkpoints.save(epoch + 1, parallel.first(state))
    bar.close()
    events.close()
    checkpoints.close()
    return parallel.first(state)


def epoch_order(seed: int, epoch: int, pictures: int, steps: int, batch_size: int) -> np.ndarray:
    """[steps, batch_size] indices of the pictures: a function of seed and epoch alone. What does
    not fill a batch waits for another epoch's shuffle."""
    shuffled = np.random.default_rng((seed, epoch)).permutation(pictures)
    return shuffled[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def _headline(logs):
    """Each objective's own loss; the terms it is made of stay in train.jsonl."""
    return {
        name.removesuffix("/loss"): f"{np.ravel(value)[0]:.3g}"
        for name, value in logs.items()
        if name.endswith("/loss")
    }
