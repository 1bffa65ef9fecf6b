r"""python launch.py --config=configs/fcae.py:phantom

The paper's FC-Autoencoder. Neither the paper nor a reference gives a schedule: 100 epochs, as VAE.

Measured at 64x64 on two CPU cores, seed 0: image AUROC by the common score, its 95 % interval,
PCA on the same split.
    phantom, the command above: 0.884 (0.833 to 0.931); PCA-64 0.963
    MVTec AD bottle, the command below: 0.946 (0.890 to 0.982); PCA-64 0.984;
        seeds 1 and 2: 0.952 (0.902 to 0.988), 0.949 (0.898 to 0.985)
        python launch.py --config=configs/fcae.py:mvtec --config.data.dir=DIR \
        --config.data.image_size=64
"""

from bigan_jax.configs import common


def get_config(arg=None):
    config = common.defaults()
    config.model = {"hidden": (512, 256, 128)}
    config.model_name = "fcae"
    config.optimizers = {"reconstruction": common.optimizer(1e-3)}
    config.phases = {"phase1": common.phase(100, reconstruction=(1, 1))}
    return common.finish(config, arg)
