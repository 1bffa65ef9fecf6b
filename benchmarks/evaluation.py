"""python -m benchmarks.evaluation [--config=improved_bigan] [--pictures=1000] [--size=128]

What an evaluation costs beside its networks, with weights that were never trained and phantom
pictures, half of them normal. Seconds are the processor's, all threads together: a busy machine
changes them least. Everything runs twice and the second counts, so that programs are compiled, or
read from the cache where a run finds them, and memory has been used before.

Networks: the reconstructions of all calibration and test pictures. Everything else stands outside.
Scores and error maps are what the same scorer costs with a network that does nothing; to metrics
belong the table of scores, intervals and pixel figures; figures and report are written to files.
Two shares are printed: scores, maps and metrics beside the networks, and all of the evaluation
beside them.

Measured on one core of an AMD EPYC, 1,024 test and 38 calibration pictures of 128x128:

    config            networks   scores, maps, metrics   all outside the networks
    improved_bigan      13.0 s          1.23 s, 8.7 %           4.2 s, 24.3 %
    cae                 10.5 s          1.03 s, 9.0 %           3.6 s, 25.4 %

In another hour the first line was 9.5, 0.65 and 2.4 s. What is outside is the same work for every
detector, so that a lighter network has a larger share of it. Scores, maps and metrics are under a
tenth beside either network; controls, which are four scorings more and the search for the nearest
of all training pictures, take 1.5 s, figures and report 1.0 to 1.4 s. A score without its maps
would be no cheaper: XLA:CPU then merges the blurs of SSIM with what uses them, twice the time.
The controls in a thread beside the networks gained nothing by the clock: XLA fills two cores.
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
from bigan_jax.evaluation import anomaly_score
from bigan_jax.evaluation.latent_search import LatentSearcher
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.metrics import image, pixel
from bigan_jax.reports import evaluation_files

METRICS = {
    "score table": (anomaly_score, "table"),
    "image metrics": (image, "image_metrics"),
    "intervals": (evaluate, "bootstrap"),
    "pixel threshold": (pixel, "pixel_threshold"),
    "pixel metrics": (evaluate, "_pixels"),
}
OTHERS = {
    "controls": (evaluate, "_controls"),
    "figures and report": (evaluation_files, "_write_pictures"),
}
SCORING = {"scoring": (AnomalyScorer, "score")}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="improved_bigan", help="a file of configs/")
    parser.add_argument("--pictures", type=int, default=1000, help="in the test")
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    args = parser.parse_args()

    config = importlib.import_module(f"configs.{args.config}").get_config("phantom")
    with config.unlocked():
        config.data.image_size, config.data.test_fraction = args.size, 0.5
        config.data.phantom_normal = args.pictures
        config.data.phantom_anomalous = args.pictures // 2
    dataset, found = setup.load_audited(parse_settings(config))
    detector = build(parse_settings(config), len(dataset.conditions), 1, frozen=False).detector
    state = initial(config, len(dataset.conditions))

    networks = reconstruction_seconds(config, dataset, detector, state)
    maps = scoring_seconds(config, dataset, detector, state)
    with tempfile.TemporaryDirectory() as workdir:
        jax.config.update("jax_compilation_cache_dir", f"{workdir}/programs")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        for _ in range(2):
            with Stopwatch(METRICS | OTHERS | SCORING) as watch:
                began = time.process_time()
                evaluate.evaluate_run(config, dataset, found, detector, state, Path(workdir))
                total = time.process_time() - began

    measuring = maps + sum(watch.seconds[name] for name in METRICS)
    outside = total - watch.seconds["scoring"] + maps
    rest = outside - measuring - sum(watch.seconds[name] for name in OTHERS)
    pictures = len(dataset.test.label) + len(dataset.calibration.label)
    print(f"\n{config.name}, {pictures} pictures of {args.size}x{args.size}, {jax.devices()[0]}")
    print(f"{networks:8.2f} s  networks")
    print(f"{maps:8.2f} s  scores and error maps")
    for name in (*METRICS, *OTHERS):
        print(f"{watch.seconds[name]:8.2f} s  {name}")
    print(f"{rest:8.2f} s  the rest")
    print(f"scores, maps and metrics: {share(measuring, networks)} of the time with the networks")
    print(f"all outside the networks: {share(outside, networks)} of the whole evaluation")


def share(part, networks):
    return f"{part:.2f} s, {100 * part / (part + networks):.1f} %"


class Stopwatch(ExitStack):
    """Seconds in functions, by the names given to them, while it is open."""

    def __init__(self, places):
        super().__init__()
        self.seconds = dict.fromkeys(places, 0.0)
        for name, (owner, function) in places.items():
            timed = self._timed(name, getattr(owner, function))
            self.enter_context(mock.patch.object(owner, function, timed))

    def _timed(self, name, function):
        def timed(*args, **kwargs):
            began = time.process_time()
            result = function(*args, **kwargs)
            self.seconds[name] += time.process_time() - began
            return result

        return timed


def initial(config, conditions):
    """A state of small random numbers: nothing is compiled for it."""
    built = build(parse_settings(config), conditions, 1, frozen=False)
    like = jax.eval_shape(
        lambda: init_state(
            built.detector, built.optimizers, 0, parse_settings(config).data.image_shape
        )
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.05 * rng.random(x.shape), x.dtype), like)


def reconstruction_seconds(config, dataset, detector, state):
    """Seconds for the reconstructions of all pictures that are scored, and nothing more."""
    searcher = LatentSearcher(detector)

    def look(state, batch, keys):
        net = inference_net(detector, state, {})
        native = detector.native_score and detector.native_score(net, batch, keys)
        return detector.reconstruct(net, batch, keys), native

    look = jax.jit(look)
    images = np.concatenate([dataset.calibration.image, dataset.test.image])
    keys = jnp.broadcast_to(jax.random.key(0), config.batch_size)

    def run(start):
        chosen = np.arange(start, start + config.batch_size).clip(max=len(images) - 1)
        batch = Batch(jnp.asarray(images[chosen]) / 255, jnp.zeros(len(chosen), jnp.int32))
        jax.block_until_ready(look(state, searcher(state, {}, batch, keys), keys))

    run(0)
    began = time.process_time()
    for start in range(0, len(images), config.batch_size):
        run(start)
    return time.process_time() - began


def scoring_seconds(config, dataset, detector, state):
    """Seconds for scores and error maps of all pictures, of reconstructions that cost nothing."""
    idle = detector._replace(
        reconstruct=lambda net, batch, keys: 1 - batch.image, native_score=None, search=None
    )
    formula, shape = parse_settings(config).score.formula, parse_settings(config).data.image_shape
    scorer = AnomalyScorer(idle, state, formula, shape, config.batch_size)
    for _ in range(2):
        began = time.process_time()
        for part in (dataset.calibration, dataset.test):
            scorer.score(part.image)
        seconds = time.process_time() - began
    return seconds


if __name__ == "__main__":
    main()
