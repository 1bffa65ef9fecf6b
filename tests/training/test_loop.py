"""The training loop: epochs dispatched ahead, with the same results; what training writes when."""

import threading
from concurrent.futures import wait

import jax
import numpy as np
import optax
import pytest

from bigan_jax.commands import train
from bigan_jax.commands.setup import prepare_jobs
from bigan_jax.configs import cae, improved_bigan
from bigan_jax.errors import UserError
from bigan_jax.nn.vgg16 import weights as vgg16_weights
from bigan_jax.nn.vgg16.weights import load_weights
from bigan_jax.training import device_layout, epoch_runner, loop
from bigan_jax.training.epoch_runner import EpochRunner
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.train_log import read_train_log
from tests.helpers.runs import SMALL, SMALL_BIGAN, configured
from tests.helpers.training import OBJECTIVES, TINY_BIGAN, initial_states, limit_devices, make_runner, set_whole_epochs

EPOCHS = 4
ADAM = optax.adam(1e-3)
INDICES = np.arange(16).reshape(2, 8)
TINY = {"data.image_size": 16, "model.widths": (4,)}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    limit_devices(monkeypatch, 1)


def train_recorded(workdir, monkeypatch, scanned, ahead=True):
    """Trains a small run; returns the state of each checkpoint, the rows of train.jsonl without
    times, and the order in which epochs were dispatched and logged."""
    events, dispatch, log_epoch = [], EpochRunner.dispatch, loop.EpochLogger.log_epoch

    def recorded(function, event):
        def call(*arguments):
            events.append(event)
            return function(*arguments)

        return call

    fields = {"phases.phase1.epochs": 2, "phases.phase2.epochs": 2, "checkpoint.keep": EPOCHS}
    config = configured(improved_bigan, "phantom,no_perceptual", SMALL_BIGAN | fields)
    with monkeypatch.context() as patch:
        set_whole_epochs(patch, scanned)
        patch.setattr(EpochRunner, "dispatch", recorded(dispatch, "dispatched"))
        patch.setattr(loop.EpochLogger, "log_epoch", recorded(log_epoch, "logged"))
        if not ahead:
            patch.setattr(loop, "_LONG_EPOCH", 0)
        with prepare_jobs({workdir: config}) as (job,):
            train.fit(job)
            like = job.init_state.eval_shape(config.seed)
            checkpoints = CheckpointManager(workdir, EPOCHS)
            states = {name: checkpoints._read(name, like)[1] for name in checkpoints.names()}
            checkpoints.close()
    rows = [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in read_train_log(workdir)
    ]
    return states, rows, events


def test_statistics_come_from_batches_of_all_conditions(tmp_path, monkeypatch):
    """Images are sorted by condition; a batch of one lacks the variance between conditions."""
    all_indices, with_statistics = [], EpochRunner.with_statistics

    def recorded(self, state, indices):
        all_indices.append(indices)
        return with_statistics(self, state, indices)

    monkeypatch.setattr(EpochRunner, "with_statistics", recorded)
    fields = SMALL | TINY | {"data.category": "head,leaf", "phases.phase1.epochs": 2}
    with prepare_jobs({tmp_path: configured(cae, "phantom", fields)}) as (job,):
        train.fit(job)
        conditions = job.dataset.train.condition
    assert (np.diff(conditions) >= 0).all() and len(set(conditions)) == 2
    first, second = all_indices
    np.testing.assert_array_equal(first, second)
    assert all(len(set(conditions[batch])) == 2 for batch in first)


def test_training_deletes_earlier_evaluation(tmp_path):
    """It would pass for an evaluation of the new state."""
    fields = SMALL | TINY | {"phases.phase1.epochs": 1}
    with prepare_jobs({tmp_path: configured(cae, "phantom", fields)}) as (job,):
        (tmp_path / "evaluation.json").write_text("{}")
        train.fit(job)
        assert not (tmp_path / "evaluation.json").exists()
        (tmp_path / "evaluation.json").write_text("{}")
        train.fit(job)  # nothing is left to train
        assert (tmp_path / "evaluation.json").exists()


