"""A memory bank of normal patches of pretrained features (PatchCore), without training.

python launch.py --config=configs/memory_bank.py:phantom
"""

from bigan_jax.configs import common

USE = "Where defects are local and parts may move: no training. Scoring takes longest of the fitted ones."


def get_config(arg=None):
    config = common.features()
    config.model_name = "memory_bank"
    config.model = {
        "network": "",  # a file of an exported network; "": VGG16
        "feature_layers": ("relu2_2", "relu3_3", "relu4_3"),
        "grid": 16,
        "components": 256,
        "candidates": 50_000,
        "bank": 5_000,
        "top": 0.03,
    }
    return common.finish(config, arg, presets=common.FEATURE_PRESETS)
