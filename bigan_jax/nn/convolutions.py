"""4x4 convolutions of stride 2 and their adjoints, and 3x3 and 1x1 ones, in fast implementations.

A convolution, its adjoint and its kernel gradient are each other's derivatives, and all derivatives here are defined
that way: on CPUs, XLA's weight gradient of a transposed convolution is 30 to 50 times slower than that of the adjoint,
and its own weight gradient of a convolution is slow on some too (docs/development/speed-cpu.md). On a GPU, cuDNN's
kernels are the fastest, except for images, whose few channels they pad (docs/development/speed-gpu.md).
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bigan_jax.nn import winograd

AnyArray = Array | np.ndarray  # cotangents may be NumPy arrays
_NHWC = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
def downsample(image: Float[AnyArray, "b h w c"], kernel: Float[AnyArray, "4 4 c d"]) -> Float[Array, "b h/2 w/2 d"]:
    """Convolution with stride 2 and one pixel of zero padding. `h` and `w` are even."""
    channels, depth = kernel.shape[2:]
    use_grid = min(4 * channels, depth) <= _GRID_CHANNELS if _on_cpu() else _is_at_image(kernel)
    return (_space_to_depth_downsample if use_grid else _direct_downsample)(image, kernel)


@jax.custom_vjp
def upsample(code: Float[AnyArray, "b h w d"], kernel: Float[AnyArray, "4 4 c d"]) -> Float[Array, "b 2*h 2*w c"]:
    """The adjoint of `downsample`: Flax's ConvTranspose with transpose_kernel=True and "SAME"."""
    use_grid = _on_cpu() or _is_at_image(kernel)
    return (_space_to_depth_upsample if use_grid else _direct_upsample)(code, kernel)


@jax.custom_vjp
def _kernel_gradient(image, code):
    """Kernel gradient of both: [b, h, w, c] and [b, h/2, w/2, d] -> [4, 4, c, d]."""
    use_grid = _on_cpu() or _few_channels(image, code)
    return (_space_to_depth_kernel_gradient if use_grid else _direct_kernel_gradient)(image, code)


@jax.custom_vjp
def same(image: Float[AnyArray, "b h w c"], kernel: Float[AnyArray, "3 3 c d"]) -> Float[Array, "b h w d"]:
    """Convolution with stride 1 and one pixel of zero padding."""
    if _on_cpu():
        return (_winograd if winograd.is_faster(image, kernel) else _direct_same)(image, kernel)
    return (_same_by_product if _is_at_image(kernel) else _direct_same)(image, kernel)


@jax.custom_vjp
def _same_adjoint(code, kernel):
    """[b, h, w, d] and [3, 3, c, d] -> [b, h, w, c]"""
    if _on_cpu() or _is_at_image(kernel):
        return same(code, flip_kernel(kernel))
    return _direct_same_adjoint(code, kernel)


@jax.custom_vjp
def _same_kernel_gradient(image, code):
    """[b, h, w, c] and [b, h, w, d] -> [3, 3, c, d]"""
    if _on_cpu():
        return _same_kernel_gradient_by_rows(image, code)
    return (_image_kernel_gradient if _few_channels(image, code) else _direct_same_kernel_gradient)(image, code)


def _derive(forward, adjoint, kernel_gradient):
    """Defines the derivatives of each of the three by the other two."""
    forward.defvjp(
        lambda x, kernel: (forward(x, kernel), (x, kernel)),
        lambda saved, code: (adjoint(code, saved[1]), kernel_gradient(saved[0], code)),
    )
    adjoint.defvjp(
        lambda code, kernel: (adjoint(code, kernel), (code, kernel)),
        lambda saved, x: (forward(x, saved[1]), kernel_gradient(x, saved[0])),
    )
    kernel_gradient.defvjp(
        lambda x, code: (kernel_gradient(x, code), (x, code)),
        lambda saved, kernel: (adjoint(saved[1], kernel), forward(saved[0], kernel)),
    )


_derive(downsample, upsample, _kernel_gradient)
_derive(same, _same_adjoint, _same_kernel_gradient)


