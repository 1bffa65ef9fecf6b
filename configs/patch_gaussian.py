"""Gaussians of pretrained features: finds small and diffuse changes without training, from about 100 images on.

python launch.py --config=configs/patch_gaussian.py:phantom
"""

from bigan_jax.configs import common

USE = "The first try where images are photographs: no training, finds small and diffuse changes."


def get_config(arg=None):
    config = common.features()
    config.model_name = "patch_gaussian"
    config.model = {
        "network": "",  # a file of an exported network; "": VGG16
        "feature_layers": ("relu2_2", "relu3_3", "relu4_3"),
        "grid": 16,
        "components": 200,
        "shrinkage": 0.05,
        "top": 0.03,
    }
    return common.finish(config, arg, presets=common.FEATURE_PRESETS)
