"""Numbers gone wrong: who, when, on which pictures; nothing bad is saved; going back, slower."""

import csv
import json

import jax
import numpy as np
import optax
import pytest

import bigan_jax
from bigan_jax.commands import setup
from bigan_jax.commands import train as training
from bigan_jax.commands.build import build
from bigan_jax.commands.settings import parse_settings
from bigan_jax.configs import cae, improved_bigan
from bigan_jax.errors import UserError
from bigan_jax.training import divergence, epoch_logger, schedules
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.train_log import read_train_log
from tests.helpers.runs import SMALL, SMALL_BIGAN, configured
from tests.helpers.training import set_whole_epochs as by_programs

STEPS = 2  # an epoch
EPOCHS = 4


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def small(**fields):
    common = {"phases.phase1.epochs": EPOCHS, "optimizers.reconstruction.rate": "constant"}
    return configured(cae, "phantom", SMALL | common | fields)


def breaks(monkeypatch, at, above=0.0, value=np.nan):
    """Optimizers whose learning rate is above a limit multiply their `at`-th update by `value`."""
    sound = schedules.make_optimizer

    def optimizer(updates, settings, scale):
        adam = sound(updates, settings, scale)
        if settings.learning_rate * scale <= above:
            return adam

        def update(gradients, state, params=None):
            updates, new = adam.update(gradients, state, params)
            factor = jax.numpy.where(new[0].count == at, value, 1.0)
            return jax.tree.map(lambda u: u * factor, updates), new

        return optax.GradientTransformation(adam.init, update)

    monkeypatch.setattr(schedules, "make_optimizer", optimizer)


def train(config, workdir, monkeypatch):
    """The rows and the final state; evaluation has a test of its own."""
    states = []
    monkeypatch.setattr(training, "evaluate_run", lambda *args: states.append(args[-2]))
    bigan_jax.train(config, workdir)
    return read_train_log(workdir), states[0]


@pytest.mark.parametrize("scanned", [False, True])
def test_a_run_stops_before_the_bad_state_is_saved(tmp_path, monkeypatch, scanned):
    """The last update of the second epoch: all its losses are finite, and its weights are not."""
    config = small()
    by_programs(monkeypatch, scanned)
    breaks(monkeypatch, at=2 * STEPS)
    with pytest.raises(UserError) as told:
        train(config, tmp_path, monkeypatch)
    found = json.loads((tmp_path / "nan.json").read_text())
    assert (found["epoch"], found["step"]) == (2, STEPS)
    assert found["objective"] == "reconstruction" and float(found["loss"]) < 1
    assert sorted(found["networks"]) == ["decoder", "encoder"]
    split = list(csv.DictReader((tmp_path / "split.csv").open()))
    paths = [row["path"] for row in split if row["split"] == "train"]
    order = np.random.default_rng((config.seed, 1)).permutation(len(paths))
    assert found["pictures"] == [paths[i] for i in order[16 : 2 * 16]]
    for word in ("epoch 2", "reconstruction", found["pictures"][0], "nan.json", "on_nan=rollback"):
        assert word in str(told.value)
    assert CheckpointManager(tmp_path).names() == [(1, 0)]
    assert [row["epoch"] for row in read_train_log(tmp_path)][:1] == [1]


def test_a_lost_loss_ends_the_epoch(tmp_path, monkeypatch):
    """Long before its end, and before the next checkpoint, which is far."""
    config = small(**{"checkpoint.every": 100, "batch_size": 1})  # 45 steps an epoch
    breaks(monkeypatch, at=13)
    steps = []
    watch = epoch_logger.StepMonitor.__call__
    monkeypatch.setattr(
        epoch_logger.StepMonitor, "__call__", lambda self, *a: steps.append(a[0]) or watch(self, *a)
    )
    with pytest.raises(UserError, match=r"epoch 1, step 13: .*nan\.json has them all"):
        train(config, tmp_path, monkeypatch)
    assert steps == list(range(1, 21))
    assert len(json.loads((tmp_path / "nan.json").read_text())["pictures"]) == 1
    assert CheckpointManager(tmp_path).names() == []


def test_the_first_to_go_wrong_is_named(tmp_path, monkeypatch):
    """The generators' update breaks them, and in the same step the discriminator's loss: that is
    not the cause."""
    fields = SMALL_BIGAN | {"phases.phase1.epochs": 0}
    config = configured(improved_bigan, "phantom,no_perceptual", fields)
    due = schedules.active_objectives(
        schedules.schedule_at(build(parse_settings(config), 1, STEPS).phases, 0)
    )
    assert due[0] == "discriminator" and len(set(due)) == 3
    rates = {name: fields.learning_rate for name, fields in config.optimizers.items()}
    with config.unlocked():
        config.optimizers[due[1]].learning_rate = max(rates.values()) * 1.5
    breaks(monkeypatch, at=2, above=max(rates.values()) * 1.2, value=np.inf)
    with pytest.raises(UserError):
        train(config, tmp_path, monkeypatch)
    found = json.loads((tmp_path / "nan.json").read_text())
    assert (found["epoch"], found["objective"]) == (1, due[1])
    assert "discriminator" not in found["networks"] and found["networks"]


@pytest.mark.parametrize("scanned", [False, True])
def test_it_is_found_on_a_device_that_scans(tmp_path, monkeypatch, scanned):
    by_programs(monkeypatch, scanned)
    breaks(monkeypatch, at=1)
    with pytest.raises(UserError, match="epoch 1, step 1"):
        train(small(), tmp_path, monkeypatch)
    assert CheckpointManager(tmp_path).names() == []


def test_going_back_halves_the_rates_and_is_told(tmp_path, monkeypatch):
    """NaN at the 5th update unless the rate is a quarter: the same course as of a quarter's rate
    from the checkpoint before, also when stopped between."""
    config = small(on_nan="rollback")
    rate = config.optimizers.reconstruction.learning_rate
    breaks(monkeypatch, at=2 * STEPS + 1, above=rate / 3)
    rows, state = train(config, tmp_path / "back", monkeypatch)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    told = {"epoch": 3, "step": 1, "objective": "reconstruction", "back_to": 2}
    assert [row.get("rollbacks") for row in rows] == [None, None, [told, told], None]
    assert np.isfinite([row["reconstruction/loss"] for row in rows]).all()

    # By hand: two epochs at the full rate, and then a config of a quarter's.
    half = small(**{"phases.phase1.epochs": 2})
    train(half, tmp_path / "hand", monkeypatch)
    slower = small(**{"optimizers.reconstruction.learning_rate": rate / 4})
    monkeypatch.setattr(setup, "require_same_config", lambda *_: None)
    monkeypatch.setattr(setup, "write_config", lambda *_: None)
    _, expected = train(slower, tmp_path / "hand", monkeypatch)
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_three_times_are_enough(tmp_path, monkeypatch):
    config = small(on_nan="rollback")
    tried = []
    scale = divergence.rate_scale
    monkeypatch.setattr(divergence, "rate_scale", lambda r: tried.append(scale(r)) or scale(r))
    breaks(monkeypatch, at=STEPS + 1)
    with pytest.raises(UserError, match="went back 3 times"):
        train(config, tmp_path, monkeypatch)
    assert tried == [1, 0.5, 0.25, 0.125]
    assert CheckpointManager(tmp_path).names() == [(1, 0)]


def test_a_policy_that_there_is_not(tmp_path):
    with pytest.raises(UserError, match=r"'ignore'.*rollback, stop"):
        bigan_jax.train(small(on_nan="ignore"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
