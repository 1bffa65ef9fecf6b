r"""python launch.py --config=configs/anogan.py:phantom

AnoGAN: a DCGAN, and a search for the code of each test picture.

Measured at 64x64 on two CPU cores, seed 0: image AUROC by the common score, its 95 % interval,
PCA on the same split.
    phantom, the command above: 0.668 (0.583 to 0.749); native 0.649; PCA-64 0.963
    MVTec AD bottle, the command below: 0.899 (0.827 to 0.956); native 0.816; PCA-64 0.984;
        seeds 1 and 2: 0.884 (0.798 to 0.954), 0.892 (0.813 to 0.952)
        python launch.py --config=configs/anogan.py:mvtec --config.data.dir=DIR \
        --config.data.image_size=64 \
        --config.model.widths="(32,64,128,256)" --config.phases.phase1.epochs=80 \
        --config.model.search_steps=100 --config.model.search_rate=5e-3
"""

from bigan_jax.configs import common

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
