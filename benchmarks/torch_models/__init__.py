"""The ten detectors as a PyTorch user would write them, and weights of ours into theirs."""

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
    """Puts a JAX network's layers into one of PyTorch, whose layers were defined in that order.

    layers: for each, its arrays by their names in JAX, as `weights.layers` gives them.
    """
    own = [m for m in network.modules() if isinstance(m, Codebook) or _parameters(m)]
    for module, arrays in zip(own, layers, strict=True):
        for name, array in arrays.items():
            tensor = torch.tensor(array)
            if name == "kernel":  # [in, out] or [h, w, in, out]
                tensor = tensor.T if tensor.ndim == 2 else tensor.permute(3, 2, 0, 1)
            target = getattr(module, _NAMES.get(name, name))
            target.copy_(tensor.reshape(target.shape))


def _parameters(module):
    return list(module.parameters(recurse=False))
