"""The Improved BiGAN, the paper's model: 150 epochs of reconstruction, then 500 adversarial ones.

    python launch.py --config=configs/improved_bigan.py:phantom

Ablations: no_se, no_residual, no_perceptual, no_ssim, no_adversarial, no_pretrain, one_reconstruction (per step of the
second phase, in place of three), and plain, which leaves the parts of a classical BiGAN.

The paper does not give the weight of the adversarial loss. At 0.01, with 10 for reconstruction, calibration images
are reconstructed better than at 1 on phantom, bottle and plant; at 1 the second phase undoes the first on phantom and
bottle (docs/results/log.md, 12). Nor does the paper say how features are compared: scaled to a mean square of 1 at
each position, they give better reconstructions on the same three sets than raw features (docs/results/log.md, 18). A
peak learning rate of 2e-3 reconstructs better than 1e-3 on all sets (docs/results/log.md, 32).
"""

from bigan_jax.configs import common

USE = "The paper's model, for final results. The longest training, best on a GPU."

ABLATIONS = {
    "no_se": {"model.se_ratio": 0},
    "no_residual": {"model.residual": False},
    "no_perceptual": {"model.reconstruction_terms.perceptual": 0.0},
    "no_ssim": {"model.reconstruction_terms.ssim": 0.0},
    "no_adversarial": {
        "phases.phase2.objectives.discriminator.times": 0,
        "phases.phase2.objectives.adversarial.times": 0,
    },
    "no_pretrain": {"phases.phase1.epochs": 0},
    "one_reconstruction": {"phases.phase2.objectives.reconstruction.times": 1},
    # Reconstructs pretrained features in place of images: no term of the loss requires VGG16 once more.
    "features": {
        "group": "features",
        "data.channels": 3,
        "model.feature_layers": ("relu2_2", "relu3_3", "relu4_3"),
        "model.widths": (128, 256),
        "model.discriminator_widths": (128, 256),
        "model.latent": 128,
        "model.pool": "flatten",
        "model.reconstruction_terms.mse": 0.5,
        "model.reconstruction_terms.mae": 0.5,
        "model.reconstruction_terms.perceptual": 0.0,
        "model.reconstruction_terms.ssim": 0.0,
    },
}
ABLATIONS["plain"] = {
    field: value
    for name, values in ABLATIONS.items()
    if name not in ("no_adversarial", "features")
    for field, value in values.items()
} | {
    "model.reconstruction_weight": 0.0,
    "phases.phase2.objectives.reconstruction.times": 0,
    "phases.phase2.objectives.discriminator.every": 1,
}

# Takes 80 seconds on two CPU cores, with both phases and all losses. VGG16 up to its first layer costs a small part of
# the default three blocks; half the batch size doubles the updates at equal cost. An epoch of the second phase takes as
# long as eight of the first. A fourth of the normal images calibrate: drawn ones cost nothing, and 100 promise 5 %.
PRESETS = {
    "phantom": {
        "batch_size": 16,
        "data.phantom_normal": 500,
        "data.calibration_fraction": 0.25,
        "model.widths": (32, 64, 128, 256),
        "model.discriminator_widths": (32, 64, 128, 256),
        "model.perceptual_layers": ("relu1_1",),
        "phases.phase1.epochs": 16,
        "phases.phase2.epochs": 1,
    }
}


def get_config(arg=None):
    config = common.defaults()
    config.model_name = "improved_bigan"
    config.model = {
        "latent": 256,
        "widths": (64, 128, 256, 512),
        "discriminator_widths": (64, 128, 256, 512),
        "discriminator_hidden": 512,
        "se_ratio": 16,
        "residual": True,
        "pool": "average",
        "perceptual_layers": ("relu3_3",),
        "unit_features": True,
        "reconstruction_terms": {"mse": 0.5, "mae": 0.2, "perceptual": 0.2, "ssim": 0.1},
        "adversarial_weight": 0.01,
        "reconstruction_weight": 10.0,
        "feature_layers": (),
        "feature_grid": 16,
        "feature_channels": 64,
    }
    config.optimizers = {
        "discriminator": common.optimizer(2e-4, b1=0.5),
        "adversarial": common.optimizer(2e-4, b1=0.5),
        "reconstruction": common.optimizer(2e-3, rate="one_cycle"),
    }
    config.phases = {
        "phase1": common.phase(150, reconstruction=(1, 1)),
        "phase2": common.phase(500, discriminator=(5, 1), adversarial=(1, 1), reconstruction=(1, 3)),
    }
    return common.finish(config, arg, ABLATIONS, PRESETS)
