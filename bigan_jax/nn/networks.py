"""Networks of several detectors: DCGAN, convolutional encoder and decoder, discriminator."""

import itertools
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import random
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from bigan_jax.nn.blocks import BatchNorm, DecoderStage, EncoderStage, dense, dropout, leaky_relu
from bigan_jax.nn.convolutions import Downsample, Initializer, Upsample, conv3x3

_kernel = nn.initializers.normal(0.02)


def _scale(key, shape, dtype=jnp.float32):
    return 1 + _kernel(key, shape, dtype)


def to_signed(image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Maps images from [0, 1] to [-1, 1], the range of DCGAN's networks."""
    return 2 * image - 1


class DCGANEncoder(nn.Module):
    """The encoder of a DCGAN, or its discriminator (Radford et al. 2016, Sec. 3 and 4).

    4x4 convolutions of stride 2 with LeakyReLU, BatchNorm after all but the first, and a dense layer. Weights are
    initialized from N(0, 0.02). Returns the code and the feature map of the last convolution.
    """

    features: int  # size of the code; 1 for a discriminator, whose code is the logit
    widths: tuple[int, ...]  # channels of the convolutions
    use_bias: bool = True  # of the layers without BatchNorm
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w c"], train: bool
    ) -> tuple[Float[Array, "b z"], Float[Array, "b i j d"]]:
        norm = partial(BatchNorm, use_running_average=not train, scale_init=_scale)
        x = image
        for index, width in enumerate(self.widths):
            x = Downsample(width, self.use_bias and not index, self.dtype, _kernel)(x)
            x = leaky_relu(norm(dtype=self.dtype)(x) if index else x)
        dense = nn.Dense(self.features, self.use_bias, self.dtype, kernel_init=_kernel)
        return dense(x.reshape(x.shape[0], -1)).astype(jnp.float32), x.astype(jnp.float32)


class DCGANGenerator(nn.Module):
    """The generator of a DCGAN (Radford et al. 2016, Sec. 3 and 4), with images in [-1, 1].

    A dense layer, 4x4 transposed convolutions of stride 2 with BatchNorm and ReLU, tanh.
    """

    shape: tuple[int, int, int]  # (height, width, channels) of the images
    widths: tuple[int, ...]  # channels of the first feature map and of all transposed convolutions but the last
    use_bias: bool = True  # of the last layer
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, code: Float[Array, "b z"], train: bool) -> Float[Array, "b h w c"]:
        norm = partial(BatchNorm, use_running_average=not train, scale_init=_scale)
        size = *(side // 2 ** len(self.widths) for side in self.shape[:2]), self.widths[0]
        x = nn.Dense(math.prod(size), use_bias=False, dtype=self.dtype, kernel_init=_kernel)(code).reshape(-1, *size)
        for features in self.widths[1:]:
            x = nn.relu(norm(dtype=self.dtype)(x))
            x = Upsample(features, False, self.dtype, _kernel)(x)
        x = nn.relu(norm(dtype=self.dtype)(x))
        x = Upsample(self.shape[2], self.use_bias, self.dtype, _kernel)(x)
        return nn.tanh(x.astype(jnp.float32))


class ConvEncoder(nn.Module):
    """Encodes images: a stage per width, flattening or average pooling, a dense layer."""

    latent: int  # size of the code
    widths: tuple[int, ...]  # channels of the stages
    se_ratio: int = 0
    pool: str = "flatten"  # which keeps positions; "average" is global average pooling
    dtype: DTypeLike | None = None
    kernel_init: Initializer | None = None  # of all layers; by default each has its own

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"], train: bool) -> Float[Array, "b z"]:
        x = image
        for width in self.widths:
            x = EncoderStage(width, self.se_ratio, True, self.dtype, self.kernel_init)(x, train)
        x = x.mean((1, 2)) if self.pool == "average" else x.reshape(x.shape[0], -1)
        return dense(self.latent, self.dtype, self.kernel_init)(x).astype(jnp.float32)


class ConvDecoder(nn.Module):
    """Decodes codes to images in [0, 1]: a dense layer, a stage per width, a last layer, sigmoid unless it is linear.

    The last layer is a transposed convolution that doubles the size ("upsample") or a 3x3 convolution ("conv").
    """

    shape: tuple[int, int, int]  # (height, width, channels) of the images
    base: int  # channels of the feature map after the dense layer
    widths: tuple[int, ...]  # channels of the stages
    se_ratio: int = 0
    residual: bool = False
    last: str = "upsample"
    linear: bool = False  # for feature maps, which have no range
    dtype: DTypeLike | None = None
    kernel_init: Initializer | None = None  # of dense and transposed layers; by default each has its own

    @nn.compact
    def __call__(self, code: Float[Array, "b z"], train: bool) -> Float[Array, "b h w c"]:
        height, width, channels = self.shape
        scale = 2 ** (len(self.widths) + (self.last == "upsample"))
        size = height // scale, width // scale, self.base
        x = dense(math.prod(size), self.dtype, self.kernel_init)(code).reshape(-1, *size)
        x = leaky_relu(BatchNorm(use_running_average=not train, dtype=self.dtype)(x))
        for features in self.widths:
            x = DecoderStage(features, self.se_ratio, self.residual, self.dtype, self.kernel_init)(x, train)
        if self.last == "upsample":
            x = Upsample(channels, True, self.dtype, self.kernel_init)(x)
        else:
            x = conv3x3(channels, self.dtype)(x)
        x = x.astype(jnp.float32)
        return x if self.linear else nn.sigmoid(x)


class JointDiscriminator(nn.Module):
    """The discriminator D(x, z) of pairs of an image and a code.

    Image features and those of a dense layer of the code are concatenated and go through dense layers (Donahue et al.
    2016, Sec. 3; the paper, Sec. III). Returns logits and the features of the last hidden layer.
    """

    widths: tuple[int, ...]  # channels of the stages
    hidden: int  # size of the dense layers
    dropout: float = 0.0  # rate of every layer; applied if `keys`, one per image, are passed
    dtype: DTypeLike | None = None
    kernel_init: Initializer | None = None  # of all layers; by default each has its own

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w c"],
        code: Float[Array, "b z"],
        keys: Key[Array, "b"] | None = None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "b"], Float[Array, "b d"]]:
        layers = itertools.count()

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
        joint = jnp.concatenate([x.reshape(x.shape[0], -1), z], axis=-1)
        features = drop(leaky_relu(dense(self.hidden, *common)(joint)))
        logit = dense(1, *common)(features)
        return logit[:, 0].astype(jnp.float32), features.astype(jnp.float32)
