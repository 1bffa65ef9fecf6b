"""Divergence: the step and objective are located, nothing invalid is saved, and runs roll back."""

import csv
import json

import jax
import numpy as np
import optax
import pytest

import bigan_jax
from bigan_jax.commands import setup
from bigan_jax.commands.build import build
from bigan_jax.commands.settings import parse_settings
from bigan_jax.configs import cae, improved_bigan
from bigan_jax.errors import UserError
from bigan_jax.training import divergence, epoch_logger, schedules
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.train_log import read_train_log
from tests.helpers.runs import SMALL, SMALL_BIGAN, configured
from tests.helpers.training import limit_devices, record_trained_states, set_whole_epochs

STEPS = 2  # per epoch
EPOCHS = 4


TINY = {"data.image_size": 16, "model.widths": (4,)}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    limit_devices(monkeypatch, 1)


def small_config(**fields):
    common = {"phases.phase1.epochs": EPOCHS, "optimizers.reconstruction.rate": "constant"}
    return configured(cae, "phantom", SMALL | TINY | common | fields)


def inject(monkeypatch, update_index, above=0.0, factor=np.nan):
    """Multiplies one update of the optimizers whose learning rate is above a limit by a factor."""
    make_optimizer = schedules.make_optimizer

    def make(updates, settings, scale):
        adam = make_optimizer(updates, settings, scale)
        if settings.learning_rate * scale <= above:
            return adam

        def update(gradients, state, params=None):
            changes, state = adam.update(gradients, state, params)
            multiplier = jax.numpy.where(state[0].count == update_index, factor, 1.0)
            return jax.tree.map(lambda change: change * multiplier, changes), state

        return optax.GradientTransformation(adam.init, update)

    monkeypatch.setattr(schedules, "make_optimizer", make)


def train(config, workdir, monkeypatch):
    """Trains without evaluation; returns the rows of train.jsonl and the final state."""
    states = record_trained_states(monkeypatch)
    bigan_jax.train(config, workdir)
    return read_train_log(workdir), states[0]


def read_nan_json(workdir):
    return json.loads((workdir / "nan.json").read_text())


@pytest.mark.parametrize("scanned", [False, True])
def test_nonfinite_state_is_not_saved(tmp_path, monkeypatch, scanned):
    """After the last update of the second epoch all losses are finite, but the weights are not."""
    config = small_config()
    set_whole_epochs(monkeypatch, scanned)
    inject(monkeypatch, 2 * STEPS)
    with pytest.raises(UserError) as error:
        train(config, tmp_path, monkeypatch)
    content = read_nan_json(tmp_path)
    assert (content["epoch"], content["step"]) == (2, STEPS)
    assert content["objective"] == "reconstruction" and float(content["loss"]) < 1
    assert sorted(content["networks"]) == ["decoder", "encoder"]
    split = list(csv.DictReader((tmp_path / "split.csv").open()))
    paths = [row["path"] for row in split if row["split"] == "train"]
    order = np.random.default_rng((config.seed, 1)).permutation(len(paths))
    assert content["images"] == [paths[i] for i in order[16 : 2 * 16]]
    for words in ("epoch 2", "reconstruction", content["images"][0], "on_nan=rollback"):
        assert words in str(error.value)
    assert content["message"] in str(error.value) and "nan.json lists all" in str(error.value)
    assert CheckpointManager(tmp_path).names() == [(1, 0)]
    assert [row["epoch"] for row in read_train_log(tmp_path)][:1] == [1]


