"""python launch.py --config=configs/cvae.py:phantom

The conditional VAE: the VAE, with encoder and decoder told each picture's condition (species,
category, plane). On a set of one condition it is the VAE, and says so; several are named as in
--config.data.category=bottle,pill, and an empty category takes all that a set has.
"""

from configs import vae

# Heads, bottles and leaves: as many pictures together as other models have of one kind.
PRESETS = {"phantom": {"data.category": "", "data.phantom_normal": 150}}


def get_config(arg=None):
    return vae.get_config(arg, "cvae", PRESETS, conditional=True)
