"""The Mahalanobis distance of 16x16 thumbnails.

python launch.py --config=configs/mahalanobis.py:phantom
"""

from bigan_jax.configs import common

USE = "A baseline for coarse changes of brightness and color."


def get_config(arg=None):
    config = common.fitted(score="native")
    config.model_name = "mahalanobis"
    config.model = {"size": 16}
    return common.finish(config, arg)
