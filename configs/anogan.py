r"""python launch.py --config=configs/anogan.py:phantom

AnoGAN: a DCGAN, and a search for the code of each test picture.

Measured at 64x64 on two CPU cores, seed 0: image AUROC by the common score, its 95 % interval,
PCA on the same split.
    phantom, the command above: 0.668 (0.583 to 0.749); native 0.649; PCA-64 0.963
    MVTec AD bottle, the command below: 0.883 (0.802 to 0.951); native 0.801; PCA-64 0.984
        python launch.py --config=configs/anogan.py:mvtec --config.data.dir=DIR \
        --config.data.image_size=64 \
        --config.model.widths="(32,64,128,256)" --config.phases.phase1.epochs=80 \
        --config.model.search_steps=100 --config.model.search_rate=5e-3
"""

from configs import common

# Shorter, for a CPU.
PRESETS = {
    "phantom": {
        "model.widths": (32, 64, 128, 256),
        "model.search_steps": 100,
        # A fifth of the steps, each five times as far.
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
    config.optimizers = {
        "discriminator": common.optimizer(2e-4, b1=0.5),
        "generator": common.optimizer(2e-4, b1=0.5),
    }
    # On sets of some hundred pictures a few thousand steps, as many as the other GANs here make. G
    # acts twice for each D, so that D's loss does not go to zero (the reference's remark).
    config.phases = {"phase1": common.phase(500, discriminator=(1, 1), generator=(1, 2))}
    return common.finish(config, arg, presets=PRESETS)
