"""The mean training image: the least that a detector must beat.

python launch.py --config=configs/mean_image.py:phantom
"""

from bigan_jax.configs import common

USE = "A baseline that shows what alignment alone finds."


def get_config(arg=None):
    config = common.fitted()
    config.model_name = "mean_image"
    return common.finish(config, arg)
