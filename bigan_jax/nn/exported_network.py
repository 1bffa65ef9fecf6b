"""A frozen network from a file: a function that jax.export serialized as StableHLO.

The file is untrusted. Operations that leave the compiled program are refused: custom calls, which run code of the
host, and transfers to it. JAX parses and compiles the rest, so its memory and time are not limited.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.interpreters import mlir
from jaxtyping import Array, Float, UInt8

from bigan_jax.errors import UserError, one_line, printable
from bigan_jax.runtime.files import read_bounded

_MAX_BYTES = 2**31  # of a file; the format has no larger ones
_DIALECTS = ("builtin", "chlo", "func", "sdy", "stablehlo")
_CUSTOM_CALL = "stablehlo.custom_call"
_TRANSFERS = ("stablehlo.infeed", "stablehlo.outfeed", "stablehlo.send", "stablehlo.recv")
# Custom calls of symbolic shapes, which are no calls any more in a compiled program of fixed shapes.
_SHAPE_CALLS = ("shape_assertion", "stablehlo.dynamic_reduce_window", "stablehlo.dynamic_top_k")
_HOW_TO_EXPORT = (
    "Export a jitted function from images [b h w c], float32 in [0, 1], to a tuple of feature maps [b h' w' c'] by "
    "jax.export.export, and write what its serialize() returns."
)


class ExportedNetwork(nn.Module):
    """An exported function as a network without parameters."""

    exported: export.Exported

    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> tuple[Float[Array, "b _h _w _c"], ...]:
        """Returns the feature maps of images in [0, 1]; gray ones become RGB if the network expects it.

        Raises UserError if the network does not accept images of this shape.
        """
        del train
        batch, *expected = self.exported.in_avals[0].shape
        if expected[2] == 3 and images.shape[3] == 1:
            images = jnp.repeat(images, 3, axis=3)
        fits = [not isinstance(e, int) or e == n for e, n in zip(expected, images.shape[1:], strict=True)]
        if not all(fits):
            raise UserError(
                f"the network of config.model.network takes images of {_text(expected)} (got "
                f"{_text(images.shape[1:])}). Set config.data.image_size or config.data.channels, or export it for "
                "images of this size."
            )
        call = _in_batches(self._call, batch) if isinstance(batch, int) else self._call
        return call(images)

    def _call(self, images):
        try:
            return tuple(jax.tree.leaves(self.exported.call(images)))
        except ValueError as error:  # a condition of symbolic shapes, such as h being a multiple of 14
            raise UserError(
                f"the network of config.model.network does not take images of {_text(images.shape[1:])}: "
                f"{one_line(error, 500)}"
            ) from error


def load(path: str) -> tuple[ExportedNetwork, dict[str, dict[str, UInt8[np.ndarray, "32"]]]]:
    """Loads a file of a function exported for this type of device.

    Returns:
      The network and its variables: the file's SHA-256, so that a run which is resumed with another file is refused.

    Raises:
      UserError: the file is missing, damaged, too large, for other devices, has operations that leave the program, or
        its function does not map images to feature maps.
    """
    try:
        content = read_bounded(Path(path), _MAX_BYTES)
        exported, operations = _deserialize(content)
        _require_computations(operations)
        _require_platform(exported)
        _require_signature(exported)
    except UserError as error:
        raise UserError(f"config.model.network={path}: {printable(str(error))}") from error
    return ExportedNetwork(exported), {"file": {"sha256": np.frombuffer(hashlib.sha256(content).digest(), np.uint8)}}


def _in_batches(call: Callable, size: int) -> Callable:
    """Calls a function of a fixed batch size as often as needed; the last batch is filled with zeros."""

    def call_all(images):
        batches = -(-len(images) // size)
        filled = jnp.pad(images, ((0, batches * size - len(images)), (0, 0), (0, 0), (0, 0)))
        maps = lax.map(call, filled.reshape(batches, size, *images.shape[1:]))
        return tuple(x.reshape(-1, *x.shape[2:])[: len(images)] for x in maps)

    return call_all


def _deserialize(content: bytes) -> tuple[export.Exported, set[str]]:
    """Returns the exported function and the names of its operations."""
    try:
        exported = export.deserialize(bytearray(content))
        with mlir.make_ir_context():
            operations = _operations(exported.mlir_module(serialized=False).operation)
    except Exception as error:  # a damaged file makes the parsers raise nearly anything
        message = f"{type(error).__name__}: {one_line(error, 300)}"
        raise UserError(f"the file is damaged or none of jax.export ({message}). {_HOW_TO_EXPORT}") from error
    return exported, operations


def _operations(module: Any) -> set[str]:
    """Returns the names of all operations in a module; of custom calls, with that of the target."""
    names, pending = set(), [module]
    while pending:
        operation = pending.pop().operation
        target = ""
        if operation.name == _CUSTOM_CALL:
            target = str(operation.attributes["call_target_name"].value)
        names.add(f"{operation.name} {target}".rstrip())
        pending += [inner for region in operation.regions for block in region.blocks for inner in block.operations]
    return names


def _require_platform(exported):
    platform = export.default_export_platform()
    if platform not in exported.platforms:
        raise UserError(
            f"the network was exported for {', '.join(exported.platforms)}, and this machine computes on {platform}. "
            'Export it again with platforms=("cpu", "cuda", "tpu").'
        )
    if exported.nr_devices != 1:
        raise UserError(f"the network was exported for {exported.nr_devices} devices. Export it for 1.")


def _require_signature(exported):
    inputs, outputs = exported.in_avals, exported.out_avals
    one_argument = exported.in_tree == jax.tree.structure(((0,), {}))
    if not one_argument or len(inputs[0].shape) != 4 or inputs[0].dtype != jnp.float32:
        raise UserError(f"the function takes {_list(inputs)}. {_HOW_TO_EXPORT}")
    batch = inputs[0].shape[0]
    is_map = [
        len(x.shape) == 4
        and x.shape[0] == batch
        and isinstance(x.shape[3], int)
        and jnp.issubdtype(x.dtype, jnp.floating)
        for x in outputs
    ]
    if not outputs or not all(is_map):
        raise UserError(f"the function returns {_list(outputs)}. {_HOW_TO_EXPORT}")


def _require_computations(operations):
    allowed = {f"{_CUSTOM_CALL} {target}" for target in _SHAPE_CALLS}
    for name in sorted(operations - allowed):
        if name.startswith((_CUSTOM_CALL, *_TRANSFERS)) or name.partition(".")[0] not in _DIALECTS:
            raise UserError(
                f"the operation {name!r:.200} is refused: only computations are accepted. Export the network without "
                "callbacks, prints and kernels of its own."
            )


def _list(arrays):
    return ", ".join(f"{x.dtype}{list(x.shape)}" for x in arrays) or "nothing"


def _text(shape):
    return "x".join(map(str, shape))
