"""The networks of a DCGAN (Radford et al. 2016, Sec. 3 and 4), which two detectors share."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import random
from jaxtyping import Array, Float, Key

from bigan_jax.nn.blocks import BatchNorm, DecoderStage, EncoderStage, dense, dropout, leaky_relu
from bigan_jax.nn.convolutions import Downsample, Initializer, Upsample, conv3x3

_kernel = nn.initializers.normal(0.02)


def _scale(key, shape, dtype=jnp.float32):
    return 1 + _kernel(key, shape, dtype)


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
        norm = partial(BatchNorm, use_running_average=not train, scale_init=_scale)
        x = image
        for index, width in enumerate(self.widths):
            use_bias = self.use_bias and not index
            x = Downsample(width, use_bias, self.dtype, _kernel)(x)
            x = leaky_relu(norm(dtype=self.dtype)(x) if index else x)
        dense = nn.Dense(self.features, self.use_bias, self.dtype, kernel_init=_kernel)
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
        norm = partial(BatchNorm, use_running_average=not train, scale_init=_scale)
        height, width = (side // 2 ** len(self.widths) for side in self.shape[:2])
        size = height * width * self.widths[0]
        x = nn.Dense(size, use_bias=False, dtype=self.dtype, kernel_init=_kernel)(code)
        x = x.reshape(-1, height, width, self.widths[0])
        for features in self.widths[1:]:
            x = nn.relu(norm(dtype=self.dtype)(x))
            x = Upsample(features, False, self.dtype, _kernel)(x)
        x = nn.relu(norm(dtype=self.dtype)(x))
        x = Upsample(self.shape[2], self.use_bias, self.dtype, _kernel)(x)
        return nn.tanh(x.astype(jnp.float32))


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
        return dense(self.latent, self.dtype, self.kernel_init)(x).astype(jnp.float32)


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
        x = dense(size, self.dtype, self.kernel_init)(code)
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
        z = drop(leaky_relu(dense(self.hidden, *common)(code)))
        joint = jnp.concatenate([x.reshape(len(x), -1), z], axis=-1)
        features = drop(leaky_relu(dense(self.hidden, *common)(joint)))
        logit = dense(1, *common)(features)
        return logit[:, 0].astype(jnp.float32), features.astype(jnp.float32)
