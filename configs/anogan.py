"""AnoGAN: a DCGAN and, for each test image, a search for the latent code that reproduces it.

python launch.py --config=configs/anogan.py:phantom
"""

from bigan_jax.configs import common

USE = "The paper's comparison. Scoring is slow: each image takes a search of hundreds of steps."

# Shorter, for a CPU.
PRESETS = {
    "phantom": {
        "model.widths": (32, 64, 128, 256),
        "model.search_steps": 100,
        # A fifth of the steps, at five times the rate.
        "model.search_rate": 5e-3,
        "phases.phase1.epochs": 40,
    }
}


def get_config(arg=None):
    config = common.defaults()
    config.model_name = "anogan"
    config.model = {
        "latent": 100,
        "widths": (64, 128, 256, 512),
        "search_steps": 500,
        "search_rate": 1e-3,
        "search_b1": 0.5,
        "feature_weight": 0.1,
        "restarts": 1,
    }
    config.optimizers = {"discriminator": common.optimizer(2e-4, b1=0.5), "generator": common.optimizer(2e-4, b1=0.5)}
    # A few thousand updates on a few hundred images, as for the other GANs. Two generator updates for each
    # discriminator update keep the discriminator's loss from going to zero (as the reference implementation notes).
    config.phases = {"phase1": common.phase(500, discriminator=(1, 1), generator=(1, 2))}
    return common.finish(config, arg, presets=PRESETS)
