"""Building blocks that the detectors share: fast strided convolutions, attention, trunks.

Pictures are NHWC. Every module is called with `train`: True normalises by the batch's own
statistics and collects them, False normalises by the collected ones.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# The axis that train steps are mapped over: statistics are those of the batch on all devices.
BATCH_AXIS = "batch"

# Momentum 0: the collection holds the last batch's statistics and nothing older. No inference uses
# them; detector.estimate_statistics averages them over the training pictures first.
BatchNorm = partial(nn.BatchNorm, momentum=0.0, epsilon=1e-5, axis_name=BATCH_AXIS)

leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)

_NHWC = ("NHWC", "HWIO", "NHWC")


# --- 4x4 convolutions of stride 2, and their adjoints ---------------------------------------------
#
# Each is the other's input gradient. Left to automatic differentiation XLA:CPU takes the weight
# gradient of a transposed convolution with a reversed window, for which it has no fast kernel: 30
# to 50 times slower than the same numbers taken as the adjoint's weight gradient, as here.


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
    if jax.default_backend() == "cpu":
        return _kernel_gradient_by_phases(image, code)
    _, transpose = jax.vjp(
        lambda k: lax.conv_general_dilated(image, k, (2, 2), [(1, 1)] * 2, dimension_numbers=_NHWC),
        kernel,
    )
    return transpose(code)[0]


def _kernel_gradient_by_phases(image, code):
    """Four matrix products. With 2x2 pixels folded into channels the convolution is one of 2x2 and
    stride 1, and each of its four taps meets the whole code.

    Against XLA:CPU's own kernel, 2 cores, batch 32: 90 ms for 435 at 64 -> 32 channels from 32x32,
    0.5 to 1.5 times as long at the other sizes of the detectors.
    """
    batch, height, width, depth = code.shape
    channels = image.shape[-1]
    folded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    folded = folded.reshape(batch, height + 1, 2, width + 1, 2, channels).swapaxes(2, 3)
    folded = folded.reshape(batch, height + 1, width + 1, 4 * channels)
    taps = [
        jnp.einsum("bhwc,bhwd->cd", folded[:, i : i + height, j : j + width], code)
        for i in (0, 1)
        for j in (0, 1)
    ]
    taps = jnp.stack(taps).reshape(2, 2, 2, 2, channels, depth)  # i, j, p, q, c, d
    return taps.swapaxes(1, 2).reshape(4, 4, channels, depth)


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


class Downsample(nn.Module):
    """4x4 convolution of stride 2: [b, h, w, c] -> [b, h/2, w/2, features]."""

    features: int
    use_bias: bool = True
    dtype: jnp.dtype | None = None
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 d"]:
        kernel = self.param("kernel", self.kernel_init, (4, 4, image.shape[-1], self.features))
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
    # Each output pixel sums 2x2 of the 4x4 kernel over d: a quarter of the fan that init sees.
    kernel_init: Callable = nn.initializers.variance_scaling(
        4.0, "fan_in", "truncated_normal", in_axis=-1, out_axis=-2
    )

    @nn.compact
    def __call__(self, code: Float[Array, "b h w d"]) -> Float[Array, "b 2*h 2*w c"]:
        kernel = self.param("kernel", self.kernel_init, (4, 4, self.features, code.shape[-1]))
        bias = (
            self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        )
        code, kernel, bias = nn.dtypes.promote_dtype(code, kernel, bias, dtype=self.dtype)
        image = upsample(code, kernel)
        return image if bias is None else image + bias


# --- attention and residuals ----------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    """Channel attention: global average pool, two dense layers, multiply (Hu et al. 2018, Sec. 3).

    ratio: the channels are squeezed by this factor between the two layers.
    """

    ratio: int = 16
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, features: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = features.shape[-1]
        squeezed = features.mean((1, 2))
        squeezed = nn.relu(nn.Dense(max(1, channels // self.ratio), dtype=self.dtype)(squeezed))
        gate = nn.sigmoid(nn.Dense(channels, dtype=self.dtype)(squeezed))
        return features * gate[:, None, None, :]


class EncoderStage(nn.Module):
    """Halves the picture: strided convolution, BatchNorm, LeakyReLU, SE.

    se_ratio: squeeze-and-excitation's ratio; 0 leaves it out.
    """

    features: int
    se_ratio: int = 0
    normalise: bool = True
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h/2 w/2 d"]:
        x = Downsample(self.features, use_bias=not self.normalise, dtype=self.dtype)(x)
        if self.normalise:
            x = BatchNorm(use_running_average=not train, dtype=self.dtype)(x)
        x = leaky_relu(x)
        return SqueezeExcite(self.se_ratio, dtype=self.dtype)(x) if self.se_ratio else x


class DecoderStage(nn.Module):
    """Doubles the picture: transposed convolution, BatchNorm, LeakyReLU, SE, residual Add.

    se_ratio: squeeze-and-excitation's ratio; 0 leaves it out.
    residual: add the stage's input, projected to its width and enlarged, to its output.
    """

    features: int
    se_ratio: int = 0
    residual: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b 2*h 2*w c"]:
        y = Upsample(self.features, use_bias=False, dtype=self.dtype)(x)
        y = leaky_relu(BatchNorm(use_running_average=not train, dtype=self.dtype)(y))
        if self.se_ratio:
            y = SqueezeExcite(self.se_ratio, dtype=self.dtype)(y)
        if self.residual:
            # Projected before it is enlarged: the same numbers as after, at a quarter of the cost.
            skip = nn.Dense(self.features, use_bias=False, dtype=self.dtype)(x)
            y = y + skip.repeat(2, axis=1).repeat(2, axis=2)
        return y


# --- trunks ---------------------------------------------------------------------------------------


class ConvEncoder(nn.Module):
    """Picture to code: one stage a width, then flatten or average over positions, then dense.

    pool: "flatten" keeps where things are; "average" is global average pooling.
    """

    latent: int
    widths: tuple[int, ...]
    se_ratio: int = 0
    pool: str = "flatten"
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"], train: bool) -> Float[Array, "b z"]:
        x = image
        for width in self.widths:
            x = EncoderStage(width, self.se_ratio, dtype=self.dtype)(x, train)
        x = x.mean((1, 2)) if self.pool == "average" else x.reshape(len(x), -1)
        return nn.Dense(self.latent, dtype=self.dtype)(x).astype(jnp.float32)


class ConvDecoder(nn.Module):
    """Code to picture in [0, 1]: dense to a small map, one stage a width, a last layer, sigmoid.

    shape: (height, width, channels) of the picture.
    base: channels of the small map.
    widths: one doubling stage each, then, if `last` is "upsample", a last doubling to the
        picture's channels; with "conv", a 3x3 convolution to them at full size.
    """

    shape: tuple[int, int, int]
    base: int
    widths: tuple[int, ...]
    se_ratio: int = 0
    residual: bool = False
    last: str = "upsample"
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, code: Float[Array, "b z"], train: bool) -> Float[Array, "b h w c"]:
        height, width, channels = self.shape
        scale = 2 ** (len(self.widths) + (self.last == "upsample"))
        x = nn.Dense(height // scale * (width // scale) * self.base, dtype=self.dtype)(code)
        x = x.reshape(-1, height // scale, width // scale, self.base)
        x = leaky_relu(BatchNorm(use_running_average=not train, dtype=self.dtype)(x))
        for features in self.widths:
            x = DecoderStage(features, self.se_ratio, self.residual, dtype=self.dtype)(x, train)
        if self.last == "upsample":
            x = Upsample(channels, dtype=self.dtype)(x)
        else:
            x = nn.Conv(channels, (3, 3), dtype=self.dtype)(x)
        return nn.sigmoid(x.astype(jnp.float32))


class JointDiscriminator(nn.Module):
    """D(x, z): does a picture and its code belong together? One logit a pair.

    Flattened picture features beside a dense layer's of the code, then dense (Donahue et al. 2016,
    Sec. 3; the paper, Sec. III). Returns (logits [b], the last hidden layer [b, hidden]).
    """

    widths: tuple[int, ...]
    hidden: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w c"], code: Float[Array, "b z"], train: bool
    ) -> tuple[Float[Array, "b"], Float[Array, "b d"]]:
        x = image
        for index, width in enumerate(self.widths):
            x = EncoderStage(width, normalise=index > 0, dtype=self.dtype)(x, train)
        z = leaky_relu(nn.Dense(self.hidden, dtype=self.dtype)(code))
        joint = jnp.concatenate([x.reshape(len(x), -1), z], axis=-1)
        features = leaky_relu(nn.Dense(self.hidden, dtype=self.dtype)(joint))
        logit = nn.Dense(1, dtype=self.dtype)(features)
        return logit[:, 0].astype(jnp.float32), features.astype(jnp.float32)


# --- DCGAN (Radford et al. 2016, Sec. 3 and 4) ----------------------------------------------------

_dcgan_kernel = nn.initializers.normal(0.02)


def _dcgan_scale(key, shape, dtype=jnp.float32):
    return 1 + _dcgan_kernel(key, shape, dtype)


class DCGANEncoder(nn.Module):
    """Picture to `features` numbers; a discriminator where that is one logit.

    4x4 convolutions of stride 2 with LeakyReLU, BatchNorm on all but the first, then dense. Weights
    start from N(0, 0.02). Returns (code [b, features], the last convolution's map [b, h, w, c]).

    use_bias: in the layers that no BatchNorm follows.
    """

    features: int
    widths: tuple[int, ...]
    use_bias: bool = True
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w c"], train: bool
    ) -> tuple[Float[Array, "b z"], Float[Array, "b i j d"]]:
        norm = partial(BatchNorm, use_running_average=not train, scale_init=_dcgan_scale)
        x = image
        for index, width in enumerate(self.widths):
            use_bias = self.use_bias and not index
            x = Downsample(width, use_bias, self.dtype, _dcgan_kernel)(x)
            x = leaky_relu(norm(dtype=self.dtype)(x) if index else x)
        dense = nn.Dense(self.features, self.use_bias, self.dtype, kernel_init=_dcgan_kernel)
        return dense(x.reshape(len(x), -1)).astype(jnp.float32), x.astype(jnp.float32)


class DCGANGenerator(nn.Module):
    """Code to picture in [-1, 1]: dense, 4x4 transposed convolutions with BatchNorm and ReLU, tanh.

    shape: (height, width, channels) of the picture.
    widths: of the small map and of each doubling but the last, which ends in the picture.
    use_bias: in the last layer.
    """

    shape: tuple[int, int, int]
    widths: tuple[int, ...]
    use_bias: bool = True
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, code: Float[Array, "b z"], train: bool) -> Float[Array, "b h w c"]:
        norm = partial(BatchNorm, use_running_average=not train, scale_init=_dcgan_scale)
        height, width = (side // 2 ** len(self.widths) for side in self.shape[:2])
        size = height * width * self.widths[0]
        x = nn.Dense(size, use_bias=False, dtype=self.dtype, kernel_init=_dcgan_kernel)(code)
        x = x.reshape(-1, height, width, self.widths[0])
        for features in self.widths[1:]:
            x = nn.relu(norm(dtype=self.dtype)(x))
            x = Upsample(features, False, self.dtype, _dcgan_kernel)(x)
        x = nn.relu(norm(dtype=self.dtype)(x))
        x = Upsample(self.shape[2], self.use_bias, self.dtype, _dcgan_kernel)(x)
        return nn.tanh(x.astype(jnp.float32))
