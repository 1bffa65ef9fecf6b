"""The training step: which networks it changes, on any number of devices; BatchNorm; randomness."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigan_jax.commands.settings import parse_settings
from bigan_jax.configs import cae
from bigan_jax.detector import Batch, Detector, Net, Objective, inference_net, init_state
from bigan_jax.errors import UserError
from bigan_jax.training import device_layout, epoch_runner
from bigan_jax.training.augmentation import AugmentationSettings
from bigan_jax.training.train_step import TrainingSet
from tests.helpers.runs import configured
from tests.helpers.training import (
    assert_near,
    gradient_recorder,
    initial_states,
    limit_devices,
    make_runner,
    tiny_bigan,
    training_set,
)

BIGAN = tiny_bigan(mse=0.5, mae=0.2, ssim=0.3)
ADAM = optax.adam(1e-3)
ALL_UPDATES = ("discriminator", "adversarial", "reconstruction", "reconstruction")


@cache  # the programs are shared by the tests
def adam_runner():
    return make_runner(BIGAN, ADAM, scanned=False)


def initial_state(optimizer):
    (state,) = initial_states(BIGAN, optimizer, [3])
    return state


def changed_networks(before, after):
    """Names of the networks of which any variable differs."""
    return {
        name
        for name in before.params
        if not jax.tree.all(
            jax.tree.map(
                np.array_equal,
                (before.params[name], before.collections[name]),
                (after.params[name], after.collections[name]),
            )
        )
    }


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        (("reconstruction",), {"encoder", "generator"}),  # phase 1
        (ALL_UPDATES[1:], {"encoder", "generator"}),  # phase 2, discriminator not active
        (("discriminator",), {"discriminator"}),
        (ALL_UPDATES, {"encoder", "generator", "discriminator"}),
    ],
)
def test_only_owned_networks_change(objectives, expected):
    runner, before = adam_runner(), jax.device_get(initial_state(ADAM))
    state = runner.layout.to_devices(before)
    state, _ = runner.epoch(state, objectives, np.arange(16).reshape(2, 8))
    after = jax.device_get(device_layout.first(state))
    assert changed_networks(before, after) == expected
    assert after.step == 2
    counts = {name: int(optax.tree_utils.tree_get(s, "count")) for name, s in after.opt_state.items()}
    assert counts == {name: 2 * objectives.count(name) for name in counts}


def train(devices, scanned, monkeypatch):
    """Logs, final state and statistics of 3 steps with noise and augmentation."""
    limit_devices(monkeypatch, devices)
    optimizer, indices = gradient_recorder(), np.random.default_rng(1).permutation(32)[:24]
    runner = make_runner(BIGAN, optimizer, scanned)
    state = runner.layout.to_devices(initial_state(optimizer))
    state, logs = runner.epoch(state, ALL_UPDATES, indices.reshape(3, 8))
    trained = jax.device_get(device_layout.first(state))
    state = runner.with_statistics(state, indices.reshape(3, 8))
    return logs, trained, device_layout.first(state).collections


def test_one_and_four_devices_agree_looped_or_scanned(monkeypatch):
    """Losses, gradients, parameters and BatchNorm statistics."""
    expected = train(1, False, monkeypatch)
    assert np.ptp(expected[0]["reconstruction/loss"]) > 1e-3  # the steps differ
    for devices, scanned in (1, True), (4, False), (4, True):
        assert_near(train(devices, scanned, monkeypatch), expected)


def test_update_is_gradient_step():
    """Against a least-squares problem solved in NumPy."""

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(1, use_bias=False)(x.reshape(len(x), -1))

    def loss(net, batch, keys):
        return jnp.square(net("f", batch.image)[:, 0] - 1).mean(), {}

    detector = Detector({"f": Linear()}, {"fit": Objective(("f",), loss)}, reconstruct=None)
    images = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 1), np.uint8)
    optimizers = {"fit": optax.sgd(0.1)}
    state = init_state(detector, optimizers, 0, (2, 2, 1))
    runner = epoch_runner.EpochRunner(
        detector,
        optimizers,
        AugmentationSettings(),
        {},
        device_layout.replicate(TrainingSet(images, np.zeros(8, np.int32))),
    )
    w = np.array(state.params["f"]["Dense_0"]["kernel"], np.float64)
    after, logs = runner.epoch(device_layout.replicate(state), ("fit",), np.arange(8)[None])
    x = images.reshape(8, 4) / 255
    residual = x @ w - 1
    np.testing.assert_allclose(logs["fit/loss"], (residual**2).mean(), rtol=1e-5)
    expected = w - 0.1 * 2 * x.T @ residual / 8
    trained = device_layout.first(after).params["f"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(trained, expected, atol=1e-6)


def test_statistics_do_not_affect_training():
    indices, params = np.arange(16).reshape(2, 8), []
    for estimated in (False, True):
        runner = adam_runner()
        state = runner.layout.to_devices(initial_state(ADAM))
        state, _ = runner.epoch(state, ALL_UPDATES, indices)
        if estimated:
            state = runner.with_statistics(state, indices)
        state, _ = runner.epoch(state, ALL_UPDATES, indices)
        params.append(jax.device_get(state.params))
    jax.tree.map(np.testing.assert_array_equal, *params)


def test_reconstruction_does_not_depend_on_other_images():
    state, images = initial_state(ADAM), training_set()
    net = inference_net(BIGAN, state, BIGAN.frozen)
    image = jnp.asarray(images.image / 255, jnp.float32)
    keys = jnp.broadcast_to(jax.random.key(0), 32)
    batch = BIGAN.reconstruct(net, Batch(image, images.condition), keys)
    single = BIGAN.reconstruct(net, Batch(image[4:5], images.condition[4:5]), keys[4:5])
    np.testing.assert_allclose(batch[4], single[0], atol=1e-5)


def test_network_called_twice_keeps_mean_of_its_collections():
    class Counter(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            last = self.variable("seen", "last", jnp.zeros, ())
            if train:
                last.value = x
            return x

    net = Net({"c": Counter()}, {"c": {"seen": {"last": jnp.zeros(())}}}, train=True)
    net("c", jnp.array(1.0)), net("c", jnp.array(3.0))
    assert net.collections(("c",)) == {"c": {"seen": {"last": 2.0}}}


def test_batch_size_fits_devices(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert epoch_runner.steps_and_batch_size(32, 100) == (3, 32)
    assert epoch_runner.steps_and_batch_size(32, 30) == (1, 28)
    with pytest.raises(UserError, match=r"multiple of 4, .* \(got 30\)"):
        epoch_runner.steps_and_batch_size(30, 100)
    for batch_size in (0, -4):
        with pytest.raises(UserError, match=rf"batch_size must be .* \(got {batch_size}\)"):
            parse_settings(configured(cae, "phantom", {"batch_size": batch_size}))
    with pytest.raises(UserError, match="too few"):
        epoch_runner.steps_and_batch_size(32, 3)
