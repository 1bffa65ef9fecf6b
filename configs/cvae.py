"""python launch.py --config=configs/cvae.py:phantom --config.data.category=

The conditional VAE: the VAE, with encoder and decoder told each picture's condition (species,
category, plane). On a set of one condition it is the VAE, and says so; an empty category, as in the
command, takes all that a set has.
"""

from configs import common


def get_config(arg=None):
    config = common.defaults()
    config.model = {
        "latent": 128,
        "widths": (32, 64, 128, 256),
        "beta": 1.0,
        "conditional": True,
    }
    config.model_name = "vae"
    config.name = "cvae"
    config.optimizers = {"elbo": common.optimizer(1e-3)}
    config.phases = {"phase1": common.phase(100, elbo=(1, 1))}
    return common.finish(config, arg)
