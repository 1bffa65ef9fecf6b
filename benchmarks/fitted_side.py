"""The JAX side of benchmarks/fitted.py: two fitted detectors, and the images and weights for the other side."""

import importlib

import jax
import numpy as np

from benchmarks.sides import Stopwatch
from bigan_jax.commands.build import build
from bigan_jax.commands.load import make_scorer
from bigan_jax.commands.settings import parse_settings
from bigan_jax.data.loading import load_dataset
from bigan_jax.nn.feature_maps import NETWORK
from bigan_jax.nn.vgg16.weights import load_weights
from bigan_jax.runtime.jax_setup import keep_freed_memory
from bigan_jax.training.fitting import Fitter


class FittedSide:
    """The detectors of this library, by the names of their configs."""

    def __init__(self, task):
        keep_freed_memory()  # as launch.py does
        self.task = task
        self.settings, self.detectors, self.fitters, self.scorers = {}, {}, {}, {}
        for name in ("patch_gaussian", "memory_bank"):
            config = importlib.import_module(f"configs.{name}").get_config("mvtec")
            with config.unlocked():
                config.data.image_size, config.batch_size = task.size, task.batch
                config.update_from_flattened_dict(task.changes)
            settings = self.settings[name] = parse_settings(config)
            self.detectors[name] = build(settings, conditions=1, steps_per_epoch=1).detector
            self.fitters[name] = Fitter(self.detectors[name], settings.data.image_shape, task.batch)

    def describe(self) -> dict:
        """The dataset, VGG16's arrays and what the report mentions."""
        settings = self.settings["patch_gaussian"]
        weights = load_weights(settings.vgg16_weights, ("relu4_3",))
        assert weights.convention == "torchvision", "the other side normalizes images as torchvision does"
        dataset = load_dataset(settings.data)
        test = dataset.test
        return {
            "train": dataset.train.image,
            "test": {"image": test.image, "label": test.label, "mask": test.mask, "has_mask": test.has_mask},
            "weights": weights.params,
            "components": settings.model["components"],
            "device": jax.devices()[0].device_kind,
            "version": jax.__version__,
        }

    def features(self, images) -> list[np.ndarray]:
        """The feature maps of all layers, [n h w c]."""
        detector = self.detectors["patch_gaussian"]
        maps = detector.networks[NETWORK].apply(detector.frozen[NETWORK], np.float32(images) / 255)
        return [np.asarray(x) for x in maps]

    def fit(self, name, images) -> dict:
        """Fits a detector from the start."""
        stopwatch = Stopwatch()
        state = self.fitters[name].fit(images, seed=0)
        seconds = stopwatch.read()
        settings = self.settings[name], self.detectors[name], state
        self.scorers[name] = make_scorer(*settings, batch_size=self.task.batch, name="native")
        return seconds

    def score(self, name, images) -> dict:
        """Scores images."""
        stopwatch = Stopwatch()
        scores = self.scorers[name].score(images)
        return {"score": scores.score, "map": scores.error_map, **stopwatch.read()}
