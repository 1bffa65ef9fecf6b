"""The conditional VAE: encoder and decoder also receive the condition of each image.

    python launch.py --config=configs/cvae.py:phantom

A condition is a species, category or plane. With one condition the model is the VAE, and a warning says so. Select
several by --config.data.category=bottle,pill; an empty category takes all.
"""

from bigan_jax.configs import vae

USE = "One detector for several categories, if the category of each new image is known."

# Heads, bottles and leaves: together as many images as other models have of one domain.
PRESETS = {"phantom": {"data.category": "", "data.phantom_normal": 150}}


def get_config(arg=None):
    return vae.get_config(arg, "cvae", PRESETS, conditional=True)
