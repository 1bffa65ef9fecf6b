"""Measures the cost of an evaluation in addition to its networks.

    python -m benchmarks.evaluation [--config=improved_bigan] [--images=1000] [--size=128]

Uses untrained weights and phantom images, half of them normal. Seconds are processor time of all
threads, which other load changes least. Everything runs twice and the second run counts, so that
programs are compiled and memory is allocated.

"Networks" are the reconstructions of all calibration and test images. Scores and error maps are the
cost of the same scorer with a network that does nothing; metrics include the table of scores,
intervals and pixel metrics; figures, report and other files are written. Two fractions are printed:
scores, maps and metrics relative to themselves plus the networks, and everything but the networks.

Measured on one core of an AMD EPYC, 1,024 test and 38 calibration images of 128x128:

    config            networks   scores, maps, metrics   all but the networks
    improved_bigan      13.0 s          1.23 s, 8.7 %           4.2 s, 24.3 %
    cae                 10.5 s          1.03 s, 9.0 %           3.6 s, 25.4 %

At another time the first line was 9.5, 0.65 and 2.4 s. The rest is the same work for all detectors,
so its fraction is larger for lighter networks. Scores, maps and metrics are below a tenth for
either network; baselines (four more scorings, and the search of the nearest training image) take
1.5 s, figures and report 1.0 to 1.4 s. A score without its maps would not be cheaper: XLA:CPU then
fuses the blurs of SSIM with their uses, which takes twice the time. Baselines in a thread next to
the networks gained no wall time: XLA uses both cores.
"""

import argparse
import importlib
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from bigan_jax.commands import evaluate, setup
from bigan_jax.commands.build import build
from bigan_jax.commands.settings import parse_settings
from bigan_jax.detector import Batch, inference_net, init_state
from bigan_jax.evaluation import anomaly_score, assess, baselines
from bigan_jax.evaluation.latent_search import LatentSearcher
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.reports import evaluation_files

METRICS = {  # functions by the module where they are looked up
    "score table": (anomaly_score, "score_table"),
    "image metrics": (assess, "image_metrics"),
    "intervals": (assess, "bootstrap_intervals"),
    "pixel threshold": (assess, "pixel_threshold"),
    "pixel metrics": (assess, "_pixel_results"),
}
OTHERS = {
    "baselines": (baselines, "baseline_scores"),
    "figures, report and other files": (evaluation_files, "write_evaluation"),
}
SCORING = {"scoring": (AnomalyScorer, "score")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="improved_bigan", help="name of a file in configs/")
    parser.add_argument("--images", type=int, default=1000, help="number of test images")
    parser.add_argument("--size", type=int, default=128, help="image side in pixels")
    args = parser.parse_args()

    config = importlib.import_module(f"configs.{args.config}").get_config("phantom")
    with config.unlocked():
        config.data.image_size, config.data.test_fraction = args.size, 0.5
        config.data.phantom_normal = args.images
        config.data.phantom_anomalous = args.images // 2
    settings = parse_settings(config)
    dataset, audit = setup.load_audited(settings)
    detector = build(settings, len(dataset.conditions), 1, frozen=False).detector
    state = random_state(config, len(dataset.conditions))

    networks = reconstruction_seconds(config, dataset, detector, state)
    maps = scoring_seconds(config, dataset, detector, state)
    with tempfile.TemporaryDirectory() as workdir:
        jax.config.update("jax_compilation_cache_dir", f"{workdir}/programs")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        for _ in range(2):
            with Stopwatch(METRICS | OTHERS | SCORING) as stopwatch:
                began = time.process_time()
                evaluate.evaluate_run(config, dataset, audit, detector, state, 0, Path(workdir))
                total = time.process_time() - began

    measuring = maps + sum(stopwatch.seconds[name] for name in METRICS)
    outside = total - stopwatch.seconds["scoring"] + maps
    rest = outside - measuring - sum(stopwatch.seconds[name] for name in OTHERS)
    images = len(dataset.test.label) + len(dataset.calibration.label)
    print(f"\n{config.name}, {images} images of {args.size}x{args.size}, {jax.devices()[0]}")
    print(f"{networks:8.2f} s  networks")
    print(f"{maps:8.2f} s  scores and error maps")
    for name in (*METRICS, *OTHERS):
        print(f"{stopwatch.seconds[name]:8.2f} s  {name}")
    print(f"{rest:8.2f} s  the rest")
    print(f"scores, maps and metrics: {fraction(measuring, networks)} with the networks")
    print(f"all but the networks: {fraction(outside, networks)} of the evaluation")


def fraction(seconds, networks):
    return f"{seconds:.2f} s, {100 * seconds / (seconds + networks):.1f} %"


class Stopwatch(ExitStack):
    """Processor seconds in functions while it is open, by name."""

    def __init__(self, functions):
        super().__init__()
        self.seconds = dict.fromkeys(functions, 0.0)
        for name, (owner, function) in functions.items():
            timed = self._timed(name, getattr(owner, function))
            self.enter_context(mock.patch.object(owner, function, timed))

    def _timed(self, name, function):
        def timed(*args, **kwargs):
            began = time.process_time()
            result = function(*args, **kwargs)
            self.seconds[name] += time.process_time() - began
            return result

        return timed


def random_state(config, conditions):
    """A state of small random numbers, without compiling an initialization."""
    settings = parse_settings(config)
    built = build(settings, conditions, 1, frozen=False)
    like = jax.eval_shape(lambda: init_state(built.detector, built.optimizers, 0, settings.data.image_shape))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.05 * rng.random(x.shape), x.dtype), like)


def reconstruction_seconds(config, dataset, detector, state):
    """Processor seconds of the reconstructions of all scored images."""
    searcher = LatentSearcher(detector)

    def run_networks(state, batch, keys):
        net = inference_net(detector, state, {})
        native = detector.native_score and detector.native_score(net, batch, keys)
        return detector.reconstruct(net, batch, keys), native

    run_networks = jax.jit(run_networks)
    images = np.concatenate([dataset.calibration.image, dataset.test.image])
    keys = jnp.broadcast_to(jax.random.key(0), config.batch_size)

    def run(start):
        indices = np.arange(start, start + config.batch_size).clip(max=len(images) - 1)
        batch = Batch(jnp.asarray(images[indices]) / 255, jnp.zeros(len(indices), jnp.int32))
        jax.block_until_ready(run_networks(state, searcher(state, {}, batch, keys), keys))

    run(0)
    began = time.process_time()
    for start in range(0, len(images), config.batch_size):
        run(start)
    return time.process_time() - began


def scoring_seconds(config, dataset, detector, state):
    """Processor seconds of scores and error maps of all images, without the networks."""
    trivial = detector._replace(reconstruct=lambda net, batch, keys: 1 - batch.image, native_score=None, search=None)
    settings = parse_settings(config)
    formula, shape = settings.score.formula, settings.data.image_shape
    scorer = AnomalyScorer(trivial, state, formula, shape, config.batch_size)
    for _ in range(2):
        began = time.process_time()
        for split in (dataset.calibration, dataset.test):
            scorer.score(split.image)
        seconds = time.process_time() - began
    return seconds


if __name__ == "__main__":
    main()
