"""Networks of several detectors: DCGAN, convolutional encoder and decoder, discriminator."""

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


def to_signed(image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Maps images from [0, 1] to [-1, 1], the range of DCGAN's networks."""
    return 2 * image - 1


class DCGANEncoder(nn.Module):
    """The encoder of a DCGAN, or its discriminator (Radford et al. 2016, Sec. 3 and 4).

    4x4 convolutions of stride 2 with LeakyReLU, BatchNorm after all but the first, and a dense layer. Weights are
    initialized from N(0, 0.02). Returns the code [b, features] and the feature map of the last convolution [b, h, w,
    c].

    Attributes:
      features: size of the code; 1 for a discriminator, whose code is the logit.
      widths: channels of the convolutions.
      use_bias: whether layers without BatchNorm have a bias.
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
    """The generator of a DCGAN (Radford et al. 2016, Sec. 3 and 4), with images in [-1, 1].

    A dense layer, 4x4 transposed convolutions of stride 2 with BatchNorm and ReLU, tanh.

    Attributes:
      shape: (height, width, channels) of the images.
      widths: channels of the first feature map and of all transposed convolutions but the last.
      use_bias: whether the last layer has a bias.
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
    """Encodes images: a stage per width, flattening or average pooling, a dense layer.

    Attributes:
      latent: size of the code.
      widths: channels of the stages.
      se_ratio: see `EncoderStage`.
      pool: "flatten" keeps positions; "average" is global average pooling.
      kernel_init: initializer of all layers; by default each has its own.
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
    """Decodes codes to images in [0, 1]: a dense layer, a stage per width, a last layer, sigmoid.

    Attributes:
      shape: (height, width, channels) of the images.
      base: channels of the feature map after the dense layer.
      widths: channels of the stages.
      se_ratio: see `DecoderStage`.
      residual: see `DecoderStage`.
      last: the layer that makes the images: "upsample", a transposed convolution that doubles the size, or "conv", a
        3x3 convolution at full size.
      kernel_init: initializer of dense and transposed layers; by default each has its own.
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
            x = DecoderStage(features, self.se_ratio, self.residual, self.dtype, self.kernel_init)(x, train)
        if self.last == "upsample":
            x = Upsample(channels, True, self.dtype, self.kernel_init)(x)
        else:
            x = conv3x3(channels, self.dtype)(x)
        return nn.sigmoid(x.astype(jnp.float32))


class JointDiscriminator(nn.Module):
    """The discriminator D(x, z) of pairs of an image and a code.

    Image features and those of a dense layer of the code are concatenated and go through dense layers (Donahue et al.
    2016, Sec. 3; the paper, Sec. III). Returns logits [b] and the features of the last hidden layer [b, hidden].

    Attributes:
      widths: channels of the stages.
      hidden: size of the dense layers.
      dropout: dropout rate of every layer; applied if `keys`, one per image, are passed.
      kernel_init: initializer of all layers; by default each has its own.
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
