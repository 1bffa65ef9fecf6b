"""VGG16's convolutions as a frozen feature network, and where their weights come from.

    python -m bigan_jax.nn.vgg16.weights SOURCE DESTINATION.npz  # converts weights

Simonyan and Zisserman 2014, "Very deep convolutional networks for large-scale image recognition".
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bigan_jax.errors import UserError, unknown_name
from bigan_jax.nn import losses
from bigan_jax.nn.convolutions import conv3x3
from bigan_jax.nn.vgg16 import formats as files
from bigan_jax.nn.vgg16.weights import layers_down_to


class VGG16(nn.Module):
    """Activations after the named ReLUs, relu1_1 to relu5_3, as deep as is asked for."""

    layers: tuple[str, ...] = ("relu3_3",)
    convention: str = "torchvision"
    dtype: jnp.dtype | None = None
    unit_features: bool = False

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w c"], train: bool = False
    ) -> tuple[Float[Array, "b _h _w _c"], ...]:
        """Features of `image`, in [0, 1], gray (c = 1) or RGB, in the order of `layers`, with
        `unit_features` scaled (losses.unit_features).

        `train` changes nothing. UserError for unknown layers or conventions, other channel
        counts, and pictures so small that a pool would leave nothing.
        """
        del train
        features = {}
        x = preprocess(image, self.convention)
        for conv in layers_down_to(self.layers):
            block, i = conv.removeprefix("conv").split("_")
            if i == "1" and block != "1":
                x = _max_pool(x)
            if math.prod(x.shape) == 0:
                raise UserError(
                    f"pictures of {image.shape[1:3]} are too small for VGG16's {conv}: take larger "
                    "ones (data.image_size) or shallower layers (model.perceptual_layers)"
                )
            x = _relu(conv3x3(files.WIDTHS[conv], self.dtype, name=conv)(x))
            features[f"relu{block}_{i}"] = x
        found = tuple(features[layer] for layer in self.layers)
        return tuple(losses.unit_features(found)) if self.unit_features else found


@jax.custom_vjp
def _relu(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """nn.relu, but what its gradient keeps is its result: a GPU's convolution takes it in then, and
    what it was before is never written."""
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = _relu(x)
    return y, y


def _relu_backward(y, gradient):
    return (jnp.where(y != 0, gradient, 0),)  # XLA would make y > 0 one of x, and keep x


@jax.custom_vjp
def _max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """2x2 max pooling; an odd last row or column is left out. On CPUs its gradient is quicker than
    that of `nn.max_pool`, which scatters. Equal maxima share it; there, the first takes all."""
    cells = _cells(x)
    rows = jnp.maximum(cells[:, :, 0], cells[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


def _cells(x):
    """[b, h, w, c] -> [b, h//2, 2, w//2, 2, c]"""
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)


def _max_pool_forward(x):
    y = _max_pool(x)
    return y, (x, y)


def _max_pool_backward(saved, gradient):
    x, y = saved
    cells = _cells(x)
    count = sum((cells[:, :, i, :, j] == y).astype(x.dtype) for i in (0, 1) for j in (0, 1))
    # At least 1: compiled, x may be had in more digits than y, and equal nothing.
    share = (gradient / jnp.maximum(count, 1))[:, :, None, :, None]
    b, h, w, c = x.shape
    spread = jnp.where(cells == y[:, :, None, :, None], share, 0).reshape(b, h // 2 * 2, -1, c)
    return (jnp.pad(spread, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))),)


_relu.defvjp(_relu_forward, _relu_backward)
_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def preprocess(image: Float[Array, "b h w c"], convention: str) -> Float[Array, "b h w 3"]:
    """`image`, in [0, 1], gray or RGB, the way the weights of `convention` were trained on.

    "torchvision": RGB, ImageNet's mean and deviation taken out. "caffe" (Oxford's and Keras's
    weights): BGR from 0 to 255, the mean taken out. UserError for another convention or c.
    """
    if image.shape[-1] not in (1, 3):
        raise UserError(f"VGG16 takes pictures of 1 or 3 channels, not {image.shape[-1]}")
    if image.shape[-1] == 1:
        image = jnp.repeat(image, 3, axis=-1)
    if convention == "torchvision":
        return (image - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    if convention == "caffe":
        return 255 * image[..., ::-1] - np.float32([103.939, 116.779, 123.68])
    raise unknown_name("VGG16 convention", convention, ("torchvision", "caffe"))
