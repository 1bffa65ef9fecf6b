"""Augmentation against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

from bigan_jax.augment import _move, augment

KEYS = jax.random.split(jax.random.key(0), 64)


def test_nothing_asked_nothing_done():
    image = jax.random.uniform(jax.random.key(1), (64, 8, 8, 1))
    assert augment(KEYS, image) is image


def test_flip_swaps_about_half_left_and_right():
    image = jax.random.uniform(jax.random.key(1), (64, 6, 8, 2))
    flipped = augment(KEYS, image, flip=True)
    swapped = np.all(flipped == image[:, :, ::-1], (1, 2, 3))
    kept = np.all(flipped == image, (1, 2, 3))
    assert np.all(swapped ^ kept) and 16 < swapped.sum() < 48


def test_a_ramp_is_moved_and_scaled_linearly():
    """A ramp a + bx + cy stays one: its slopes are divided by the factor, its middle is shifted."""
    y, x = np.mgrid[:40, :40] + 0.5
    ramp = jnp.asarray((0.5 + 0.004 * (x - 20) + 0.002 * (y - 20)), jnp.float32)[..., None]
    moved = np.asarray(_move(KEYS[3], ramp, 0.1, 0.2))[8:-8, 8:-8, 0]
    slope = np.diff(moved, axis=1).mean()
    factor = 0.004 / slope
    assert 0.8 <= factor <= 1.2
    np.testing.assert_allclose(np.diff(moved, axis=1), slope, atol=1e-5)
    np.testing.assert_allclose(np.diff(moved, axis=0), slope / 2, atol=1e-5)
    shift = (0.5 - moved.mean()) / slope  # dx + dy / 2, in pixels of the result
    assert 0 < abs(shift) <= 0.1 * 40 * 1.5


def test_translation_is_by_the_drawn_amount_and_repeats_the_border():
    image = jnp.zeros((64, 20, 20, 1)).at[:, 10, 10].set(1.0).at[:, :, 0].set(0.2)
    moved = np.asarray(augment(KEYS, image, translate=0.25))[..., 0]
    found = [np.unravel_index(np.argmax(m), m.shape) for m in moved]
    offsets = np.array(found) - 10
    assert np.abs(offsets).max() <= 6 and np.abs(offsets).max(0).min() >= 4
    right = np.flatnonzero(offsets[:, 1] >= 3)
    assert len(right) and np.allclose(moved[right, 10, 0], 0.2)


def test_a_constant_stays_and_range_is_kept():
    image = jnp.full((64, 16, 16, 3), 0.7)
    np.testing.assert_allclose(
        augment(KEYS, image, flip=True, translate=0.2, scale=0.3), 0.7, atol=1e-6
    )
    noise = jax.random.bernoulli(jax.random.key(2), shape=(64, 16, 16, 1)).astype(jnp.float32)
    out = augment(KEYS, noise, translate=0.2, scale=0.3)
    assert out.min() >= 0 and out.max() <= 1


def test_a_picture_s_fate_is_its_key_s_alone():
    image = jax.random.uniform(jax.random.key(1), (64, 8, 8, 1))
    together = augment(KEYS, image, flip=True, translate=0.2, scale=0.1)
    alone = augment(KEYS[5:6], image[5:6], flip=True, translate=0.2, scale=0.1)
    np.testing.assert_allclose(together[5], alone[0], atol=1e-6)
