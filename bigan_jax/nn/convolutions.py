"""4x4 convolutions of stride 2 and their adjoints, 3x3 and 1x1 ones, in the forms in which XLA is
fast.

A convolution, its adjoint and its kernel's gradient are each other's derivatives: what of three
things is given two makes the third. Left to automatic differentiation XLA:CPU takes the weight
gradient of a transposed convolution with a reversed window, for which it has no fast kernel: 30 to
50 times slower than the same numbers taken as the adjoint's weight gradient, as here. Nor is its
own weight gradient of a convolution fast on every processor: docs/cpu.md has times. On a GPU
cuDNN's kernels are the fastest, but for pictures, whose few channels they pad: docs/gpu.md.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

_NHWC = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
def downsample(
    image: Float[Array, "b h w c"], kernel: Float[Array, "4 4 c d"]
) -> Float[Array, "b h/2 w/2 d"]:
    """Convolution with stride 2 and one pixel of zero padding. `h` and `w` are even."""
    channels, depth = kernel.shape[2:]
    by_grid = min(4 * channels, depth) <= _SLOW if _on_cpu() else _sees_picture(kernel)
    return (_space_to_depth_downsample if by_grid else _direct_downsample)(image, kernel)


@jax.custom_vjp
def upsample(
    code: Float[Array, "b h w d"], kernel: Float[Array, "4 4 c d"]
) -> Float[Array, "b 2*h 2*w c"]:
    """The adjoint of `downsample`: flax's ConvTranspose with transpose_kernel=True, "SAME"."""
    by_grid = _on_cpu() or _sees_picture(kernel)
    return (_space_to_depth_upsample if by_grid else _direct_upsample)(code, kernel)


@jax.custom_vjp
def _kernel_gradient(image, code):
    """[b, h, w, c] and [b, h/2, w/2, d] -> [4, 4, c, d]: of `downsample`, and of `upsample`."""
    by_grid = _on_cpu() or _few(image, code)
    return (_space_to_depth_kernel_gradient if by_grid else _direct_kernel_gradient)(image, code)


