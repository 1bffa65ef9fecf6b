"""Measures the cost of each score, next to that of the reconstruction that it comes from.

    python -m benchmarks.scores [--models=cae,improved_bigan] [--size=128] [--images=256] [--repeats=5]

Per image: the networks; then the paper's score with its map; what the calibrated score adds; and both scores with
VGG16 features in the map. Untrained weights, phantom images, batches of 32. The variants take turns, and medians over
the repeats are printed, with fractions of the networks' time.
"""

import argparse
import importlib
import time
from functools import partial

import jax
import numpy as np

from bigan_jax.commands.build import build
from bigan_jax.commands.settings import parse_settings
from bigan_jax.data.phantom import draw
from bigan_jax.detector import Batch, inference_net, init_state
from bigan_jax.evaluation import anomaly_score
from bigan_jax.evaluation.anomaly_score import ScoreFormula
from bigan_jax.evaluation.calibrated_score import PixelStatistics, calibrated_score
from bigan_jax.nn.vgg16 import weights
from bigan_jax.nn.vgg16.network import VGG16

BATCH = 32
FORMULA = ScoreFormula({"mse": 0.7, "ssim": 0.3})
FEATURES = ScoreFormula({"mse": 0.7, "ssim": 0.3, "perceptual": 0.1})


def variants(model: str, size: int):
    """Returns the functions to time by name, of a batch and its reconstruction, and the reconstruction."""
    config = importlib.import_module(f"bigan_jax.configs.{model}").get_config("folder")
    with config.unlocked():
        config.data.image_size = size
    settings = parse_settings(config)
    built = build(settings, conditions=1, steps_per_epoch=1, frozen=False)
    state = jax.jit(partial(init_state, built.detector, built.optimizers, 0, settings.data.image_shape))()
    statistics = PixelStatistics(np.zeros((size, size), np.float32), np.ones((size, size), np.float32))
    loaded = weights.load_weights("")
    vgg16 = VGG16(("relu2_2", "relu3_3"), loaded.convention, unit_features=True)
    keys = jax.random.split(jax.random.key(0), BATCH)

    @jax.jit
    def reconstruct(image):
        batch = Batch(image, np.zeros(BATCH, np.int32))
        return built.detector.reconstruct(inference_net(built.detector, state, {}), batch, keys)

    @jax.jit
    def paper(image, reconstruction):
        terms = anomaly_score.terms(image, reconstruction)
        return anomaly_score.paper_score(FORMULA, terms), anomaly_score.combined_map(FORMULA, terms)

    @jax.jit
    def both(image, reconstruction):
        score, error_map = paper(image, reconstruction)
        return score, error_map, calibrated_score(error_map, statistics)

    @jax.jit
    def features(image, reconstruction):
        of = partial(vgg16.apply, {"params": loaded.params})
        terms = anomaly_score.terms(image, reconstruction, (of(image), of(reconstruction)))
        return anomaly_score.scores(FEATURES, terms, statistics)

    return {
        "networks": lambda image, _: reconstruct(image),
        "paper": paper,
        "paper and calibrated": both,
        "both with features": features,
    }, reconstruct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="cae,improved_bigan")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    drawn = np.stack([draw("bottle", i, options.size, 1)[0] for i in range(BATCH)]) / np.float32(255)
    batches = max(1, options.images // BATCH)
    print("| model | networks, ms per image | paper's score | calibrated score, in addition | both with features |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for model in options.models.split(","):
        functions, reconstruct = variants(model, options.size)
        reconstruction = reconstruct(drawn)
        seconds = {name: [] for name in functions}
        for repeat in range(options.repeats + 1):
            for name, function in functions.items():
                began = time.perf_counter()
                for _ in range(batches):
                    jax.block_until_ready(function(drawn, reconstruction))
                if repeat:  # the first compiles
                    seconds[name].append((time.perf_counter() - began) / (batches * BATCH))
        networks, paper, both, features = (float(np.median(values)) for values in seconds.values())
        extra = both - paper
        cells = f"{1e3 * extra:.3f} ({extra / networks:.1%})"
        print(
            f"| {model} | {1e3 * networks:.2f} | {1e3 * paper:.2f} ({paper / networks:.0%}) | {cells} "
            f"| {1e3 * features:.1f} ({features / networks:.1f} times) |"
        )


if __name__ == "__main__":
    main()
