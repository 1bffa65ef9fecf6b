"""Health warnings: of log rows, of small trained networks, and on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigan_jax.models import anogan, vae, vqvae
from bigan_jax.nn import losses
from bigan_jax.nn.blocks import BATCH_AXIS
from bigan_jax.training import health
from tests.helpers.training import SHAPE, assert_near, initial_states, limit_devices, make_runner

HEALTHY = {
    "epoch": 3,
    "phase": "phase1",
    "health": [],
    "discriminator/loss": 0.9,
    "discriminator/real": 0.8,
    "discriminator/fake": 0.3,
    "generator/generated_spread": 0.05,
    "generator/real_spread": 0.1,
    "reconstruction/perplexity": 60.0,
    "reconstruction/live_codes": 200.0,
    "reconstruction/dead_codes": 312.0,
    "reconstruction/reconstruction_spread": 0.05,
    "reconstruction/real_spread": 0.1,
    "elbo/kl": 12.0,
    "elbo/active_units": 5.0,
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"discriminator/real": 0.5, "discriminator/fake": 0.5},
        {"discriminator/real": 0.99, "discriminator/fake": 0.3},
        {"generator/generated_spread": 0.0, "generator/real_spread": 0.0},
        {"reconstruction/reconstruction_spread": 0.0, "reconstruction/real_spread": 0.0},
        {"reconstruction/reconstruction_spread": 0.003, "step": 99},
        {"seconds": 1e9, "reconstruction/loss": 1e9},
        {"elbo/kl": 1.0, "elbo/active_units": 0.0},
        {"reconstruction/live_codes": 1.0, "reconstruction/dead_codes": 1.0},
    ],
)
def test_healthy_epochs_have_no_warnings(change):
    assert health.health_warnings(HEALTHY | change) == []
    assert health.health_warnings({"epoch": 1, "reconstruction/loss": 0.1}) == []


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"discriminator/real": 0.995, "discriminator/fake": 0.004}, "saturated"),
        ({"discriminator/real": 0.999, "discriminator/fake": 0.999}, "same for every image"),
        ({"discriminator/real": 0.001, "discriminator/fake": 0.0}, "same for every image"),
        ({"discriminator/loss": 20.0}, "confidently wrong"),
        ({"generator/generated_spread": 0.002}, "its images vary 2% as much as real ones (0.002 against 0.1)"),
        ({"reconstruction/reconstruction_spread": 0.003}, "for every image: they vary 3% as much as real ones (0.003"),
        ({"reconstruction/reconstruction_spread": 0.003, "step": 100}, "for every image"),
        ({"elbo/kl": 0.025}, "at most 0.025 nats about an image (active units: 5)"),
        ({"reconstruction/perplexity": 1.0}, "codebook has collapsed"),
        ({"reconstruction/live_codes": 12.0, "reconstruction/dead_codes": 500.0}, "images use 12 of 512"),
        ({"reconstruction/mse": float("nan")}, "reconstruction/mse not finite"),
        ({"discriminator/loss": float("inf"), "discriminator/real": float("nan")}, "diverged"),
    ],
)
def test_unhealthy_epochs_have_a_warning(change, text):
    warnings = health.health_warnings(HEALTHY | change)
    assert any(text in warning for warning in warnings)
    assert len(warnings) == 1 or text == "diverged"
    assert all(warning.endswith(".") for warning in warnings)


# --- logs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_spread_is_that_of_all_images_however_divided(devices):
    images = np.random.default_rng(0).random((2, 4, 3, 5, 1)) * [[[[[0.1]]]], [[[[1.0]]]]] + 0.8
    real, other = jnp.asarray(images, jnp.float32).reshape(2, devices, -1, 3, 5, 1)
    logs = jax.vmap(lambda x, y: losses.spread_logs(True, x, generated=y), axis_name=BATCH_AXIS)(real, other)
    expected = images.std(1).mean((1, 2, 3))
    for device in range(devices):
        np.testing.assert_allclose([logs["real_spread"][device], logs["generated_spread"][device]], expected, 1e-5)


def test_spread_without_devices_has_no_gradient():
    images = jnp.asarray(np.random.default_rng(0).random((4, 3, 5, 1)), jnp.float32)
    np.testing.assert_allclose(losses.batch_std(images, False), np.asarray(images, np.float64).std(0), 1e-5)
    assert not jax.grad(lambda x: losses.spread_logs(False, x)["real_spread"])(images).any()


def test_units_are_active_from_a_variance_of_a_hundredth():
    assert vae.active_units(jnp.array([0.0, 0.0999, 0.1001, 3.0])) == 2


def last_row(detector, steps, learning_rate):
    """Returns the logs of the last step on 8 images, as the row of an epoch."""
    optimizer = optax.adam(learning_rate)
    runner = make_runner(detector, optimizer, scanned=False)
    (state,) = initial_states(detector, optimizer, [0])
    _, logs = runner.epoch(runner.layout.to_devices(jax.device_get(state)), tuple(detector.objectives), order(steps, 8))
    return {name: float(values[-1]) for name, values in logs.items()}


def order(steps, batch):
    return np.tile(np.arange(batch), (steps, 1))


# --- trained networks -----------------------------------------------------------------------------


def test_collapsed_generator_with_one_image_on_each_device(monkeypatch):
    detector, optimizer, rows = anogan.create(shape=SHAPE, latent=8, widths=(4, 8)), optax.sgd(0.0), []
    for devices in (1, 4):
        limit_devices(monkeypatch, devices)
        runner = make_runner(detector, optimizer, scanned=False)
        (initial,) = initial_states(detector, optimizer, [0])
        constant = jax.tree.map(jnp.zeros_like, initial.params["generator"])
        for state in (initial, initial._replace(params=initial.params | {"generator": constant})):
            state = runner.layout.to_devices(jax.device_get(state))
            _, logs = runner.epoch(state, tuple(detector.objectives), order(1, 4))
            rows.append({name: float(values[0]) for name, values in logs.items()})
    alone, alone_collapsed, shared, shared_collapsed = rows
    assert_near(shared, alone)
    assert_near(shared_collapsed, alone_collapsed)
    assert alone["generator/generated_spread"] > 0.01 and alone["generator/real_spread"] > 0.1
    assert "its images vary 0% as much" in "".join(health.health_warnings(shared_collapsed))


@pytest.mark.parametrize(("beta", "collapsed"), [(1e4, True), (1e-4, False)])
def test_posterior_collapses_at_a_large_beta(monkeypatch, beta, collapsed):
    limit_devices(monkeypatch, 1)
    row = last_row(vae.create(shape=SHAPE, latent=4, widths=(4,), beta=beta), steps=60, learning_rate=0.03)
    assert (row["elbo/kl"] < 0.1) == collapsed
    assert (row["elbo/active_units"] == 0) == collapsed
    assert ("posterior has collapsed" in "".join(health.health_warnings(row))) == collapsed


@pytest.mark.parametrize(("codes", "dead"), [(4096, True), (8, False)])
def test_most_of_far_too_many_codes_are_dead(monkeypatch, codes, dead):
    """Three steps of 8 images with 16 codes each can use 384 codes at most."""
    limit_devices(monkeypatch, 1)
    detector = vqvae.create(shape=SHAPE, latent=4, widths=(4, 8), residual_width=4, codes=codes)
    row = last_row(detector, steps=3, learning_rate=1e-3) | {"reconstruction/perplexity": 3.0}
    assert row["reconstruction/live_codes"] + row["reconstruction/dead_codes"] == codes
    assert ("Most codes are dead" in "".join(health.health_warnings(row))) == dead
