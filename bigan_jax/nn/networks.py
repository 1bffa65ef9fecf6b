"""The networks of a DCGAN (Radford et al. 2016, Sec. 3 and 4), which two detectors share."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from bigan_jax.nn.blocks import BatchNorm, leaky_relu
from bigan_jax.nn.convolutions import Downsample, Upsample

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
