"""The VAE, with the encoder and decoder of the CAE. Beta-VAE and CVAE are variants of it.

python launch.py --config=configs/vae.py:phantom
"""

from bigan_jax.configs import common

USE = "As the CAE, with a regular latent space, which limits what it can reconstruct."


def get_config(arg=None, name="vae", presets=None, **changes):
    """The config of the VAE or of a variant.

    Args:
      arg: the argument of the config file, `<dataset>[,quick]`.
      name: the name shown in tables.
      presets: overrides by dataset.
      **changes: fields of config.model that differ from the VAE.
    """
    config = common.defaults()
    config.model_name = "vae"
    config.name = name
    config.model = {"latent": 128, "widths": (32, 64, 128, 256), "beta": 1.0, "conditional": False} | changes
    config.optimizers = {"elbo": common.optimizer(1e-3)}
    config.phases = {"phase1": common.phase(100, elbo=(1, 1))}
    return common.finish(config, arg, presets=presets)
