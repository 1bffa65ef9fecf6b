"""python launch.py --config=configs/beta_vae.py:phantom

The Beta-VAE: the VAE with a KL divergence that weighs four times as much.
"""

from configs import common


def get_config(arg=None):
    config = common.defaults()
    config.model = {
        "latent": 128,
        "widths": (32, 64, 128, 256),
        "beta": 4.0,
        "conditional": False,
    }
    config.model_name = "vae"
    config.name = "beta_vae"
    config.optimizers = {"elbo": common.optimizer(1e-3)}
    config.phases = {"phase1": common.phase(100, elbo=(1, 1))}
    return common.finish(config, arg)
