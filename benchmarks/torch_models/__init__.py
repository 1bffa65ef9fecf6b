"""The ten detectors as a PyTorch user would write them, and the loading of JAX weights."""

import torch
from torch import nn

from benchmarks.torch_models.autoencoders import CAE, FCAE, VAE, VQVAE, Codebook
from benchmarks.torch_models.gans import AnoGAN, BiGAN, GANomaly, ImprovedBiGAN

DETECTORS = {
    "fcae": FCAE,
    "cae": CAE,
    "vae": VAE,
    "vqvae": VQVAE,
    "anogan": AnoGAN,
    "ganomaly": GANomaly,
    "bigan": BiGAN,
    "improved_bigan": ImprovedBiGAN,
}

_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


@torch.no_grad()
def load(network: nn.Module, layers):
    """Copies the layers of a JAX network into a PyTorch network with the same order of layers.

    Args:
      network: the PyTorch network.
      layers: for each layer, its arrays by their names in JAX (sharing.layers).
    """
    modules = [m for m in network.modules() if isinstance(m, Codebook) or _parameters(m)]
    for module, arrays in zip(modules, layers, strict=True):
        for name, array in arrays.items():
            tensor = torch.tensor(array)
            if name == "kernel":  # [in, out] or [h, w, in, out]
                tensor = tensor.T if tensor.ndim == 2 else tensor.permute(3, 2, 0, 1)
            target = getattr(module, _NAMES.get(name, name))
            target.copy_(tensor.reshape(target.shape))


def _parameters(module):
    return list(module.parameters(recurse=False))
