"""The classical BiGAN, the baseline of the Improved BiGAN.

    python launch.py --config=configs/bigan.py:phantom

The phantom preset is too short for sharp images; its AUROC says little about the model.
"""

from bigan_jax.configs import common

USE = "The baseline that shows what the Improved BiGAN adds."

# Shorter, for a CPU: half the batch size, the learning rates of a DCGAN, and networks of a quarter of the width,
# which need less dropout. A decay of 0.999 averages over a thousand steps, more than this schedule has.
PRESETS = {
    "phantom": {
        "batch_size": 16,
        "model.widths": (16, 32, 64, 128),
        "model.discriminator_widths": (16, 32, 64, 128),
        "model.discriminator_dropout": 0.3,
        "model.averaging": 0.98,
        "optimizers.discriminator.learning_rate": 2e-4,
        "optimizers.adversarial.learning_rate": 2e-4,
        "phases.phase1.epochs": 50,
    }
}


def get_config(arg=None):
    config = common.defaults()
    config.model_name = "bigan"
    config.model = {
        "latent": 256,
        "widths": (64, 128, 256, 512),
        "discriminator_widths": (64, 128, 256, 512),
        "discriminator_hidden": 512,
        "discriminator_dropout": 0.5,
        "feature_weight": 0.1,
        "averaging": 0.999,
    }
    config.optimizers = {"discriminator": common.optimizer(1e-4, b1=0.5), "adversarial": common.optimizer(1e-4, b1=0.5)}
    # As long as the adversarial phase of the Improved BiGAN, so that both see each image as often.
    config.phases = {"phase1": common.phase(500, discriminator=(1, 1), adversarial=(1, 1))}
    return common.finish(config, arg, presets=PRESETS)
