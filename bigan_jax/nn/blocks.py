"""Building blocks that the detectors share: normalization, attention, stages, trunks.

Pictures are NHWC. Every module is called with `train`: True normalizes by the batch's own
statistics and collects them, False normalizes by the collected ones.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Float, Key

from bigan_jax.nn.convolutions import Downsample, Initializer, Upsample

# The axis that train steps are mapped over: statistics are those of the batch on all devices.
BATCH_AXIS = "batch"

# Momentum 0: the collection holds the last batch's statistics and nothing older. No inference uses
# them; detector.with_statistics averages them over the training pictures first.
BatchNorm = partial(nn.BatchNorm, momentum=0.0, epsilon=1e-5, axis_name=BATCH_AXIS)

leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)


# --- attention and residuals ----------------------------------------------------------------------


def dropout(
    keys: Key[Array, "b"], features: Float[Array, "b *d"], rate: float
) -> Float[Array, "b *d"]:
    """Drops each number with probability `rate` and scales the others up to the same mean.

    keys: one a picture: unlike flax's, the mask does not depend on how a batch is spread.
    """
    keep = jax.vmap(lambda key: random.bernoulli(key, 1 - rate, features.shape[1:]))(keys)
    return jnp.where(keep, features / (1 - rate), 0)


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


def dense(features, dtype, kernel_init):
    return nn.Dense(features, dtype=dtype, kernel_init=kernel_init or nn.linear.default_kernel_init)


class EncoderStage(nn.Module):
    """Halves the picture: strided convolution, BatchNorm, LeakyReLU, SE.

    se_ratio: squeeze-and-excitation's ratio; 0 leaves it out.
    """

    features: int
    se_ratio: int = 0
    normalize: bool = True
    dtype: jnp.dtype | None = None
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h/2 w/2 d"]:
        x = Downsample(self.features, not self.normalize, self.dtype, self.kernel_init)(x)
        if self.normalize:
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
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b 2*h 2*w c"]:
        y = Upsample(self.features, False, self.dtype, self.kernel_init)(x)
        y = leaky_relu(BatchNorm(use_running_average=not train, dtype=self.dtype)(y))
        if self.se_ratio:
            y = SqueezeExcite(self.se_ratio, dtype=self.dtype)(y)
        if self.residual:
            # Projected before it is enlarged: the same numbers as after, at a quarter of the cost.
            skip = nn.Dense(self.features, use_bias=False, dtype=self.dtype)(x)
            y = y + skip.repeat(2, axis=1).repeat(2, axis=2)
        return y


# --- trunks ---------------------------------------------------------------------------------------