PLAIN = "plain"
_target = ContextVar("target", default="")


@contextmanager
def traced_for(target: str) -> Iterator[None]:
    """Lets functions that are traced in the context be for another platform than that of this process.

    Args:
      target: "cpu", another platform of JAX, or PLAIN: for converters to ONNX, without derivatives and vmap over
        seeds, which they do not know.
    """
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


def is_plain() -> bool:
    """Returns whether the target is PLAIN."""
    return _target.get() == PLAIN


def _on_cpu():
    return (_target.get() or jax.default_backend()) == "cpu"


def _is_at_image(kernel):
    """Whether the input or the output has the channels of an image."""
    return min(kernel.shape[2:]) <= 3


def _few_channels(image, code):
    return min(image.shape[-1], code.shape[-1]) <= 3


# --- XLA's convolutions ---------------------------------------------------------------------------


def _one_seed_at_a_time(convolve):
    """Makes vmap over seeds, each with its own kernel, a loop.

    XLA would make it a grouped convolution: for five seeds that took 6.8 times as long as for one on an H200.
    """
    single = custom_vmap(convolve)

    @single.def_vmap
    def vectorized(seeds, mapped, *arguments):
        if seeds > 1 and not all(mapped):  # VGG16's kernels are shared: one convolution of all images
            return jax.vmap(convolve, [0 if x else None for x in mapped])(*arguments), True
        pairs = list(zip(arguments, mapped, strict=True))
        return jnp.stack([single(*(x[seed] if m else x for x, m in pairs)) for seed in range(seeds)]), True

    return single


def _convolution(image, kernel, stride):
    return lax.conv_general_dilated(image, kernel, (stride,) * 2, [(1, 1)] * 2, dimension_numbers=_NHWC)


def _adjoint(code, kernel, stride):
    batch, height, width, _ = code.shape
    shape = batch, stride * height, stride * width, kernel.shape[2]
    image = jax.ShapeDtypeStruct(shape, code.dtype)
    return jax.linear_transpose(lambda x: _convolution(x, kernel, stride), image)(code)[0]


def _gradient(image, code, stride, size):
    shape = size, size, image.shape[-1], code.shape[-1]
    kernel = jax.ShapeDtypeStruct(shape, code.dtype)
    return jax.linear_transpose(lambda x: _convolution(image, x, stride), kernel)(code)[0]


_direct_downsample = _one_seed_at_a_time(partial(_convolution, stride=2))
_direct_upsample = _one_seed_at_a_time(partial(_adjoint, stride=2))
_direct_kernel_gradient = _one_seed_at_a_time(partial(_gradient, stride=2, size=4))
_winograd = _one_seed_at_a_time(winograd.convolve)
_direct_same = _one_seed_at_a_time(partial(_convolution, stride=1))
_direct_same_adjoint = _one_seed_at_a_time(partial(_adjoint, stride=1))
_direct_same_kernel_gradient = _one_seed_at_a_time(partial(_gradient, stride=1, size=3))


def _plain_upsample(code, kernel):
    """On the grid (see below): onnxruntime's transposed convolution takes twice the time."""
    return _grid_to_image(_convolution(code, flip_kernel(_taps(kernel)), 1), kernel.shape[2])


_PLAIN = {downsample: partial(_convolution, stride=2), upsample: _plain_upsample, same: partial(_convolution, stride=1)}


def _for_target(convolution):
    return _PLAIN[convolution] if is_plain() else convolution


# --- space to depth -------------------------------------------------------------------------------
# Each 2x2 pixels of a padded image become one pixel with four times the channels. On that grid the convolution is one
# of 2x2 and stride 1: the taps of a pixel of the code are the grid pixels at the offsets (0, 0), (0, 1), (1, 0) and
# (1, 1).

_TAPS = (0, 0), (0, 1), (1, 0), (1, 1)
_GRID_CHANNELS = 64  # of code or grid: above, XLA's own strided convolution is as fast


