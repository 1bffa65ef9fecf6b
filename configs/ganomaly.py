"""GANomaly: an encoder, a generator and a second encoder, trained with a discriminator.

python launch.py --config=configs/ganomaly.py:phantom
"""

from bigan_jax.configs import common

USE = "A score that also compares codes. The largest model, best on a GPU."

# Shorter, for a CPU.
PRESETS = {"phantom": {"model.width": 32, "phases.phase1.epochs": 40}}


def get_config(arg=None):
    config = common.defaults()
    config.model_name = "ganomaly"
    config.model = {
        "latent": 100,
        "width": 64,
        "adversarial_weight": 1.0,
        "reconstruction_weight": 50.0,
        "code_weight": 1.0,
    }
    config.optimizers = {"generator": common.optimizer(2e-4, b1=0.5), "discriminator": common.optimizer(2e-4, b1=0.5)}
    # A few thousand updates on a few hundred images, as for the other GANs.
    config.phases = {"phase1": common.phase(500, generator=(1, 1), discriminator=(1, 1))}
    return common.finish(config, arg, presets=PRESETS)