def test_nonfinite_loss_ends_epoch(tmp_path, monkeypatch):
    """Long before its end, and before the next checkpoint is due."""
    config = small_config(**{"checkpoint.every": 100, "batch_size": 1})  # 45 steps per epoch
    inject(monkeypatch, 13)
    steps = []
    monitor = epoch_logger.StepMonitor.__call__
    monkeypatch.setattr(
        epoch_logger.StepMonitor, "__call__", lambda self, *args: steps.append(args[0]) or monitor(self, *args)
    )
    with pytest.raises(UserError, match=r"epoch 1, step 13: .*nan\.json lists all"):
        train(config, tmp_path, monkeypatch)
    assert steps == list(range(1, 21))
    assert len(read_nan_json(tmp_path)["images"]) == 1
    assert CheckpointManager(tmp_path).names() == []


def test_first_diverging_objective_is_named(tmp_path, monkeypatch):
    """The second objective's update breaks its networks, and with them the discriminator's loss in
    the next step, which is not the cause."""
    fields = SMALL_BIGAN | {"phases.phase1.epochs": 0}
    config = configured(improved_bigan, "phantom,no_perceptual", fields)
    phases = build(parse_settings(config), 1, STEPS).phases
    objectives = schedules.active_objectives(schedules.schedule_at(phases, 0))
    assert objectives[0] == "discriminator" and len(set(objectives)) == 3
    rate = max(fields.learning_rate for fields in config.optimizers.values())
    with config.unlocked():
        config.optimizers[objectives[1]].learning_rate = rate * 1.5
    inject(monkeypatch, 2, above=rate * 1.2, factor=np.inf)
    with pytest.raises(UserError):
        train(config, tmp_path, monkeypatch)
    content = read_nan_json(tmp_path)
    assert (content["epoch"], content["objective"]) == (1, objectives[1])
    assert "discriminator" not in content["networks"] and content["networks"]


@pytest.mark.parametrize("scanned", [False, True])
def test_first_step_is_located_looped_or_scanned(tmp_path, monkeypatch, scanned):
    set_whole_epochs(monkeypatch, scanned)
    inject(monkeypatch, 1)
    with pytest.raises(UserError, match="epoch 1, step 1"):
        train(small_config(), tmp_path, monkeypatch)
    assert CheckpointManager(tmp_path).names() == []


def test_rollback_halves_rates_and_is_logged(tmp_path, monkeypatch):
    """The 5th update is NaN unless the learning rate is a quarter. The run ends as one that
    continues from the second epoch with a quarter of the rate."""
    config = small_config(on_nan="rollback")
    rate = config.optimizers.reconstruction.learning_rate
    inject(monkeypatch, 2 * STEPS + 1, above=rate / 3)
    rows, state = train(config, tmp_path / "rollback", monkeypatch)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    rollback = {"epoch": 3, "step": 1, "objective": "reconstruction", "rolled_back_to": 2}
    assert [row.get("rollbacks") for row in rows] == [None, None, [rollback, rollback], None]
    assert np.isfinite([row["reconstruction/loss"] for row in rows]).all()

    train(small_config(**{"phases.phase1.epochs": 2}), tmp_path / "manual", monkeypatch)
    slower = small_config(**{"optimizers.reconstruction.learning_rate": rate / 4})
    monkeypatch.setattr(setup, "require_same_config", lambda *_: None)
    monkeypatch.setattr(setup, "write_config", lambda *_: None)
    _, expected = train(slower, tmp_path / "manual", monkeypatch)
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_run_stops_after_three_rollbacks(tmp_path, monkeypatch):
    scales, rate_scale = [], divergence.rate_scale

    def recorded(rollbacks):
        scales.append(rate_scale(rollbacks))
        return scales[-1]

    monkeypatch.setattr(divergence, "rate_scale", recorded)
    inject(monkeypatch, STEPS + 1)
    with pytest.raises(UserError, match="rolled back 3 times"):
        train(small_config(on_nan="rollback"), tmp_path, monkeypatch)
    assert scales == [1, 0.5, 0.25, 0.125]
    assert CheckpointManager(tmp_path).names() == [(1, 0)]


def test_unknown_policy_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'ignore'.*rollback, stop"):
        bigan_jax.train(small_config(on_nan="ignore"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