def _space_to_depth_downsample(image, kernel):
    grid, taps = _grid(image), _taps(kernel)
    if grid.shape[-1] < kernel.shape[-1]:
        return jnp.concatenate([_shift_grid(grid, tap) for tap in _TAPS], -1) @ taps.reshape(-1, kernel.shape[-1])
    parts = jnp.einsum("bhwc,ijcd->bhwijd", grid, taps)
    return _sum_in_float32(_shift_grid(parts[:, :, :, *tap], tap) for tap in _TAPS)


def _space_to_depth_upsample(code, kernel):
    channels, taps = kernel.shape[2], _taps(kernel)
    if 4 * channels < code.shape[-1]:
        parts = jnp.einsum("bhwd,ijcd->bhwijc", code, taps)
        grid = _sum_in_float32(_shift_code(parts[:, :, :, *tap], tap) for tap in _TAPS)
    else:
        grid = _direct_same(code, flip_kernel(taps))
    return _grid_to_image(grid, channels)


def _grid_to_image(grid, channels):
    batch, height, width, _ = grid.shape
    image = grid.reshape(batch, height, width, 2, 2, channels).swapaxes(2, 3)
    return image.reshape(batch, 2 * height, 2 * width, channels)[:, 1:-1, 1:-1]


def _space_to_depth_kernel_gradient(image, code):
    """One matrix product; the grid or the code, whichever has fewer channels, is copied per tap."""
    grid, depth = _grid(image), code.shape[-1]
    if grid.shape[-1] < depth:
        taps = _product(jnp.concatenate([_shift_grid(grid, tap) for tap in _TAPS], -1), code)
    else:
        taps = _product(grid, jnp.concatenate([_shift_code(code, tap) for tap in _TAPS], -1))
        taps = taps.reshape(-1, 4, depth).swapaxes(0, 1)
    taps = taps.reshape(2, 2, 2, 2, -1, depth)
    return taps.swapaxes(1, 2).reshape(4, 4, -1, depth)


def _grid(image):
    """[b, h, w, c] -> [b, h/2 + 1, w/2 + 1, 4 * c]"""
    batch, height, width, channels = image.shape
    rows, columns = height // 2 + 1, width // 2 + 1
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    cells = padded.reshape(batch, rows, 2, columns, 2, channels).swapaxes(2, 3)
    return cells.reshape(batch, rows, columns, 4 * channels)


def _taps(kernel):
    """[4, 4, c, d] -> [2, 2, 4 * c, d]"""
    channels, depth = kernel.shape[2:]
    taps = kernel.reshape(2, 2, 2, 2, channels, depth).swapaxes(1, 2)
    return taps.reshape(2, 2, 4 * channels, depth)


def _shift_grid(grid, tap):
    """Returns the grid pixels at one tap of each pixel of the code."""
    rows, columns = (slice(n, n + size - 1) for n, size in zip(tap, grid.shape[1:3], strict=True))
    return grid[:, rows, columns]


def _sum_in_float32(parts):
    """Sums in at least float32, as convolutions do."""
    parts = list(parts)
    dtype = parts[0].dtype
    return jnp.asarray(sum(x.astype(jnp.promote_types(dtype, jnp.float32)) for x in parts)).astype(dtype)


def _product(a, b):
    """Sums products over all pixels: [..., c] and [..., d] -> [c, d]."""
    return a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1])


def _shift_code(code, tap):
    """Moves each pixel of the code to the position of its tap on the grid."""
    return jnp.pad(code, ((0, 0), *((n, 1 - n) for n in tap), (0, 0)))


# --- stride 1 -------------------------------------------------------------------------------------


def _same_by_product(image, kernel):
    """A matrix product; the side with fewer channels is copied for each tap or summed over taps."""
    depth = kernel.shape[-1]
    if image.shape[-1] <= depth:
        return _around(image) @ kernel.reshape(-1, depth)
    parts = jnp.einsum("bhwc,ijcd->bhwijd", image, kernel)
    taps = itertools.product(range(3), repeat=2)
    return _sum_in_float32(_neighbors(_neighbors(parts[:, :, :, i, j], 1, [i]), 2, [j]) for i, j in taps)


