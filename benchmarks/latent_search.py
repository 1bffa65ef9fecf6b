"""Measures AnoGAN's latent search over many images at once and one by one.

    python -m benchmarks.latent_search

Prints images per second of both and their ratio, after asserting that both find the same codes. The
target is a ratio of 20, on an accelerator: one image already occupies a CPU with few cores.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigan_jax.detector import Batch, init_state
from bigan_jax.evaluation.latent_search import LatentSearcher
from bigan_jax.models import anogan


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64, help="image side in pixels")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=64, help="number of images to search at once")
    parser.add_argument("--alone", type=int, default=4, help="number of them to search one by one as well")
    args = parser.parse_args()
    at_once, one_by_one = measure(**vars(args))
    print(f"{args.steps} steps, {args.size}x{args.size}, on {jax.devices()[0].device_kind}")
    print(f"{args.images} at once: {at_once:.2f} images/s")
    print(f"one at a time: {one_by_one:.2f} images/s")
    print(f"ratio: {at_once / one_by_one:.1f}")


def measure(size, widths, steps, images, alone):
    """Images per second at once and one by one; arguments as on the command line."""
    shape = (size, size, 1)
    detector = anogan.create(shape=shape, widths=tuple(widths), search_steps=steps)
    optimizers = dict.fromkeys(detector.objectives, optax.sgd(0.0))
    state = jax.jit(lambda: init_state(detector, optimizers, 0, shape))()
    image = jax.random.uniform(jax.random.key(0), (images, *shape))
    searcher, short = LatentSearcher(detector), LatentSearcher(_shortened(detector))

    def search(first, last, searcher=searcher):
        chosen = image[first:last]
        keys = jnp.broadcast_to(jax.random.key(1), len(chosen))
        batch = searcher(state, {}, Batch(chosen, np.zeros(len(chosen), np.int32)), keys)
        return np.asarray(batch.latent.codes)

    with jax.default_matmul_precision("highest"):  # few steps, as accelerators round less exactly
        batched = search(0, images, short)
        one_by_one = np.concatenate([search(i, i + 1, short) for i in range(alone)])
    np.testing.assert_allclose(batched[:alone], one_by_one, atol=1e-4)

    search(0, images), search(0, 1)  # compiles
    began = time.perf_counter()
    search(0, images)
    at_once = images / (time.perf_counter() - began)
    began = time.perf_counter()
    for i in range(alone):
        search(i, i + 1)
    return at_once, alone / (time.perf_counter() - began)


def _shortened(detector):
    search = detector.search
    return detector._replace(search=search._replace(steps=min(search.steps, 10)))


if __name__ == "__main__":
    main()
