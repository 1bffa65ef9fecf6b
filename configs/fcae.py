"""python launch.py --config=configs/fcae.py:phantom

The paper's FC-Autoencoder. Neither the paper nor a reference gives a schedule: 100 epochs, as CAE.
"""

from configs import common


def get_config(arg=None):
    config = common.defaults()
    config.model = {"hidden": (512, 256, 128)}
    config.model_name = "fcae"
    config.optimizers = {"reconstruction": common.optimizer(1e-3)}
    config.phases = {"phase1": common.phase(100, reconstruction=(1, 1))}
    return common.finish(config, arg)
