"""4x4 convolutions of stride 2 and their adjoints, in the forms in which XLA:CPU is fast.

Each is the other's input gradient. Left to automatic differentiation XLA:CPU takes the weight
gradient of a transposed convolution with a reversed window, for which it has no fast kernel: 30 to
50 times slower than the same numbers taken as the adjoint's weight gradient, as here.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_NHWC = ("NHWC", "HWIO", "NHWC")


@jax.custom_vjp
def downsample(
    image: Float[Array, "b h w c"], kernel: Float[Array, "4 4 c d"]
) -> Float[Array, "b h/2 w/2 d"]:
    """Convolution with stride 2 and one pixel of zero padding. `h` and `w` are even."""
    return lax.conv_general_dilated(image, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=_NHWC)


@jax.custom_vjp
def upsample(
    code: Float[Array, "b h w d"], kernel: Float[Array, "4 4 c d"]
) -> Float[Array, "b 2*h 2*w c"]:
    """The adjoint of `downsample`: flax's ConvTranspose with transpose_kernel=True, "SAME"."""
    if jax.default_backend() == "cpu":
        return _upsample_by_phases(code, kernel)
    transposed = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return lax.conv_general_dilated(
        code, transposed, (1, 1), [(2, 2)] * 2, lhs_dilation=(2, 2), dimension_numbers=_NHWC
    )


def _upsample_by_phases(code, kernel):
    """Output pixels of even and odd rows and columns are four 2x2 convolutions of the code.

    Row 2i+p gets rows i-1+p and i+p of the code, through rows 3-p and 1-p of the kernel.
    """
    batch, height, width, _ = code.shape
    channels = kernel.shape[2]
    phases = kernel[::-1, ::-1].reshape(2, 2, 2, 2, channels, -1)  # a p, b q, c, d
    phases = phases.transpose(0, 2, 5, 1, 3, 4).reshape(2, 2, -1, 4 * channels)
    grid = lax.conv_general_dilated(code, phases, (1, 1), [(1, 1)] * 2, dimension_numbers=_NHWC)
    grid = grid.reshape(batch, height + 1, width + 1, 2, 2, channels)
    rows = jnp.stack([grid[:, p : p + height, :, p] for p in (0, 1)], 2)
    image = jnp.stack([rows[:, :, :, q : q + width, q] for q in (0, 1)], 4)
    return image.reshape(batch, 2 * height, 2 * width, channels)


def _kernel_gradient(image, kernel, code):
    """The strided convolution's, of both. XLA:CPU (of JAX 0.10) hands it to YNNPACK whole, which
    takes a CAE's step of 32 pictures of 128x128 from 586 to 406 ms on two cores, against four
    matrix products of the picture's phases that have to be transposed first."""
    _, transpose = jax.vjp(
        lambda k: lax.conv_general_dilated(image, k, (2, 2), [(1, 1)] * 2, dimension_numbers=_NHWC),
        kernel,
    )
    return transpose(code)[0]


def _downsample_forward(image, kernel):
    return downsample(image, kernel), (image, kernel)


def _downsample_backward(saved, code):
    image, kernel = saved
    return upsample(code, kernel), _kernel_gradient(image, kernel, code)


def _upsample_forward(code, kernel):
    return upsample(code, kernel), (code, kernel)


def _upsample_backward(saved, image):
    code, kernel = saved
    return downsample(image, kernel), _kernel_gradient(image, kernel, code)


downsample.defvjp(_downsample_forward, _downsample_backward)
upsample.defvjp(_upsample_forward, _upsample_backward)


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
