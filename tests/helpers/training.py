"""A small detector, training without a config, and comparisons that do not depend on rounding."""

import math
from functools import cache

import jax
import numpy as np
import optax

from bigan_jax.commands import train
from bigan_jax.detector import init_state
from bigan_jax.models import improved_bigan
from bigan_jax.training import device_layout, epoch_runner, loop
from bigan_jax.training.augmentation import AugmentationSettings
from bigan_jax.training.train_step import TrainingSet

SHAPE = (16, 16, 1)


def tiny_bigan(**reconstruction_terms):
    """Returns an Improved BiGAN with one stage per network, and these weights of the reconstruction loss."""
    return improved_bigan.create(
        shape=SHAPE,
        latent=8,
        widths=(4,),
        discriminator_widths=(4,),
        discriminator_hidden=8,
        se_ratio=1,
        reconstruction_terms=reconstruction_terms,
    )


TINY_BIGAN = tiny_bigan(mse=1.0)
OBJECTIVES = ("discriminator", "adversarial", "reconstruction")
_AUGMENTATION = AugmentationSettings(flip=True, translate=0.05, scale=0.05)
_init_programs = {}


def training_set():
    """Returns 32 random images."""
    images = np.random.default_rng(0).integers(0, 256, (32, *SHAPE), np.uint8)
    return TrainingSet(images, np.zeros(32, np.int32))


def limit_devices(monkeypatch, number):
    """Makes training use the first `number` devices."""
    monkeypatch.setattr(jax, "local_device_count", lambda: number)
    monkeypatch.setattr(jax, "device_count", lambda: number)


def make_runner(detector, optimizer, scanned, seeds=0, streamed=False):
    """Returns a runner over 32 random images; all objectives share the optimizer."""
    return epoch_runner.EpochRunner(
        detector,
        dict.fromkeys(detector.objectives, optimizer),
        _AUGMENTATION,
        device_layout.replicate(dict(detector.frozen)),
        training_set() if streamed else device_layout.replicate(training_set()),
        scanned,
        seeds,
    )


def initial_states(detector, optimizer, seeds):
    """Returns the initial state of each seed.

    Its program is compiled once per detector and optimizer, as it takes as long as that of a step.
    """
    key = id(detector), optimizer  # a detector has no hash, and its identity lasts: the program holds it
    if key not in _init_programs:
        optimizers = dict.fromkeys(detector.objectives, optimizer)
        _init_programs[key] = jax.jit(lambda seed: init_state(detector, optimizers, seed, SHAPE))
    return [_init_programs[key](seed) for seed in seeds]


def record_trained_states(monkeypatch):
    """Skips evaluations; returns the list that gets the states which they would evaluate."""
    states = []

    def evaluate_run(config, dataset, audit, detector, state, epochs, workdir, fitter=None):
        states.append(state)
        return {}

    monkeypatch.setattr(train, "evaluate_run", evaluate_run)
    return states


@cache  # tests that use one optimizer share the programs of `initial_states`
def gradient_recorder():
    """Returns gradient descent in tiny steps whose state holds the last gradients.

    Tiny steps do not amplify rounding errors, in contrast to the first steps of Adam, which are the
    sign of the gradient, and to large steps. Programs that round differently then agree in all
    gradients of several steps.
    """
    return optax.chain(optax.trace(0.0), optax.scale(-1e-4))


def assert_near(actual, expected, tolerance=1e-3):
    """Compares trees of arrays, each leaf to a fraction of its largest value.

    Values that are zero but for rounding, such as the gradient of a bias before BatchNorm, agree to
    1e-5 of 1.
    """
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 + tolerance * np.abs(b).max(initial=0)),
        actual,
        expected,
    )


def set_whole_epochs(monkeypatch, scanned):
    """Makes each epoch one program, dispatched before the last one is logged, as on an accelerator;
    with `scanned` False, makes each step a program."""
    init = epoch_runner.EpochRunner.__init__

    def init_scanned(self, *args, **options):
        if options["scanned"] is None:  # the default of this type of device
            options["scanned"] = scanned
        init(self, *args, **options)

    monkeypatch.setattr(epoch_runner.EpochRunner, "__init__", init_scanned)
    monkeypatch.setattr(epoch_runner.EpochRunner, "is_compiled", lambda *_: True)
    monkeypatch.setattr(loop, "_LONG_EPOCH", math.inf)
