"""The convolutions of VGG16, as a frozen network of features for perceptual losses.

Simonyan and Zisserman 2014, "Very deep convolutional networks for large-scale image recognition".
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bigan_jax.errors import UserError, unknown_name
from bigan_jax.nn import losses
from bigan_jax.nn.convolutions import conv3x3
from bigan_jax.nn.vgg16.formats import WIDTHS
from bigan_jax.nn.vgg16.weights import layers_down_to


class VGG16(nn.Module):
    """VGG16 up to the deepest of some layers."""

    layers: tuple[str, ...] = ("relu3_3",)  # names of the ReLUs to return, from relu1_1 to relu5_3
    convention: str = "torchvision"  # see `preprocess`
    dtype: DTypeLike | None = None
    unit_features: bool = False  # whether features are scaled by losses.unit_features

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"], train: bool = False) -> tuple[Float[Array, "b _h _w _c"], ...]:
        """Returns the features of images in [0, 1], gray or RGB, in the order of `layers`.

        Raises UserError if a layer or the convention is unknown, or the images have no such channels or are too small.
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
                    f"images of {image.shape[1:3]} pixels are too small for VGG16's {conv}. Raise "
                    "config.data.image_size, or change config.model.perceptual_layers."
                )
            x = _relu(conv3x3(WIDTHS[conv], self.dtype, name=conv)(x))
            features[f"relu{block}_{i}"] = x
        selected = tuple(features[layer] for layer in self.layers)
        return tuple(losses.unit_features(selected)) if self.unit_features else selected


@jax.custom_vjp
def _relu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """nn.relu whose gradient needs only its result.

    A GPU then fuses it into the convolution, and the convolution's own output is never stored.
    """
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = _relu(x)
    return y, y


def _relu_backward(y, gradient):
    return (jnp.where(y != 0, gradient, 0),)  # for y > 0 XLA would compare x and store it


@jax.custom_vjp
def _max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """2x2 max pooling; an odd last row or column is ignored.

    Equal maxima share the gradient, which nn.max_pool gives to the first and, on CPUs, scatters more slowly.
    """
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
    # At least 1: in compiled code x may have more digits than y, so that none is equal.
    share = (gradient / jnp.maximum(count, 1))[:, :, None, :, None]
    b, h, w, c = x.shape
    result = jnp.where(cells == y[:, :, None, :, None], share, 0).reshape(b, h // 2 * 2, -1, c)
    return (jnp.pad(result, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))),)


_relu.defvjp(_relu_forward, _relu_backward)
_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def preprocess(image: Float[Array, "b h w c"], convention: str) -> Float[Array, "b h w 3"]:
    """Normalizes images as in the training of VGG16's weights.

    Images are in [0, 1], gray or RGB. The convention "torchvision" is RGB, minus ImageNet's mean, divided by its
    standard deviation; "caffe", for Oxford's and Keras's weights, is BGR from 0 to 255, minus the mean.
    """
    if image.shape[-1] not in (1, 3):
        raise UserError(f"VGG16 requires images of 1 or 3 channels (got {image.shape[-1]}).")
    if image.shape[-1] == 1:
        image = jnp.repeat(image, 3, axis=-1)
    if convention == "torchvision":
        mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
        return (image - mean) / deviation
    if convention == "caffe":
        return 255 * image[..., ::-1] - np.array([103.939, 116.779, 123.68], np.float32)
    raise unknown_name("VGG16 convention", convention, ("torchvision", "caffe"))
