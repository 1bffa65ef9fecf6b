r"""python launch.py --config=configs/ganomaly.py:phantom

GANomaly: encoder, generator, second encoder.

Measured at 64x64 on two CPU cores, seed 0: image AUROC by the common score, its 95 % interval,
PCA on the same split.
    phantom, the command above: 0.835 (0.775 to 0.893); native 0.578; PCA-64 0.963
    MVTec AD bottle, the command below: 0.917 (0.849 to 0.969); native 0.555; PCA-64 0.984;
        seeds 1 and 2: 0.911 (0.839 to 0.964), 0.927 (0.857 to 0.973)
        python launch.py --config=configs/ganomaly.py:mvtec --config.data.dir=DIR \
        --config.data.image_size=64 --config.model.width=32 \
        --config.phases.phase1.epochs=80
"""

from bigan_jax.configs import common

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
    config.optimizers = {
        "generator": common.optimizer(2e-4, b1=0.5),
        "discriminator": common.optimizer(2e-4, b1=0.5),
    }
    # On sets of some hundred pictures a few thousand steps, as many as the other GANs here make.
    config.phases = {"phase1": common.phase(500, generator=(1, 1), discriminator=(1, 1))}
    return common.finish(config, arg, presets=PRESETS)
