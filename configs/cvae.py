r"""python launch.py --config=configs/cvae.py:phantom

The conditional VAE: the VAE, with encoder and decoder told each picture's condition (species,
category, plane). On a set of one condition it is the VAE, and says so; several are named as in
--config.data.category=bottle,pill, and an empty category takes all that a set has.

Measured at 64x64 on two CPU cores, seed 0: image AUROC by the common score, its 95 % interval,
PCA on the same split.
    phantom, the command above: 0.559 (0.486 to 0.628); PCA-64 0.678
    MVTec AD bottle, the command below: 0.856 (0.767 to 0.929); PCA-64 0.984;
        seeds 1 and 2: 0.860 (0.775 to 0.931), 0.867 (0.781 to 0.935)
        python launch.py --config=configs/cvae.py:mvtec --config.data.dir=DIR \
        --config.data.image_size=64
"""

from bigan_jax.configs import vae

# Heads, bottles and leaves: as many pictures together as other models have of one kind.
PRESETS = {"phantom": {"data.category": "", "data.phantom_normal": 150}}


def get_config(arg=None):
    return vae.get_config(arg, "cvae", PRESETS, conditional=True)
