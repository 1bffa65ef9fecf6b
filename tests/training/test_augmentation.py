"""Augmentation against closed forms and SciPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from bigan_jax.errors import UserError
from bigan_jax.training.augmentation import AugmentationSettings, _translate_scale, _warp, augment

KEYS = jax.random.split(jax.random.key(0), 64)


def test_default_settings_change_nothing():
    image = jax.random.uniform(jax.random.key(1), (64, 8, 8, 1))
    assert augment(KEYS, image, AugmentationSettings()) is image


def test_flip_mirrors_about_half_of_images():
    image = jax.random.uniform(jax.random.key(1), (64, 6, 8, 2))
    flipped = augment(KEYS, image, AugmentationSettings(flip=True))
    mirrored = np.all(flipped == image[:, :, ::-1], (1, 2, 3))
    unchanged = np.all(flipped == image, (1, 2, 3))
    assert np.all(mirrored ^ unchanged) and 16 < mirrored.sum() < 48


def test_ramp_is_shifted_and_scaled_linearly():
    """A ramp a + bx + cy stays one: its slopes are divided by the factor, its center is shifted."""
    y, x = np.mgrid[:40, :40] + 0.5
    ramp = jnp.asarray((0.5 + 0.004 * (x - 20) + 0.002 * (y - 20)), jnp.float32)[..., None]
    moved = np.asarray(_translate_scale(KEYS[3], ramp, 0.1, 0.2))[8:-8, 8:-8, 0]
    slope = np.diff(moved, axis=1).mean()
    factor = 0.004 / slope
    assert 0.8 <= factor <= 1.2
    np.testing.assert_allclose(np.diff(moved, axis=1), slope, atol=1e-5)
    np.testing.assert_allclose(np.diff(moved, axis=0), slope / 2, atol=1e-5)
    shift = (0.5 - moved.mean()) / slope  # dx + dy / 2, in pixels of the result
    assert 0 < abs(shift) <= 0.1 * 40 * 1.5


def test_translation_covers_its_range_and_repeats_border():
    image = jnp.zeros((64, 20, 20, 1)).at[:, 10, 10].set(1.0).at[:, :, 0].set(0.2)
    moved = np.asarray(augment(KEYS, image, AugmentationSettings(translate=0.25)))[..., 0]
    offsets = np.array([np.unravel_index(np.argmax(m), m.shape) for m in moved]) - 10
    assert np.abs(offsets).max() <= 6 and np.abs(offsets).max(0).min() >= 4
    right = np.flatnonzero(offsets[:, 1] >= 3)
    assert len(right) and np.allclose(moved[right, 10, 0], 0.2)


def test_constant_and_range_are_kept():
    image = jnp.full((64, 16, 16, 3), 0.7)
    np.testing.assert_allclose(
        augment(KEYS, image, AugmentationSettings(flip=True, translate=0.2, scale=0.3)), 0.7, atol=1e-6
    )
    noise = jax.random.bernoulli(jax.random.key(2), shape=(64, 16, 16, 1)).astype(jnp.float32)
    out = augment(KEYS, noise, AugmentationSettings(translate=0.2, scale=0.3))
    assert out.min() >= 0 and out.max() <= 1


def test_result_depends_on_own_key_alone():
    image = jax.random.uniform(jax.random.key(1), (64, 8, 8, 1))
    for others in {}, {"rotate": 20.0, "brightness": 0.2}:
        run = jax.jit(partial(augment, settings=AugmentationSettings(True, 0.2, 0.1, **others)))
        batch, single = run(KEYS, image), run(KEYS[5:6], image[5:6])
        np.testing.assert_allclose(batch[5], single[0], atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 12, 3), (13, 13, 1)])
@pytest.mark.parametrize("quarters", [-1, 1, 2])
def test_quarter_turns_equal_rot90(shape, quarters):
    image = np.random.default_rng(0).random(shape, np.float32)
    turned = _warp(image, quarters * np.pi / 2, 1.0, jnp.zeros(2))
    np.testing.assert_allclose(turned, np.rot90(image, quarters), atol=1e-5)


def test_warp_equals_that_of_scipy():
    image = np.random.default_rng(0).random((24, 32, 2), np.float32)
    angle, factor, shift = 0.4, 1.2, np.array([3.0, -5.5])
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / factor
    center = np.array([11.5, 15.5])
    expected = np.stack(
        [
            ndimage.affine_transform(
                image[..., channel], matrix, center - matrix @ (center + shift), order=1, mode="nearest"
            )
            for channel in range(2)
        ],
        -1,
    )
    np.testing.assert_allclose(_warp(image, angle, factor, shift), expected, atol=1e-4)


def test_angles_cover_their_range():
    """A ramp to the right that is rotated counterclockwise by t rises by cos t to the right and by
    sin t upwards."""
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 32)[None, None, :, None], (64, 32, 32, 1))
    turned = np.asarray(augment(KEYS, ramp, AugmentationSettings(rotate=30.0)))[:, 8:-8, 8:-8, 0]
    right, up = np.diff(turned, axis=2).mean((1, 2)), -np.diff(turned, axis=1).mean((1, 2))
    np.testing.assert_allclose(np.hypot(right, up), 1 / 31, atol=1e-5)
    angles = np.degrees(np.arctan2(up, right))
    assert np.abs(angles).max() <= 30 and angles.min() < -24 and angles.max() > 24
    assert abs(angles.mean()) < 6


def test_rotation_is_combined_with_same_shift_and_scale():
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((64, 32, 32, 1)), (0, 2, 2, 0))
    image = jnp.asarray(smooth, jnp.float32)
    options = dict(flip=True, translate=0.1, scale=0.2)
    moved, turned = (
        jax.jit(partial(augment, settings=AugmentationSettings(**options, rotate=angle)))(KEYS, image)
        for angle in (0.0, 1e-4)
    )
    np.testing.assert_allclose(moved, turned, atol=1e-4)


def test_brightness_is_one_factor_per_image():
    image = jax.random.uniform(jax.random.key(1), (64, 8, 8, 3), minval=0.1, maxval=0.8)
    lit = np.asarray(augment(KEYS, image, AugmentationSettings(brightness=0.2)) / image)
    factor = lit[:, :1, :1, :1]
    np.testing.assert_allclose(lit, np.broadcast_to(factor, lit.shape), rtol=1e-5)
    assert factor.min() >= 0.8 and factor.max() <= 1.2 and np.ptp(factor) > 0.3
    assert augment(KEYS, jnp.ones((64, 2, 2, 1)), AugmentationSettings(brightness=0.2)).max() == 1


def test_unused_augmentation_is_not_in_program():
    image = jnp.zeros((64, 8, 8, 1))

    def program(**options):
        return str(jax.make_jaxpr(lambda k, x: augment(k, x, AugmentationSettings(**options)))(KEYS, image))

    assert "random" not in program() and "mul" not in program()
    assert "gather" not in program(brightness=0.1) and "gather" not in program(scale=0.1)
    draws = {name: program(**{name: 0.1}).count("random_bits") for name in ("rotate", "brightness")}
    assert draws == {"rotate": 1, "brightness": 1}


@pytest.mark.parametrize(
    "invalid", [{"scale": 1.0}, {"rotate": -5.0}, {"brightness": 2.0}, {"translate": float("nan")}]
)
def test_invalid_amounts_are_named(invalid):
    with pytest.raises(UserError, match=f"augment.{next(iter(invalid))} must be "):
        AugmentationSettings(**invalid)
