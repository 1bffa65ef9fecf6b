"""python benchmarks/evaluation.py [--config=cae] [--pictures=1000] [--size=128]

How an evaluation's time is spent: the networks' share against everything else (error maps, metrics,
bootstrap, controls, figures, report), with weights that were never trained and phantom pictures,
half of them normal. Seconds are the processor's, all threads together: a busy machine changes them
least. Networks, and networks with their scores and error maps, are timed once they are compiled.
"""

import argparse
import cProfile
import importlib
import pstats
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bigan_jax import detector as game
from bigan_jax.build import build, picture_shape
from bigan_jax.detector import Batch
from bigan_jax.evaluation import evaluate_run, load_audited
from bigan_jax.scorer import Scorer, formula_of
from bigan_jax.search import Searcher

SCORING = "scorer.py", "score"
METRICS = "score table", "image metrics", "bootstrap", "pixel metrics"
STAGES = {
    "score table": ("scoring.py", "table"),
    "image metrics": ("metrics.py", "image_metrics"),
    "bootstrap": ("intervals.py", "bootstrap"),
    "pixel metrics": ("evaluation.py", "_pixels"),
    "controls": ("evaluation.py", "_controls"),
    "figures and report": ("evaluation.py", "_write_pictures"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="cae", help="a file of configs/")
    parser.add_argument("--pictures", type=int, default=1000, help="in the test")
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    args = parser.parse_args()

    config = importlib.import_module(f"configs.{args.config}").get_config("phantom")
    with config.unlocked():
        config.data.image_size, config.data.test_fraction = args.size, 0.5
        config.data.phantom_normal = args.pictures
        config.data.phantom_anomalous = args.pictures // 2
    dataset, found = load_audited(config)
    detector = build(config, len(dataset.conditions), 1, frozen=False).detector
    state = initial(config, len(dataset.conditions))

    networks = reconstruction_seconds(config, dataset, detector, state)
    scored = scoring_seconds(config, dataset, detector, state)
    profile = cProfile.Profile(time.process_time)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as workdir:
        profile.runcall(evaluate_run, config, dataset, found, detector, state, Path(workdir))
    total = time.process_time() - began

    pictures = len(dataset.test.label) + len(dataset.calibration.label)
    print(f"\n{config.name}, {pictures} pictures of {args.size}x{args.size}, {jax.devices()[0]}")
    print(f"{total:8.2f} s  whole evaluation")
    print(f"{networks:8.2f} s  networks alone: {100 * networks / total:.1f} %")
    spent = cumulative(profile)
    print(f"{scored - networks:8.2f} s  scores and error maps")
    print(f"{spent.pop(SCORING) - scored:8.2f} s  compilation of both")
    for stage, place in STAGES.items():
        print(f"{spent[place]:8.2f} s  {stage}")
    measuring = scored - networks + sum(spent[STAGES[stage]] for stage in METRICS)
    share = measuring / (networks + measuring)
    print(f"scores, maps and metrics beside the networks: {100 * share:.1f} %")


def initial(config, conditions):
    """A state of small random numbers: nothing is compiled for it."""
    built = build(config, conditions, 1, frozen=False)
    like = jax.eval_shape(
        lambda: game.init(built.detector, built.optimizers, 0, picture_shape(config))
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.05 * rng.random(x.shape), x.dtype), like)


def reconstruction_seconds(config, dataset, detector, state):
    """Seconds for the reconstructions of all pictures that are scored, and nothing more."""
    searcher = Searcher(detector)

    def look(state, batch, keys):
        net = game.inference_net(detector, state, {})
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
    """Seconds for reconstructions, scores and error maps of the same pictures."""
    formula, shape = formula_of(config.score), picture_shape(config)
    scorer = Scorer(detector, state, formula, shape, config.batch_size)
    parts = dataset.calibration.image, dataset.test.image
    scorer.score(dataset.test.image[: config.batch_size])
    began = time.process_time()
    for images in parts:
        scorer.score(images)
    return time.process_time() - began


def cumulative(profile):
    """Seconds in each function of the package and what it calls, by file and name."""
    found = dict.fromkeys([SCORING, *STAGES.values()], 0.0)
    for (path, _, name), (*_, seconds, _) in pstats.Stats(profile).stats.items():
        key = Path(path).name, name
        if Path(path).parent.name == "bigan_jax" and key in found:
            found[key] += seconds
    return found


if __name__ == "__main__":
    main()
