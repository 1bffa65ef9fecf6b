"""Left-right asymmetry, for data whose report says that they are symmetric, such as heads.

python launch.py --config=configs/symmetry.py:brain
"""

from bigan_jax.configs import common

USE = "Slices of heads and other images whose report says that they are symmetric."


def get_config(arg=None):
    config = common.fitted(score="native")
    config.model_name = "symmetry"
    # sigma is in pixels of a 64x64 image, and top is a share of the pixels.
    config.model = {"normalize": True, "foreground": 0.12, "sigma": 3.0, "top": 0.01}
    return common.finish(config, arg)
