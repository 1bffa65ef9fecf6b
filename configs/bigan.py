r"""python launch.py --config=configs/bigan.py:phantom

The classical BiGAN: what the Improved BiGAN is to be measured against.

Measured at 64x64 on two CPU cores, seed 0: image AUROC by the common score, its 95 % interval,
PCA on the same split. So short a training draws blurred bottles; it says little of the model.
    phantom, the command above: 0.469 (0.380 to 0.546); native 0.412; PCA-64 0.963
    MVTec AD bottle, the command below: 0.659 (0.525 to 0.777); native 0.556; PCA-64 0.984;
        seeds 1 to 4: 0.640 (0.513 to 0.756), 0.583 (0.452 to 0.706),
        0.648 (0.523 to 0.756), 0.601 (0.474 to 0.729)
        python launch.py --config=configs/bigan.py:mvtec --config.data.dir=DIR \
        --config.data.image_size=64 --config.batch_size=16 --config.model.averaging=0.98 \
        --config.model.widths="(16,32,64,128)" \
        --config.model.discriminator_widths="(16,32,64,128)" \
        --config.model.discriminator_dropout=0.3 --config.phases.phase1.epochs=80 \
        --config.optimizers.discriminator.learning_rate=2e-4 \
        --config.optimizers.adversarial.learning_rate=2e-4
"""

from bigan_jax.configs import common

# Shorter, for a CPU: in half batches, at a DCGAN's rates, and a D of a quarter of the width, which
# needs less dropout. An average with a decay of 0.999 looks back a thousand steps, more than there
# are here.
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
    config.optimizers = {
        "discriminator": common.optimizer(1e-4, b1=0.5),
        "adversarial": common.optimizer(1e-4, b1=0.5),
    }
    # As long as the Improved BiGAN's adversarial phase, so that both see each picture as often.
    config.phases = {"phase1": common.phase(500, discriminator=(1, 1), adversarial=(1, 1))}
    return common.finish(config, arg, presets=PRESETS)