@jax.custom_vjp
def same(
    image: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b h w d"]:
    """Convolution with stride 1 and one pixel of zero padding."""
    if _on_cpu() or not _sees_picture(kernel):
        return _direct_same(image, kernel)
    return _same_by_product(image, kernel)


@jax.custom_vjp
def _same_adjoint(code, kernel):
    """[b, h, w, d] and [3, 3, c, d] -> [b, h, w, c]"""
    if _on_cpu() or _sees_picture(kernel):
        return same(code, flip_kernel(kernel))
    return _direct_same_adjoint(code, kernel)


@jax.custom_vjp
def _same_kernel_gradient(image, code):
    """[b, h, w, c] and [b, h, w, d] -> [3, 3, c, d]"""
    if _on_cpu():
        return _same_kernel_gradient_by_rows(image, code)
    few = _few(image, code)
    return (_picture_kernel_gradient if few else _direct_same_kernel_gradient)(image, code)


def _derive(forward, adjoint, kernel_gradient):
    """Makes each of the three the derivative of the others."""
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


def _on_cpu():
    return jax.default_backend() == "cpu"


def _sees_picture(kernel):
    """Whether what goes in or comes out has the channels of a picture."""
    return min(kernel.shape[2:]) <= 3


def _few(image, code):
    return min(image.shape[-1], code.shape[-1]) <= 3


# --- as XLA has them ------------------------------------------------------------------------------


def _one_seed_at_a_time(convolve):
    """Of several seeds side by side, each with a kernel of its own, one after the other. As one it
    would be a grouped convolution: five seeds took 6.8 times as long as one on an H200."""
    alone = custom_vmap(convolve)

    @alone.def_vmap
    def abreast(seeds, mapped, *arguments):
        if seeds > 1 and not all(mapped):  # as VGG16's: one convolution of all their pictures
            return jax.vmap(convolve, [0 if x else None for x in mapped])(*arguments), True
        each = [
            alone(*(x[seed] if m else x for x, m in zip(arguments, mapped, strict=True)))
            for seed in range(seeds)
        ]
        return jnp.stack(each), True

    return alone


def _convolution(image, kernel, stride):
    strides, padding = (stride, stride), [(1, 1)] * 2
    return lax.conv_general_dilated(image, kernel, strides, padding, dimension_numbers=_NHWC)


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
_direct_same = _one_seed_at_a_time(partial(_convolution, stride=1))
_direct_same_adjoint = _one_seed_at_a_time(partial(_adjoint, stride=1))
_direct_same_kernel_gradient = _one_seed_at_a_time(partial(_gradient, stride=1, size=3))


# --- by the grid ----------------------------------------------------------------------------------
# Of a padded image each 2x2 pixels become one of four times the channels. On that grid the
# convolution is one of 2x2 and stride 1: a pixel of the code sees its taps, grid pixels (0, 0),
# (0, 1), (1, 0) and (1, 1) further on.

_TAPS = (0, 0), (0, 1), (1, 0), (1, 1)
_SLOW = 64  # channels, of code or grid: above, XLA's own strided convolution is as fast


def _space_to_depth_downsample(image, kernel):
    grid, taps = _grid(image), _taps(kernel)
    if grid.shape[-1] < kernel.shape[-1]:
        seen = [_seen(grid, tap) for tap in _TAPS]
        return jnp.concatenate(seen, -1) @ taps.reshape(-1, kernel.shape[-1])
    parts = jnp.einsum("bhwc,ijcd->bhwijd", grid, taps)
    return _summed(_seen(parts[:, :, :, *tap], tap) for tap in _TAPS)


def _space_to_depth_upsample(code, kernel):
    channels, taps = kernel.shape[2], _taps(kernel)
    if 4 * channels < code.shape[-1]:
        parts = jnp.einsum("bhwd,ijcd->bhwijc", code, taps)
        grid = _summed(_moved(parts[:, :, :, *tap], tap) for tap in _TAPS)
    else:
        taps = jnp.flip(taps, (0, 1)).swapaxes(2, 3)
        grid = _direct_same(code, taps)
    batch, height, width, _ = grid.shape
    image = grid.reshape(batch, height, width, 2, 2, channels).swapaxes(2, 3)
    return image.reshape(batch, 2 * height, 2 * width, channels)[:, 1:-1, 1:-1]


def _space_to_depth_kernel_gradient(image, code):
    """One matrix product; what has fewer channels, the grid or the code, is copied for each tap."""
    grid, depth = _grid(image), code.shape[-1]
    if grid.shape[-1] < depth:
        seen = [_seen(grid, tap) for tap in _TAPS]
        taps = _product(jnp.concatenate(seen, -1), code)
    else:
        moved = [_moved(code, tap) for tap in _TAPS]
        taps = _product(grid, jnp.concatenate(moved, -1))
        taps = taps.reshape(-1, 4, depth).swapaxes(0, 1)
    channels = image.shape[-1]
    taps = taps.reshape(2, 2, 2, 2, channels, depth)
    return taps.swapaxes(1, 2).reshape(4, 4, channels, depth)


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


def _seen(grid, tap):
    """What a tap of the code's pixels sees of the grid."""
    rows, columns = (slice(n, n + size - 1) for n, size in zip(tap, grid.shape[1:3], strict=True))
    return grid[:, rows, columns]


def _summed(parts):
    """In float32 at least, as a convolution sums."""
    parts = list(parts)
    dtype = parts[0].dtype
    return sum(x.astype(jnp.promote_types(dtype, jnp.float32)) for x in parts).astype(dtype)


def _product(a, b):
    """Over all pixels: [..., c] and [..., d] -> [c, d]."""
    return a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1])


def _moved(code, tap):
    """To where a tap of the code's pixels is on the grid."""
    return jnp.pad(code, ((0, 0), *((n, 1 - n) for n in tap), (0, 0)))


# --- stride 1 -------------------------------------------------------------------------------------


def _same_by_product(image, kernel):
    """What has fewer channels, image or code, is copied for each tap, or summed over them."""
    depth = kernel.shape[-1]
    if image.shape[-1] <= depth:
        return _around(image) @ kernel.reshape(-1, depth)
    parts = jnp.einsum("bhwc,ijcd->bhwijd", image, kernel)
    taps = [(i, j) for i in range(3) for j in range(3)]
    return _summed(_neighbors(_neighbors(parts[:, :, :, i, j], 1, [i]), 2, [j]) for i, j in taps)


