"""The paper's convolutional autoencoder (CNN-AE).

    python launch.py --config=configs/cae.py:phantom

A peak learning rate of 2e-3 reconstructs calibration images better than 1e-3 on phantom, bottle and plant, in gray
and in color (docs/results/log.md, 43).
"""

from bigan_jax.configs import common

USE = "The first try on new data: fast to train, few settings, runs on a CPU."


def get_config(arg=None):
    config = common.defaults()
    config.batch_size = 16  # data sets are small: twice the updates at the same cost
    config.model = {"latent": 128, "widths": (32, 64, 128, 256)}
    config.model_name = "cae"
    config.optimizers = {"reconstruction": common.optimizer(2e-3, rate="one_cycle")}
    config.phases = {"phase1": common.phase(120, reconstruction=(1, 1))}
    return common.finish(config, arg)
