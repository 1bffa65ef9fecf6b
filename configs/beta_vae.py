"""Beta-VAE: the VAE with four times the weight on the KL term.

python launch.py --config=configs/beta_vae.py:phantom
"""

from bigan_jax.configs import vae

USE = "A smoother latent space than the VAE's, at the cost of blurrier reconstructions."


def get_config(arg=None):
    return vae.get_config(arg, "beta_vae", beta=4.0)
