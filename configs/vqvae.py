r"""python launch.py --config=configs/vqvae.py:phantom

The VQ-VAE of sonnet's example. It trained for 10,000 steps on CIFAR-10; here 100 epochs, as VAE.

Measured at 64x64 on two CPU cores, seed 0: image AUROC by the common score, its 95 % interval,
PCA on the same split.
    phantom, the command above: 0.822 (0.759 to 0.883); PCA-64 0.963
    MVTec AD bottle, the command below: 0.927 (0.862 to 0.977); PCA-64 0.984;
        seeds 1 and 2: 0.928 (0.867 to 0.974), 0.927 (0.867 to 0.974)
        python launch.py --config=configs/vqvae.py:mvtec --config.data.dir=DIR \
        --config.data.image_size=64
"""

from bigan_jax.configs import common

# Smaller, for a CPU.
PRESETS = {"phantom": {"model.widths": (32, 64)}}


def get_config(arg=None):
    config = common.defaults()
    config.model = {
        "widths": (64, 128),
        "residual_layers": 2,
        "residual_width": 32,
        "latent": 64,
        "codes": 512,
        "decay": 0.99,
        "epsilon": 1e-5,
        "commitment": 0.25,
        "data_variance": 0.06,
        "reseed_dead": False,
    }
    config.model_name = "vqvae"
    config.optimizers = {"reconstruction": common.optimizer(3e-4)}
    config.phases = {"phase1": common.phase(100, reconstruction=(1, 1))}
    return common.finish(config, arg, presets=PRESETS)