def test_run_with_other_vgg16_weights_is_refused(tmp_path, monkeypatch):
    """No config field shows it: a file's content may change, or the package that has them."""
    fields = SMALL_BIGAN | {"model.perceptual_layers": ("relu1_1",)}
    config, load = configured(improved_bigan, "phantom", fields), load_weights
    for _ in range(2):
        with prepare_jobs({tmp_path: config}) as (job,):
            job.mark_started()

    def load_others(*arguments):
        weights = load(*arguments)
        return weights._replace(params=jax.tree.map(lambda x: x / 2, weights.params))

    monkeypatch.setattr(vgg16_weights, "load_weights", load_others)
    with pytest.raises(UserError, match=r"another frozen network.*vgg16\.weights"), prepare_jobs({tmp_path: config}):
        pass


def test_checkpoints_are_same_with_epochs_dispatched_ahead(tmp_path, monkeypatch):
    """The next epoch has donated the state's memory by the time that a checkpoint is written."""
    states, rows, events = train_recorded(tmp_path / "ahead", monkeypatch, scanned=True)
    expected_states, expected_rows, sequential_events = train_recorded(
        tmp_path / "sequential", monkeypatch, scanned=True, ahead=False
    )
    assert sequential_events == ["dispatched", "logged"] * EPOCHS
    assert events == ["dispatched", *["dispatched", "logged"] * (EPOCHS - 1), "logged"]
    assert list(states) == [(epoch, 0) for epoch in range(1, EPOCHS + 1)]
    assert rows == expected_rows and len(rows) == EPOCHS
    jax.tree.map(np.testing.assert_array_equal, states, expected_states)


def test_looped_epochs_are_not_dispatched_ahead(tmp_path, monkeypatch, capsys):
    """Long epochs would be logged late, with nothing to gain."""
    _, _, events = train_recorded(tmp_path, monkeypatch, scanned=False)
    # Each phase has objectives of its own. Its later epochs leave out the discriminator.
    assert capsys.readouterr().out.count("Compiling the training step ...") == 2
    assert events == ["dispatched", "logged"] * EPOCHS


def runner_and_state(scanned=True):
    runner = make_runner(TINY_BIGAN, ADAM, scanned=scanned)
    (state,) = initial_states(TINY_BIGAN, ADAM, [0])
    return runner, runner.layout.to_devices(state)


@pytest.mark.parametrize("scanned", [False, True])
def test_programs_compiled_ahead_are_used(compilations, scanned):
    runner, state = runner_and_state(scanned)
    programs = OBJECTIVES, OBJECTIVES[2:]
    runner.compile_ahead(state, programs, INDICES)
    wait(runner._compiling.values())
    assert runner.is_compiled(epoch_runner.STATISTICS)
    before = compilations()
    runner.with_statistics(state, INDICES)
    for objectives in programs:
        state, logs = runner.dispatch(state, objectives, INDICES)
        assert np.isfinite(runner.fetch_logs(logs)["reconstruction/loss"]).all()
    assert compilations() - before == (0 if scanned else 1)  # the end of a step, which compiles at once


def test_pending_or_failed_compilation_is_not_compiled(monkeypatch):
    """A failed one raises in the epoch that needs it."""
    runner, state = runner_and_state()
    compiled = threading.Event()

    class Program:
        def lower(self, *_):
            return self

        def compile(self):
            compiled.wait(60)
            raise RuntimeError("out of memory")

    monkeypatch.setattr(runner, "_epoch_program", lambda _: Program())
    runner.compile_ahead(state, [OBJECTIVES], INDICES)
    assert not runner.is_compiled(OBJECTIVES) and runner.is_compiled(OBJECTIVES[2:])
    compiled.set()
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.dispatch(state, OBJECTIVES, INDICES)
    runner.compile_ahead(state, [OBJECTIVES], INDICES)
    runner.stop_compiling()
    assert runner.is_compiled(OBJECTIVES)  # nothing is being compiled any more


def test_dispatch_waits_for_pending_compilation(compilations):
    runner, state = runner_and_state()
    device_layout.first(state)  # compiles the transfer, unless an earlier test did
    before, objectives = compilations(), OBJECTIVES[2:]
    runner.compile_ahead(state, [objectives], INDICES)
    state, _ = runner.dispatch(state, objectives, INDICES)
    jax.block_until_ready(device_layout.first(state))
    runner.stop_compiling()
    assert compilations() - before <= 3  # the epoch, the statistics, and the transfer of no batches
