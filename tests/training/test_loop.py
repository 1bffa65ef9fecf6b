"""Where an epoch is one program it begins before the last one is told; what is kept is the same."""

import threading
from concurrent.futures import wait
from functools import partial

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
from bigan_jax.training import epoch_runner, loop
from bigan_jax.training.epoch_runner import EpochRunner
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.train_log import read_train_log
from tests.helpers.runs import SMALL, SMALL_BIGAN, configured
from tests.helpers.training import initial_states as states
from tests.helpers.training import make_runner as runner
from tests.helpers.training import set_whole_epochs as by_programs
from tests.training.test_compiled_programs import BIGAN, DUE, ORDER

EPOCHS = 4


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def trained(workdir, monkeypatch, scanned, ahead=True):
    """Each checkpoint's state, the rows, and what was done in which order, of a small run."""
    done, begin, add = [], EpochRunner.dispatch, loop.EpochLogger.add

    def noted(function, word):
        def call(*arguments):
            done.append(word)
            return function(*arguments)

        return call

    fields = {"phases.phase1.epochs": 2, "phases.phase2.epochs": 2, "checkpoint.keep": EPOCHS}
    config = configured(improved_bigan, "phantom,no_perceptual", SMALL_BIGAN | fields)
    with monkeypatch.context() as patched:
        by_programs(patched, scanned)
        patched.setattr(EpochRunner, "dispatch", noted(begin, "begun"))
        patched.setattr(loop.EpochLogger, "add", noted(add, "told"))
        if not ahead:
            patched.setattr(loop, "_LONG", 0)
        with prepare_jobs({workdir: config}) as (job,):
            train.fit(job)
            like = jax.eval_shape(partial(job.init_state, config.seed))
            saved = CheckpointManager(workdir, EPOCHS)
            found = {name: saved._read(name, like)[1] for name in saved.names()}
            saved.close()
    rows = [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
        for row in read_train_log(workdir)
    ]
    return found, rows, done


def test_statistics_are_of_batches_that_mix_all_kinds(tmp_path, monkeypatch):
    """Pictures lie sorted by kind, and a batch of one kind lacks the variance between kinds."""
    orders, with_statistics = [], EpochRunner.with_statistics

    def noted(self, state, order):
        orders.append(order)
        return with_statistics(self, state, order)

    monkeypatch.setattr(EpochRunner, "with_statistics", noted)
    fields = SMALL | {"data.category": "head,leaf", "phases.phase1.epochs": 2}
    with prepare_jobs({tmp_path: configured(cae, "phantom", fields)}) as (job,):
        train.fit(job)
        kinds = job.dataset.train.condition
    assert (np.diff(kinds) >= 0).all() and len(set(kinds)) == 2
    first, second = orders
    np.testing.assert_array_equal(first, second)
    assert all(len(set(kinds[batch])) == 2 for batch in first)


def test_an_evaluation_goes_once_training_goes_on(tmp_path):
    """It would pass for one of what was trained last."""
    fields = SMALL | {"phases.phase1.epochs": 1}
    with prepare_jobs({tmp_path: configured(cae, "phantom", fields)}) as (job,):
        (tmp_path / "evaluation.json").write_text("{}")
        train.fit(job)
        assert not (tmp_path / "evaluation.json").exists()
        (tmp_path / "evaluation.json").write_text("{}")
        train.fit(job)  # which has ended
        assert (tmp_path / "evaluation.json").exists()


def test_other_weights_of_a_loss_are_another_training(tmp_path, monkeypatch):
    """Which no field tells: a file's content may change, or the package that carries them."""
    fields = SMALL_BIGAN | {"model.perceptual_layers": ("relu1_1",)}
    config, read = configured(improved_bigan, "phantom", fields), load_weights
    for _ in range(2):
        with prepare_jobs({tmp_path: config}) as (job,):
            job.mark_started()

    def others(*arguments):
        found = read(*arguments)
        return found._replace(params=jax.tree.map(lambda x: x / 2, found.params))

    monkeypatch.setattr(vgg16_weights, "load_weights", others)
    with (
        pytest.raises(UserError, match=r"other VGG16 weights.*vgg16\.weights"),
        prepare_jobs({tmp_path: config}),
    ):
        pass


def test_each_checkpoint_is_of_its_epoch(tmp_path, monkeypatch):
    """Though the next epoch has used up the state's memory by the time that it is written."""
    found, rows, done = trained(tmp_path / "ahead", monkeypatch, scanned=True)
    expected, told, in_turn = trained(tmp_path / "turn", monkeypatch, scanned=True, ahead=False)
    assert in_turn == ["begun", "told"] * EPOCHS
    assert done == ["begun", *["begun", "told"] * (EPOCHS - 1), "told"]
    assert list(found) == [(epoch, 0) for epoch in range(1, EPOCHS + 1)]
    assert rows == told and len(rows) == EPOCHS
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_where_steps_are_programs_an_epoch_is_told_at_its_end(tmp_path, monkeypatch):
    """Of long epochs the row would come late, and there is nothing to gain."""
    _, _, done = trained(tmp_path, monkeypatch, scanned=False)
    assert done == ["begun", "told"] * EPOCHS


def test_programs_compiled_ahead_are_those_that_run(compilations):
    run, optimizer = runner(BIGAN, optax.adam(1e-3), scanned=True), optax.adam(1e-3)
    (state,) = (run.layout.to_devices(state) for state in states(BIGAN, optimizer, [0]))
    run.compile_ahead(state, [DUE, DUE[2:]], ORDER)
    wait(run._compiling.values())
    assert run.is_compiled(epoch_runner.STATISTICS)
    before = compilations()
    run._statistics(
        state, run.frozen, run.pictures, epoch_runner.scatter(run.layout.shard_indices(ORDER))
    )
    for due in (DUE, DUE[2:]):
        state, rows = run.dispatch(state, due, ORDER)
        assert np.isfinite(run.fetch_logs(rows)["reconstruction/loss"]).all()
    assert compilations() == before


def test_no_epoch_is_told_late_for_a_compilation(monkeypatch):
    """One that fails included: it is for the epoch that needs it to say so."""
    run, go_on = runner(BIGAN, optax.adam(1e-3), scanned=True), threading.Event()
    state = run.layout.to_devices(*states(BIGAN, optax.adam(1e-3), [0]))

    class Program:
        def lower(self, *_):
            return self

        def compile(self):
            go_on.wait(60)
            raise RuntimeError("out of memory")

    monkeypatch.setattr(run, "_program", lambda _: Program())
    run.compile_ahead(state, [DUE], ORDER)
    assert not run.is_compiled(DUE) and run.is_compiled(DUE[2:])
    go_on.set()
    with pytest.raises(RuntimeError, match="out of memory"):
        run.dispatch(state, DUE, ORDER)
    run.compile_ahead(state, [DUE], ORDER)
    run.stop_compiling()
    assert run.is_compiled(DUE)  # nothing is being compiled any more


def test_a_program_that_is_still_being_compiled_is_waited_for(compilations):
    run = runner(BIGAN, optax.adam(1e-3), scanned=True)
    state = run.layout.to_devices(*states(BIGAN, optax.adam(1e-3), [0]))
    before = compilations()
    run.compile_ahead(state, [DUE], ORDER)
    state, _ = run.dispatch(state, DUE, ORDER)
    jax.block_until_ready(epoch_runner.first(state))
    run.stop_compiling()
    assert compilations() - before <= 3  # the epoch, and what takes its state from the device