def flip_kernel(kernel: Float[AnyArray, "n n c d"]) -> Float[Array, "n n d c"]:
    """Returns the kernel with which `same` is the adjoint of `same` with this kernel."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def _same_kernel_gradient_by_rows(image, code):
    """One matrix product of the image, shifted per kernel column, and the code, shifted per row.

    Shifting only one of the two would copy it nine times.
    """
    channels, depth = image.shape[-1], code.shape[-1]
    taps = _product(_neighbors(image, 2, (0, 1, 2)), _neighbors(code, 1, (2, 1, 0)))
    return taps.reshape(3, channels, 3, depth).transpose(2, 0, 1, 3)


def _image_kernel_gradient(image, code):
    """One matrix product; the side with the channels of an image is copied nine times."""
    channels, depth = image.shape[-1], code.shape[-1]
    if channels <= depth:
        return _product(_around(image), code).reshape(3, 3, channels, depth)
    taps = _product(image, _around(code, (2, 1, 0)))
    return taps.reshape(channels, 3, 3, depth).transpose(1, 2, 0, 3)


def _around(x, offsets=(0, 1, 2)):
    """The 3x3 neighbors of each pixel, by rows: [b, h, w, c] -> [b, h, w, 9 * c]."""
    return _neighbors(_neighbors(x, 2, offsets), 1, offsets)


def _neighbors(x, axis, offsets):
    """Concatenates neighbors along an axis: 0 is the previous pixel, 1 the pixel, 2 the next."""
    padded = jnp.pad(x, [(int(i == axis),) * 2 for i in range(4)])
    return jnp.concatenate([lax.slice_in_dim(padded, n, n + x.shape[axis], axis=axis) for n in offsets], -1)


# --- layers ---------------------------------------------------------------------------------------

Initializer = Callable[..., Array]

_lecun = nn.initializers.lecun_normal()
# Each output pixel sums 2x2 of the 4x4 kernel over d: a quarter of the fan-in of the initializer.
_adjoint_lecun = nn.initializers.variance_scaling(4.0, "fan_in", "truncated_normal", in_axis=-1, out_axis=-2)


class _Resampling(nn.Module):
    features: int
    use_bias: bool = True
    dtype: DTypeLike | None = None
    kernel_init: Initializer | None = None  # LeCun's by default

    def _convolve(self, convolution, x, shape, default_init):
        kernel = self.param("kernel", self.kernel_init or default_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = _for_target(convolution)(x, kernel)
        return y if bias is None else y + bias


class Downsample(_Resampling):
    """4x4 convolution of stride 2: [b, h, w, c] -> [b, h/2, w/2, features]."""

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 d"]:
        return self._convolve(downsample, image, (4, 4, image.shape[-1], self.features), _lecun)


class Upsample(_Resampling):
    """4x4 transposed convolution of stride 2: [b, h, w, d] -> [b, 2h, 2w, features].

    The kernel [4, 4, features, d] is that of the convolution whose adjoint this is.
    """

    @nn.compact
    def __call__(self, code: Float[Array, "b h w d"]) -> Float[Array, "b 2*h 2*w c"]:
        return self._convolve(upsample, code, (4, 4, self.features, code.shape[-1]), _adjoint_lecun)


def conv3x3(features: int, dtype: DTypeLike | None = None, name: str | None = None) -> nn.Conv:
    """3x3 convolution of stride 1: [b, h, w, c] -> [b, h, w, features]."""
    return nn.Conv(features, (3, 3), dtype=dtype, name=name, conv_general_dilated=_same_for_flax)


def conv1x1(features: int, dtype: DTypeLike | None = None) -> nn.Conv:
    """1x1 convolution: [b, h, w, c] -> [b, h, w, features]."""
    return nn.Conv(features, (1, 1), dtype=dtype, conv_general_dilated=_product_for_flax)


def _same_for_flax(image, kernel, *_, **__):
    return _for_target(same)(image, kernel)


def _product_for_flax(image, kernel, *_, **__):
    # One product over all pixels: JAX 0.12 sums a kernel gradient over four axes in bfloat16.
    channels, depth = kernel.shape[2:]
    return (image.reshape(-1, channels) @ kernel[0, 0]).reshape(*image.shape[:-1], depth)
