"""python -m benchmarks.latent_search

AnoGAN's latent search over many pictures at once against one picture at a time: pictures a second
of each and their ratio, after asserting that both find the same. The aim is a ratio of 20 or more,
which wants an accelerator: a CPU of a few cores is busy with one picture already.
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
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pictures", type=int, default=64, help="searched at once")
    parser.add_argument("--alone", type=int, default=4, help="of them searched one by one as well")
    args = parser.parse_args()
    at_once, one_by_one = measure(**vars(args))
    print(f"{args.steps} steps, {args.size}x{args.size}, on {jax.devices()[0].device_kind}")
    print(f"{args.pictures} at once: {at_once:.2f} pictures/s")
    print(f"one at a time: {one_by_one:.2f} pictures/s")
    print(f"ratio: {at_once / one_by_one:.1f}")


def measure(size, widths, steps, pictures, alone):
    """Pictures a second at once and one by one; arguments as on the command line."""
    shape = (size, size, 1)
    detector = anogan.create(shape=shape, widths=tuple(widths), search_steps=steps)
    optimizers = dict.fromkeys(detector.objectives, optax.sgd(0.0))
    state = jax.jit(lambda: init_state(detector, optimizers, 0, shape))()
    image = jax.random.uniform(jax.random.key(0), (pictures, *shape))
    searcher, short = LatentSearcher(detector), LatentSearcher(_shortened(detector))

    def search(first, last, searcher=searcher):
        part = image[first:last]
        keys = jnp.broadcast_to(jax.random.key(1), len(part))
        batch = searcher(state, {}, Batch(part, np.zeros(len(part), np.int32)), keys)
        return np.asarray(batch.latent.codes)

    with jax.default_matmul_precision("highest"):  # and few steps: accelerators round more freely
        together = search(0, pictures, short)
        one_by_one = np.concatenate([search(i, i + 1, short) for i in range(alone)])
    np.testing.assert_allclose(together[:alone], one_by_one, atol=1e-4)

    search(0, pictures), search(0, 1)  # compiles
    began = time.perf_counter()
    search(0, pictures)
    at_once = pictures / (time.perf_counter() - began)
    began = time.perf_counter()
    for i in range(alone):
        search(i, i + 1)
    return at_once, alone / (time.perf_counter() - began)


def _shortened(detector):
    search = detector.search
    return detector._replace(search=search._replace(steps=min(search.steps, 10)))


if __name__ == "__main__":
    main()
