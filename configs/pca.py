"""A PCA of the training images: the strongest simple baseline on many sets.

python launch.py --config=configs/pca.py:phantom
"""

from bigan_jax.configs import common

USE = "The baseline to beat, in seconds. Hard to beat where parts are aligned and light is constant."


def get_config(arg=None):
    config = common.fitted()
    config.model_name = "pca"
    config.model = {"components": 64, "images": 2048}
    return common.finish(config, arg)
