"""Structural similarity of images (SSIM; Wang et al. 2004), to train with and to score with."""

import functools

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from bigan_jax.nn.convolutions import is_plain

SSIM_WINDOW = 11  # pixels; images must be at least as large
_SIGMA = 1.5


def ssim_error(x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Returns 1 - SSIM of each image, in [0, 2], by dm-pix with a data range of 1, for training."""
    return jnp.asarray(1 - dm_pix.ssim(x, y, filter_fn=_gaussian_blur))  # pyright: ignore[reportArgumentType]


def ssim_error_and_map(
    x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]
) -> tuple[Float[Array, "b"], Float[Array, "b h w"]]:
    """Returns `ssim_error`, and 1 - SSIM of the window around each pixel, averaged over channels, for scoring.

    Windows are inside of the image, so the outermost 5 pixels of the map repeat the value of their neighbor, and its
    mean is close but not equal to the error.

    The formula is that of dm-pix, written by the moments of x - y: with variances v, 1 - (2 cov + c) / (v + c) is
    var(x - y) / (v + c), which does not subtract nearly equal numbers where x and y are alike. It takes a tenth of the
    time on a CPU: only the sum of the squares is needed, and XLA would compute moments again for each use if they were
    not blurred in stacks. The gradient is slow.
    """
    x, y = jnp.moveaxis(x, -1, 1), jnp.moveaxis(y, -1, 1)  # one plane per channel
    center = x.mean((2, 3), keepdims=True)  # variances of smaller numbers have smaller rounding errors
    x, y, difference = x - center, y - center, x - y
    x_mean, mean_difference = _window_sums(jnp.stack([x, difference]))
    squares, squared_difference = _window_sums(jnp.stack([x * x + y * y, difference * difference]))
    y_mean = x_mean - mean_difference
    variances = jnp.maximum(squares - x_mean**2 - y_mean**2, 0)
    of_difference = jnp.clip(squared_difference - mean_difference**2, 0, 2 * variances)  # rounding aside
    luminance_error = mean_difference**2 / ((x_mean + center) ** 2 + (y_mean + center) ** 2 + 0.01**2)
    structure_error = of_difference / (variances + 0.03**2)
    error = luminance_error + structure_error - luminance_error * structure_error
    return error.mean((1, 2, 3)), _repeat_edges(_repeat_edges(error.mean(1), 1), 2)


def _repeat_edges(maps, axis):
    """Adds the outermost row or column as often as windows lack there; a converter to ONNX gets jnp.pad wrong."""
    first, last = (
        jnp.repeat(lax.slice_in_dim(maps, i, i + 1, axis=axis), SSIM_WINDOW // 2, axis)
        for i in (0, maps.shape[axis] - 1)
    )
    return jnp.concatenate([first, maps, last], axis)


def _window_sums(planes: Float[Array, "*n h w"]) -> Float[Array, "*n h-10 w-10"]:
    """Filters with SSIM's window as sums of shifted images, along rows and then along columns."""
    if is_plain():  # onnxruntime fuses no sums, and has fast matrix products
        rows, columns = map(_band, planes.shape[-2:])
        return jnp.matmul(jnp.matmul(rows, planes, precision="highest"), columns.T, precision="highest")
    height, width = (length - SSIM_WINDOW + 1 for length in planes.shape[-2:])
    weights = list(enumerate(_window()))
    rows = jnp.asarray(sum(weight * planes[..., i : i + height, :] for i, weight in weights))
    return jnp.asarray(sum(weight * rows[..., i : i + width] for i, weight in weights))


def _gaussian_blur(image: Float[Array, "b h w c"]) -> Float[Array, "b h-10 w-10 c"]:
    """Filters with SSIM's window; on CPUs as two banded matrix products, 13 times as fast as dm-pix's filter.

    On accelerators sums of shifted images read and write a third as much, without matrix products to autotune.
    """
    if jax.default_backend() != "cpu":
        # Without the barrier XLA fuses the sums into the gradient and compiles for seconds.
        planes = lax.optimization_barrier(jnp.moveaxis(image, -1, 1))
        return jnp.moveaxis(_window_sums(planes), 1, -1)
    rows, columns = (jnp.asarray(_band(size), image.dtype) for size in image.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bijc", rows, image, columns, precision="highest")


@functools.cache
def _band(size: int) -> Float[np.ndarray, "rows size"]:
    """The matrix that filters along an axis of `size` pixels."""
    band = np.zeros((size - SSIM_WINDOW + 1, size), np.float32)
    for row in range(len(band)):
        band[row, row : row + SSIM_WINDOW] = _window()
    return band


@functools.cache
def _window() -> tuple[float, ...]:
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    return tuple((weights / weights.sum()).tolist())
