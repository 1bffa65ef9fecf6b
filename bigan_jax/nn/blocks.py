"""Building blocks that the detectors share: normalisation, attention, stages, trunks.

Pictures are NHWC. Every module is called with `train`: True normalises by the batch's own
statistics and collects them, False normalises by the collected ones.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Float, Key

from bigan_jax.nn.convolutions import Downsample, Initializer, Upsample, conv3x3

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


def _dense(features, dtype, kernel_init):
    return nn.Dense(features, dtype=dtype, kernel_init=kernel_init or nn.linear.default_kernel_init)


class EncoderStage(nn.Module):
    """Halves the picture: strided convolution, BatchNorm, LeakyReLU, SE.

    se_ratio: squeeze-and-excitation's ratio; 0 leaves it out.
    """

    features: int
    se_ratio: int = 0
    normalise: bool = True
    dtype: jnp.dtype | None = None
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h/2 w/2 d"]:
        x = Downsample(self.features, not self.normalise, self.dtype, self.kernel_init)(x)
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


class ConvEncoder(nn.Module):
    """Picture to code: one stage a width, then flatten or average over positions, then dense.

    pool: "flatten" keeps where things are; "average" is global average pooling.
    kernel_init: of all layers; by default each has its own.
    """

    latent: int
    widths: tuple[int, ...]
    se_ratio: int = 0
    pool: str = "flatten"
    dtype: jnp.dtype | None = None
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"], train: bool) -> Float[Array, "b z"]:
        x = image
        for width in self.widths:
            x = EncoderStage(width, self.se_ratio, True, self.dtype, self.kernel_init)(x, train)
        x = x.mean((1, 2)) if self.pool == "average" else x.reshape(len(x), -1)
        return _dense(self.latent, self.dtype, self.kernel_init)(x).astype(jnp.float32)


class ConvDecoder(nn.Module):
    """Code to picture in [0, 1]: dense to a small map, one stage a width, a last layer, sigmoid.

    shape: (height, width, channels) of the picture.
    base: channels of the small map.
    widths: one doubling stage each, then, if `last` is "upsample", a last doubling to the
        picture's channels; with "conv", a 3x3 convolution to them at full size.
    kernel_init: of all doublings and dense layers; by default each has its own.
    """

    shape: tuple[int, int, int]
    base: int
    widths: tuple[int, ...]
    se_ratio: int = 0
    residual: bool = False
    last: str = "upsample"
    dtype: jnp.dtype | None = None
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, code: Float[Array, "b z"], train: bool) -> Float[Array, "b h w c"]:
        height, width, channels = self.shape
        scale = 2 ** (len(self.widths) + (self.last == "upsample"))
        size = height // scale * (width // scale) * self.base
        x = _dense(size, self.dtype, self.kernel_init)(code)
        x = x.reshape(-1, height // scale, width // scale, self.base)
        x = leaky_relu(BatchNorm(use_running_average=not train, dtype=self.dtype)(x))
        for features in self.widths:
            x = DecoderStage(features, self.se_ratio, self.residual, self.dtype, self.kernel_init)(
                x, train
            )
        if self.last == "upsample":
            x = Upsample(channels, True, self.dtype, self.kernel_init)(x)
        else:
            x = conv3x3(channels, self.dtype)(x)
        return nn.sigmoid(x.astype(jnp.float32))


class JointDiscriminator(nn.Module):
    """D(x, z): does a picture and its code belong together? One logit a pair.

    Flattened picture features beside a dense layer's of the code, then dense (Donahue et al. 2016,
    Sec. 3; the paper, Sec. III). Returns (logits [b], the last hidden layer [b, hidden]).

    dropout: this share of every layer's features is dropped where keys, one a picture, are given.
    """

    widths: tuple[int, ...]
    hidden: int
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w c"],
        code: Float[Array, "b z"],
        keys: Key[Array, "b"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "b"], Float[Array, "b d"]]:
        layers = iter(range(len(self.widths) + 2))

        def drop(features):
            layer = next(layers)
            if keys is None or not self.dropout:
                return features
            return dropout(jax.vmap(random.fold_in, (0, None))(keys, layer), features, self.dropout)

        common = self.dtype, self.kernel_init
        x = image
        for index, width in enumerate(self.widths):
            x = drop(EncoderStage(width, 0, index > 0, *common)(x, train))
        z = drop(leaky_relu(_dense(self.hidden, *common)(code)))
        joint = jnp.concatenate([x.reshape(len(x), -1), z], axis=-1)
        features = drop(leaky_relu(_dense(self.hidden, *common)(joint)))
        logit = _dense(1, *common)(features)
        return logit[:, 0].astype(jnp.float32), features.astype(jnp.float32)
