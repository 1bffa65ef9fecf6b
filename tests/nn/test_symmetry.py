"""Asymmetry against loops in float64, and on drawn heads whose asymmetry is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bigan_jax.nn import symmetry
from bigan_jax.nn.pixel_statistics import PixelStatistics


def heads(count=4, size=64, offset=0, seed=0):
    """Symmetric ellipses with a symmetric texture on black, `offset` columns right of the middle: [n h w 1]."""
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2) / (size / 2)
    texture = gaussian_filter(rng.normal(size=(count, size, size)), (0, 2, 2))
    texture = texture + texture[:, :, ::-1]
    width = rng.uniform(0.5, 0.6, (count, 1, 1))
    image = np.where((x / width) ** 2 + (y / 0.7) ** 2 < 1, 0.5 + 0.3 * texture, 0)
    return np.roll(image.clip(0, 1), offset, 2).astype(np.float32)[..., None]


def slow_normalize(image):
    """Of one image [h w], by NumPy's median."""
    inside = image > 0.12
    if not inside.any():
        return np.zeros_like(image)
    median = np.median(image[inside])
    deviation = max(np.median(abs(image[inside] - median)), 1 / 255)
    return np.where(inside, (image - median) / deviation, 0)


def slow_shift(image):
    """The shift of one image's mirror image with the highest correlation coefficient of the column means."""
    mean, reach = image.mean(0), 8 * image.shape[1] // 64
    mirror = mean[::-1]
    correlation = {s: np.corrcoef(mean, np.roll(mirror, s))[0, 1] for s in range(-reach, reach + 1)}
    return max(correlation, key=correlation.get)


def slow_asymmetry(image, normalized=True):
    """Of one image [h w c] in float64."""
    x = image.astype(np.float64).mean(-1)
    shift = slow_shift(x)
    x = slow_normalize(x) if normalized else x
    mirror = np.roll(np.fliplr(x), shift, axis=1)
    return gaussian_filter(x - mirror, 3 * x.shape[1] / 64, mode="reflect")


def on_device(images, normalized=True):
    return np.asarray(jax.jit(symmetry.asymmetry, static_argnums=1)(jnp.asarray(images), normalized))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("normalized", [True, False])
def test_map_equals_loops_in_float64(channels, normalized):
    rng = np.random.default_rng(1)
    images = np.concatenate([heads(offset=offset, seed=offset + 9) for offset in (-3, 0, 2)])
    images = (images * rng.uniform(0.6, 1, (12, 1, 1, channels)) + rng.uniform(0, 0.1, images.shape)).astype(np.float32)
    expected = np.stack([slow_asymmetry(image, normalized) for image in images])
    np.testing.assert_allclose(on_device(images, normalized), expected, atol=1e-4 * abs(expected).max())
    x = images.mean(-1)
    for values in x, jnp.asarray(x):
        np.testing.assert_array_equal(symmetry.mirror_shift(values), [slow_shift(image) for image in x])


@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("offset", [-2, 0, 1])
def test_symmetric_heads_have_no_asymmetry_wherever_they_are(size, offset):
    images = heads(size=size, offset=offset)
    np.testing.assert_array_equal(symmetry.mirror_shift(images[..., 0]), 2 * offset)
    np.testing.assert_allclose(on_device(images), 0, atol=1e-5)


@pytest.mark.parametrize("column", [24, 44])
def test_a_bright_blob_is_positive_on_its_side_and_negative_on_the_other(column):
    images = heads(1, offset=1)
    y, x = np.mgrid[:64, :64]
    images[0, ..., 0] += 0.3 * np.exp(-((y - 30) ** 2 + (x - column) ** 2) / 18)
    difference = on_device(images)[0]
    assert np.hypot(*(np.unravel_index(difference.argmax(), difference.shape) - np.array([30, column]))) < 1.5
    opposite = 65 - column  # the line of symmetry lies at 32.5
    assert np.hypot(*(np.unravel_index(difference.argmin(), difference.shape) - np.array([30, opposite]))) < 1.5


def test_normalization_is_that_of_each_image_and_ignores_contrast():
    images = heads()[..., 0]
    images[1, 0, 0] = 1  # of an even and an odd number of pixels
    expected = np.stack([slow_normalize(image) for image in images.astype(np.float64)])
    normalize = jax.jit(symmetry.normalize)
    np.testing.assert_allclose(normalize(jnp.asarray(images)), expected, rtol=1e-4, atol=1e-4)
    scaled = np.where(images > 0, 0.7 * images + 0.2, 0)
    np.testing.assert_allclose(normalize(jnp.asarray(scaled)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_flat_images_have_no_asymmetry(value):
    """Without foreground, or without a deviation."""
    images = np.full((2, 32, 32, 1), value, np.float32)
    np.testing.assert_array_equal(on_device(images), 0)
    np.testing.assert_array_equal(symmetry.mirror_shift(images[..., 0]), 0)


def test_score_is_the_mean_square_of_the_highest_percent():
    images = heads() + np.random.default_rng(3).uniform(0, 0.2, (4, 64, 64, 1)).astype(np.float32)
    rng = np.random.default_rng(4)
    statistics = PixelStatistics(*rng.uniform(0.05, 0.1, (2, 64, 64)).astype(np.float32))
    z = (abs(np.stack([slow_asymmetry(image) for image in images])) - statistics.mean) / statistics.deviation
    squares = np.sort(np.maximum(z, 0).reshape(4, -1) ** 2, axis=1)
    expected = squares[:, -41:].mean(1)  # of 4096 pixels
    np.testing.assert_allclose(symmetry.asymmetry_score(jnp.asarray(images), statistics), expected, rtol=1e-3)
