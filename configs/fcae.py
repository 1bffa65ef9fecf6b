"""The paper's fully connected autoencoder.

    python launch.py --config=configs/fcae.py:phantom

Neither the paper nor a reference implementation gives a schedule: 100 epochs, as for the VAE.
"""

from bigan_jax.configs import common

USE = "A baseline for small, aligned images: it learns what belongs at each position."


def get_config(arg=None):
    config = common.defaults()
    config.model = {"hidden": (512, 256, 128)}
    config.model_name = "fcae"
    config.optimizers = {"reconstruction": common.optimizer(1e-3)}
    config.phases = {"phase1": common.phase(100, reconstruction=(1, 1))}
    return common.finish(config, arg)
