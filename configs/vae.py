r"""python launch.py --config=configs/vae.py:phantom

The VAE, on the CAE's trunk. Beta-VAE and CVAE are other values of it.

Measured at 64x64 on two CPU cores, seed 0: image AUROC by the common score, its 95 % interval,
PCA on the same split.
    phantom, the command above: 0.679 (0.593 to 0.765); PCA-64 0.963
    MVTec AD bottle, the command below: 0.856 (0.767 to 0.929); PCA-64 0.984;
        seeds 1 and 2: 0.860 (0.775 to 0.931), 0.867 (0.781 to 0.935)
        python launch.py --config=configs/vae.py:mvtec --config.data.dir=DIR \
        --config.data.image_size=64
"""

from bigan_jax.configs import common


def get_config(arg=None, name="vae", presets=None, **changes):
    """changes: fields of the model that another config of it sets otherwise."""
    config = common.defaults()
    config.model_name = "vae"
    config.name = name
    config.model = {
        "latent": 128,
        "widths": (32, 64, 128, 256),
        "beta": 1.0,
        "conditional": False,
    } | changes
    config.optimizers = {"elbo": common.optimizer(1e-3)}
    config.phases = {"phase1": common.phase(100, elbo=(1, 1))}
    return common.finish(config, arg, presets=presets)
