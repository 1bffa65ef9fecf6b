"""Building blocks of several detectors: normalization, attention, encoder and decoder stages.

Images are NHWC. Modules take `train`: with True, BatchNorm normalizes by the batch's statistics and collects them;
with False it uses the collected ones.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import random
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from bigan_jax.nn.convolutions import Downsample, Initializer, Upsample, is_plain

BATCH_AXIS = "batch"  # over which training steps are mapped: statistics are of the batch on all devices

# Momentum 0: the collection holds the last batch's statistics only. They are averaged over the training images before
# inference uses them.
BatchNorm = partial(nn.BatchNorm, momentum=0.0, epsilon=1e-5, axis_name=BATCH_AXIS)

_SLOPE = 0.2


def leaky_relu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns x, and 0.2 x where x is negative."""
    return jnp.maximum(x, _SLOPE * x) if is_plain() else nn.leaky_relu(x, _SLOPE)


def dropout(keys: Key[Array, "b"], features: Float[Array, "b *d"], rate: float) -> Float[Array, "b *d"]:
    """Sets each value to 0 with probability `rate` and scales the others to keep the mean.

    Unlike with Flax's dropout, the mask does not depend on how a batch is divided among devices.
    """
    keep = jax.vmap(lambda key: random.bernoulli(key, 1 - rate, features.shape[1:]))(keys)
    return jnp.where(keep, features / (1 - rate), 0)


class SqueezeExcite(nn.Module):
    """Channel attention: global average pool, two dense layers, multiply (Hu et al. 2018, Sec. 3)."""

    ratio: int = 16  # factor by which the first dense layer reduces the channels
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, features: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = features.shape[-1]
        squeezed = nn.relu(nn.Dense(max(1, channels // self.ratio), dtype=self.dtype)(features.mean((1, 2))))
        gate = nn.sigmoid(nn.Dense(channels, dtype=self.dtype)(squeezed))
        return features * gate[:, None, None, :]


def dense(features: int, dtype: DTypeLike | None, kernel_init: Initializer | None) -> nn.Dense:
    """Returns a dense layer; without `kernel_init` it has Flax's default initializer."""
    return nn.Dense(features, dtype=dtype, kernel_init=kernel_init or nn.linear.default_kernel_init)


class EncoderStage(nn.Module):
    """Halves height and width: strided convolution, BatchNorm, LeakyReLU, squeeze-and-excitation."""

    features: int
    se_ratio: int = 0  # ratio of squeeze-and-excitation; 0 for none
    normalize: bool = True
    dtype: DTypeLike | None = None
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h/2 w/2 d"]:
        x = Downsample(self.features, not self.normalize, self.dtype, self.kernel_init)(x)
        if self.normalize:
            x = BatchNorm(use_running_average=not train, dtype=self.dtype)(x)
        x = leaky_relu(x)
        return SqueezeExcite(self.se_ratio, dtype=self.dtype)(x) if self.se_ratio else x


class DecoderStage(nn.Module):
    """Doubles height and width: transposed convolution, BatchNorm, LeakyReLU, SE, residual."""

    features: int
    se_ratio: int = 0  # ratio of squeeze-and-excitation; 0 for none
    residual: bool = False  # whether the input, projected to the stage's width and upsampled, is added
    dtype: DTypeLike | None = None
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b 2*h 2*w c"]:
        y = Upsample(self.features, False, self.dtype, self.kernel_init)(x)
        y = leaky_relu(BatchNorm(use_running_average=not train, dtype=self.dtype)(y))
        if self.se_ratio:
            y = SqueezeExcite(self.se_ratio, dtype=self.dtype)(y)
        if self.residual:
            # Projected before it is upsampled: the same values at a quarter of the cost.
            skip = nn.Dense(self.features, use_bias=False, dtype=self.dtype)(x)
            y = y + skip.repeat(2, axis=1).repeat(2, axis=2)
        return y
