"""The nearest training image.

python launch.py --config=configs/nearest_neighbor.py:phantom
"""

from bigan_jax.configs import common

USE = "A baseline for few different images: what is not like any of them is anomalous."


def get_config(arg=None):
    config = common.fitted()
    config.model_name = "nearest_neighbor"
    config.model = {"images": 2048}
    return common.finish(config, arg)
