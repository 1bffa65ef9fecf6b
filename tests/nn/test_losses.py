"""Losses compared with dm-pix, NumPy and SciPy."""

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_expit

from bigan_jax.nn import losses, ssim


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    x = rng.random((3, 24, 32, 2), np.float32)
    return x, np.clip(x + 0.1 * rng.standard_normal(x.shape, np.float32), 0, 1)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_ssim_and_its_gradient_equal_dm_pix(pair, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, y = map(jnp.asarray, pair)
    actual, actual_gradient = jax.value_and_grad(lambda y: ssim.ssim_error(x, y).sum())(y)
    expected, gradient = jax.value_and_grad(lambda y: (1 - dm_pix.ssim(x, y)).sum())(y)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    np.testing.assert_allclose(actual_gradient, gradient, atol=1e-6)


def test_ssim_error_of_equal_and_of_constant_images():
    x = jnp.full((1, 16, 16, 1), 0.5)
    np.testing.assert_allclose(ssim.ssim_error(x, x), 0, atol=1e-6)
    luminance = (2 * 0.5 * 0.25 + 0.01**2) / (0.5**2 + 0.25**2 + 0.01**2)
    np.testing.assert_allclose(ssim.ssim_error(x, x / 2), 1 - luminance, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 24, 32, 2), (2, 12, 40, 1), (1, 64, 64, 3)])
def test_ssim_map_equals_dm_pix(shape):
    rng = np.random.default_rng(0)
    x = rng.random(shape, np.float32)
    y = np.clip(x + 0.1 * rng.standard_normal(shape, np.float32), 0, 1)
    for one, other in ((x, y), (x, 1 - x), (0.01 * x, 0.01 * y), (np.round(x), np.round(y))):
        value, error = jax.jit(ssim.ssim_error_and_map)(one, other)
        np.testing.assert_allclose(value, 1 - dm_pix.ssim(one, other), atol=3e-6)
        expected = 1 - dm_pix.ssim(one, other, return_map=True).mean(-1)
        np.testing.assert_allclose(error[:, 5:-5, 5:-5], expected, atol=2e-5)
        assert (error[:, :5, 5:-5] == error[:, 5:6, 5:-5]).all()


def test_ssim_map_is_exact_where_images_are_flat():
    """A bright image without structure, where float32 loses the variances that SSIM divides by: against float64."""
    rng = np.random.default_rng(0)
    x = (0.9 + 0.003 * rng.normal(size=(1, 40, 40, 1))).astype(np.float32)
    y = (x + 0.01 * rng.normal(size=x.shape)).astype(np.float32)
    with jax.enable_x64(True):
        expected = 1 - dm_pix.ssim(jnp.asarray(x, jnp.float64), jnp.asarray(y, jnp.float64), return_map=True)[..., 0]
    _, error = ssim.ssim_error_and_map(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(error[:, 5:-5, 5:-5], expected, rtol=0, atol=2e-6)


def test_ssim_map_is_at_the_center_of_the_window(pair):
    x = pair[0]
    y = x.copy()
    y[:, 12, 20] = 1 - y[:, 12, 20]
    _, error = ssim.ssim_error_and_map(jnp.asarray(x), jnp.asarray(y))
    assert error.shape == x.shape[:3]
    changed = np.argwhere(np.abs(error[0]) > 1e-6)
    assert changed.min(0).tolist() == [7, 15] and changed.max(0)[0] == 17


def test_mse_and_mae(pair):
    x, y = map(jnp.asarray, pair)
    np.testing.assert_allclose(losses.mse(x, y), ((x - y) ** 2).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(losses.mae(x, y), np.abs(x - y).mean((1, 2, 3)), rtol=1e-5)


def test_perceptual_averages_layers_of_different_sizes(pair):
    x, y = map(jnp.asarray, pair)
    layers, others = (x, x[:, ::2]), (y, y[:, ::2])
    expected = (((x - y) ** 2).mean((1, 2, 3)) + ((x - y)[:, ::2] ** 2).mean((1, 2, 3))) / 2
    np.testing.assert_allclose(losses.perceptual(layers, others), expected, rtol=1e-5)


@settings(deadline=None)
@given(hnp.arrays(np.float32, (2, 3, 4, 5), elements=st.floats(0, 100, width=32)), st.floats(1, 50))
def test_unit_features_do_not_depend_on_scale(features, factor):
    (actual,) = losses.unit_features([jnp.asarray(features)])
    square = (features.astype(np.float64) ** 2).mean(-1, keepdims=True)
    np.testing.assert_allclose(actual, features / np.sqrt(square + 1e-3), rtol=1e-4, atol=1e-6)
    unscaled, scaled = losses.unit_features([jnp.asarray(features + 1), jnp.asarray(factor * (features + 1))])
    np.testing.assert_allclose(scaled, unscaled, rtol=1e-3)
    np.testing.assert_allclose(jnp.square(unscaled).mean(-1), 1, rtol=2e-3)


def test_zero_features_stay_zero_and_have_a_finite_gradient():
    zeros = jnp.zeros((1, 2, 2, 8))
    value, slope = jax.value_and_grad(lambda x: losses.unit_features([x])[0].sum())(zeros)
    assert value == 0 and jnp.isfinite(slope).all()


def test_bce_is_the_log_likelihood_of_extreme_logits():
    logits = jnp.array([-200.0, -1.0, 0.0, 3.0, 200.0])
    np.testing.assert_allclose(losses.bce(logits, 1), -log_expit(logits).mean(), rtol=1e-6)
    np.testing.assert_allclose(losses.bce(logits, 0), -log_expit(-logits).mean(), rtol=1e-6)


def test_weighted_sum_names_unmatched_terms():
    total, logs = losses.weighted_sum({"a": 0.5, "b": 2.0}, {"a": jnp.float32(4), "b": jnp.float32(1)})
    assert total == 4.0 and logs == {"a": 4.0, "b": 1.0}
    with pytest.raises(ValueError, match="typo"):
        losses.weighted_sum({"a": 1.0, "typo": 1.0}, {"a": jnp.float32(1)})