def flip_kernel(kernel: Float[Array, "3 3 c d"]) -> Float[Array, "3 3 d c"]:
    """The kernel of `same`'s adjoint, which is a `same` too."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def _same_kernel_gradient_by_rows(image, code):
    """One matrix product: of the image, moved for each column of the kernel, and the code, moved
    for each row. Either alone would be copied nine times."""
    channels, depth = image.shape[-1], code.shape[-1]
    taps = _product(_neighbors(image, 2, (0, 1, 2)), _neighbors(code, 1, (2, 1, 0)))
    return taps.reshape(3, channels, 3, depth).transpose(2, 0, 1, 3)


def _picture_kernel_gradient(image, code):
    """The same, with what has a picture's channels copied nine times."""
    channels, depth = image.shape[-1], code.shape[-1]
    if channels <= depth:
        return _product(_around(image), code).reshape(3, 3, channels, depth)
    taps = _product(image, _around(code, (2, 1, 0)))
    return taps.reshape(channels, 3, 3, depth).transpose(1, 2, 0, 3)


def _around(x, places=(0, 1, 2)):
    """[b, h, w, c] -> [b, h, w, 9 * c], by rows."""
    return _neighbors(_neighbors(x, 2, places), 1, places)


def _neighbors(x, axis, places):
    """Of 0, the pixel before, 1, the pixel itself, and 2, the one after, those asked for."""
    padded = jnp.pad(x, [(int(i == axis),) * 2 for i in range(4)])
    size = x.shape[axis]
    moved = [lax.slice_in_dim(padded, n, n + size, axis=axis) for n in places]
    return jnp.concatenate(moved, -1)


# --- as layers ------------------------------------------------------------------------------------

Initializer = Callable[..., Array]

_lecun = nn.initializers.lecun_normal()
# Each output pixel sums 2x2 of the 4x4 kernel over d: a quarter of the fan that init sees.
_adjoint_lecun = nn.initializers.variance_scaling(
    4.0, "fan_in", "truncated_normal", in_axis=-1, out_axis=-2
)


class Downsample(nn.Module):
    """4x4 convolution of stride 2: [b, h, w, c] -> [b, h/2, w/2, features]."""

    features: int
    use_bias: bool = True
    dtype: jnp.dtype | None = None
    kernel_init: Initializer | None = None  # LeCun's

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 d"]:
        shape = (4, 4, image.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init or _lecun, shape)
        bias = (
            self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        )
        image, kernel, bias = nn.dtypes.promote_dtype(image, kernel, bias, dtype=self.dtype)
        code = downsample(image, kernel)
        return code if bias is None else code + bias


class Upsample(nn.Module):
    """4x4 transposed convolution of stride 2: [b, h, w, d] -> [b, 2h, 2w, features].

    The kernel is [4, 4, features, d], that of the convolution whose adjoint this is.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype | None = None
    kernel_init: Initializer | None = None  # LeCun's

    @nn.compact
    def __call__(self, code: Float[Array, "b h w d"]) -> Float[Array, "b 2*h 2*w c"]:
        shape = (4, 4, self.features, code.shape[-1])
        kernel = self.param("kernel", self.kernel_init or _adjoint_lecun, shape)
        bias = (
            self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        )
        code, kernel, bias = nn.dtypes.promote_dtype(code, kernel, bias, dtype=self.dtype)
        image = upsample(code, kernel)
        return image if bias is None else image + bias


def conv3x3(features: int, dtype: jnp.dtype | None = None, name: str | None = None) -> nn.Conv:
    """3x3 convolution of stride 1: [b, h, w, c] -> [b, h, w, features]."""
    return nn.Conv(features, (3, 3), dtype=dtype, name=name, conv_general_dilated=_same_for_flax)


def conv1x1(features: int, dtype: jnp.dtype | None = None) -> nn.Conv:
    """1x1 convolution: [b, h, w, c] -> [b, h, w, features]."""
    return nn.Conv(features, (1, 1), dtype=dtype, conv_general_dilated=_product_for_flax)


def _same_for_flax(image, kernel, *_, **__):
    return same(image, kernel)


def _product_for_flax(image, kernel, *_, **__):
    # Over all pixels at once: JAX 0.12 sums the kernel's gradient over four axes in bfloat16.
    channels, depth = kernel.shape[2:]
    return (image.reshape(-1, channels) @ kernel[0, 0]).reshape(*image.shape[:-1], depth)
