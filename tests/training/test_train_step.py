"""The generic step: who is moved, by what, on how many devices; statistics; randomness."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigan_jax.detector import Batch, Detector, Net, Objective, inference_net, init_state
from bigan_jax.errors import UserError
from bigan_jax.models import improved_bigan
from bigan_jax.nn import losses
from bigan_jax.training import epoch_runner
from bigan_jax.training.augmentation import AugmentationSettings
from bigan_jax.training.train_step import TrainingSet

SHAPE = (16, 16, 1)
TERMS = {"mse": 0.5, "mae": 0.2, "ssim": 0.3}
BIGAN = partial(
    improved_bigan.create,
    shape=SHAPE,
    latent=8,
    widths=(8, 16),
    discriminator_widths=(8, 16),
    discriminator_hidden=16,
    se_ratio=4,
    reconstruction_terms=TERMS,
)
DUE = ("discriminator", "adversarial", "reconstruction", "reconstruction", "reconstruction")


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return TrainingSet(rng.integers(0, 256, (32, *SHAPE), np.uint8), np.zeros(32, np.int32))


def runner(detector, pictures, scanned=False, optimizer=None):
    optimizers = dict.fromkeys(detector.objectives, optimizer or optax.adam(1e-3))
    augmentation = {"flip": True, "translate": 0.05, "scale": 0.05}
    state = jax.jit(lambda: init_state(detector, optimizers, 3, SHAPE))()
    return (
        epoch_runner.EpochRunner(
            detector,
            optimizers,
            augmentation,
            epoch_runner.replicate(dict(detector.frozen)),
            epoch_runner.replicate(pictures),
            scanned=scanned,
        ),
        epoch_runner.replicate(state),
    )


def changed(before, after):
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
    ("due", "moved"),
    [
        (("reconstruction",), {"encoder", "generator"}),  # phase 1
        (DUE[1:], {"encoder", "generator"}),  # phase 2, D not due
        (("discriminator",), {"discriminator"}),
        (DUE, {"encoder", "generator", "discriminator"}),
    ],
)
def test_only_owned_networks_change(pictures, due, moved):
    run, state = runner(BIGAN(), pictures)
    before = jax.device_get(epoch_runner.first(state))
    state, _ = run.epoch(state, due, np.arange(16).reshape(2, 8))
    after = jax.device_get(epoch_runner.first(state))
    assert changed(before, after) == moved
    assert after.step == 2
    counts = {
        name: int(optax.tree_utils.tree_get(s, "count")) for name, s in after.opt_state.items()
    }
    assert counts == {name: 2 * due.count(name) for name in counts}


@pytest.mark.parametrize("scanned", [False, True])
def test_one_and_four_devices_agree(pictures, monkeypatch, scanned):
    """Losses, parameters and BatchNorm's statistics over 5 steps, noise and augmentation included.

    Plain gradient descent: Adam's first steps are the sign of gradients, which turns rounding
    errors of gradients near zero into steps of full size.
    """
    order = np.random.default_rng(1).permutation(np.tile(np.arange(32), 2))[:40].reshape(5, 8)
    results = []
    for devices in (1, 4):
        monkeypatch.setattr(jax, "local_device_count", lambda devices=devices: devices)
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        run, state = runner(BIGAN(), pictures, scanned, optax.sgd(0.01))
        state, logs = run.epoch(state, DUE, order)
        state = run.with_statistics(state, order)
        # Each device logs how much its own pictures vary: that depends on how many it has.
        logs = {name: value for name, value in logs.items() if not name.endswith("spread")}
        results.append((logs, *jax.device_get(epoch_runner.first(state))[2:4]))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *results)


def test_scanned_and_looped_epochs_agree(pictures):
    results = []
    for scanned in (False, True):
        run, state = runner(BIGAN(), pictures, scanned, optax.sgd(0.05))
        state, logs = run.epoch(state, DUE, np.arange(24).reshape(3, 8))
        results.append((logs, jax.device_get(epoch_runner.first(state))))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), *results)


def test_an_update_is_the_gradient_of_its_loss():
    """Against a plain least-squares problem, solved in NumPy."""

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(1, use_bias=False)(x.reshape(len(x), -1))

    def loss(net, batch, keys):
        return jnp.square(net("f", batch.image)[:, 0] - 1).mean(), {}

    detector = Detector({"f": Linear()}, {"fit": Objective(("f",), loss)}, reconstruct=None)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 2, 2, 1), np.uint8)
    optimizers = {"fit": optax.sgd(0.1)}
    state = init_state(detector, optimizers, 0, (2, 2, 1))
    run = epoch_runner.EpochRunner(
        detector,
        optimizers,
        AugmentationSettings(),
        {},
        epoch_runner.replicate(TrainingSet(images, np.zeros(8, np.int32))),
    )
    w = np.array(state.params["f"]["Dense_0"]["kernel"], np.float64)
    after, logs = run.epoch(epoch_runner.replicate(state), ("fit",), np.arange(8)[None])
    x = images.reshape(8, 4) / 255
    residual = x @ w - 1
    np.testing.assert_allclose(logs["fit/loss"], (residual**2).mean(), rtol=1e-5)
    expected = w - 0.1 * 2 * x.T @ residual / 8
    got = epoch_runner.first(after).params["f"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_statistics_are_those_of_the_training_pictures(pictures):
    """Precise BN equals the moments computed in NumPy over each batch, averaged."""

    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            from bigan_jax.nn.blocks import BatchNorm

            return BatchNorm(use_running_average=not train)(x)

    def loss(net, batch, keys):
        return losses.mse(batch.image, net("n", batch.image)).mean(), {}

    detector = Detector({"n": Normalized()}, {"fit": Objective(("n",), loss)}, reconstruct=None)
    run, state = runner(detector, pictures)
    order = np.arange(32).reshape(4, 8)
    state = epoch_runner.first(run.with_statistics(state, order))
    batches = pictures.image.reshape(4, -1) / 255
    found = state.collections["n"]["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], batches.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["var"], batches.var(axis=1).mean(), rtol=1e-4)


def test_statistics_do_not_touch_the_course_of_training(pictures):
    order = np.arange(16).reshape(2, 8)
    params = []
    for estimated in (False, True):
        run, state = runner(BIGAN(), pictures)
        state, _ = run.epoch(state, DUE, order)
        if estimated:
            state = run.with_statistics(state, order)
        state, _ = run.epoch(state, DUE, order)
        params.append(jax.device_get(state.params))
    jax.tree.map(np.testing.assert_array_equal, *params)


def test_one_picture_s_reconstruction_is_its_own(pictures):
    detector = BIGAN()
    optimizers = dict.fromkeys(detector.objectives, optax.sgd(1.0))
    state = jax.jit(lambda: init_state(detector, optimizers, 0, SHAPE))()
    net = inference_net(detector, state, detector.frozen)
    image = jnp.asarray(pictures.image / 255, jnp.float32)
    keys = jnp.broadcast_to(jax.random.key(0), 32)
    together = detector.reconstruct(net, Batch(image, pictures.condition), keys)
    alone = detector.reconstruct(net, Batch(image[4:5], pictures.condition[4:5]), keys[4:5])
    np.testing.assert_allclose(together[4], alone[0], atol=1e-5)


def test_a_network_called_twice_keeps_the_mean_of_both():
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


def test_batches_fit_the_devices(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert epoch_runner.steps_and_batch_size(32, 100) == (3, 32)
    assert epoch_runner.steps_and_batch_size(32, 30) == (1, 28)
    with pytest.raises(UserError, match="multiple of 4"):
        epoch_runner.steps_and_batch_size(30, 100)
    for batch_size in (0, -4):
        with pytest.raises(UserError, match=rf"batch_size={batch_size}: it counts pictures"):
            epoch_runner.steps_and_batch_size(batch_size, 100)
    with pytest.raises(UserError, match="too few"):
        epoch_runner.steps_and_batch_size(32, 3)
