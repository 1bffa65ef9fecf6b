"""Principal components of pretrained feature maps: localizes best, without training.

python launch.py --config=configs/feature_pca.py:phantom
"""

from bigan_jax.configs import common

USE = "Where parts are aligned: no training, and the most exact maps."


def get_config(arg=None):
    config = common.features()
    config.model_name = "feature_pca"
    config.model = {
        "network": "",  # a file of an exported network; "": VGG16
        "feature_layers": ("relu2_2", "relu3_3", "relu4_3"),
        "grid": 16,
        "components": 200,
        "axes": 128,
        "images": 2048,
        "top": 0.03,
    }
    return common.finish(config, arg, presets=common.FEATURE_PRESETS)
