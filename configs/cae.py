"""python launch.py --config=configs/cae.py:phantom

The paper's CNN-AE.
"""

from configs import common


def get_config(arg=None):
    config = common.defaults()
    config.model = {"latent": 128, "widths": (32, 64, 128, 256)}
    config.model_name = "cae"
    config.optimizers = {"reconstruction": common.optimizer(1e-3)}
    config.phases = {"phase1": common.phase(100, reconstruction=(1, 1))}
    return common.finish(config, arg)
