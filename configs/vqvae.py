"""The VQ-VAE of sonnet's example.

    python launch.py --config=configs/vqvae.py:phantom

The example trains for 10,000 steps on CIFAR-10; here it is 100 epochs, as for the VAE.
"""

from bigan_jax.configs import common

USE = "Images with fine texture. The smallest model."

# Smaller, for a CPU.
PRESETS = {"phantom": {"model.widths": (32, 64)}}


def get_config(arg=None):
    config = common.defaults()
    config.model = {
        "widths": (64, 128),
        "residual_layers": 2,
        "residual_width": 32,
        "latent": 64,
        "codes": 512,
        "decay": 0.99,
        "epsilon": 1e-5,
        "commitment": 0.25,
        "data_variance": 0.06,
        "reseed_dead": False,
    }
    config.model_name = "vqvae"
    config.optimizers = {"reconstruction": common.optimizer(3e-4)}
    config.phases = {"phase1": common.phase(100, reconstruction=(1, 1))}
    return common.finish(config, arg, presets=PRESETS)
