"""python launch.py --config=configs/beta_vae.py:phantom

Beta-VAE: the VAE whose KL weighs four times as much.
"""

from configs import vae


def get_config(arg=None):
    return vae.get_config(arg, "beta_vae", beta=4.0)
