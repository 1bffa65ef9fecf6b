"""python benchmarks/latent_search.py

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

from bigan_jax import detector as game
from bigan_jax.detector import Batch
from bigan_jax.models import anogan
from bigan_jax.search import Searcher


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pictures", type=int, default=64, help="searched at once")
    parser.add_argument("--alone", type=int, default=4, help="of them searched one by one as well")
    args = parser.parse_args()

    shape = (args.size, args.size, 1)
    detector = anogan.create(shape=shape, widths=tuple(args.widths), search_steps=args.steps)
    optimizers = dict.fromkeys(detector.objectives, optax.sgd(0.0))
    state = jax.jit(lambda: game.init(detector, optimizers, 0, shape))()
    image = jax.random.uniform(jax.random.key(0), (args.pictures, *shape))
    searcher = Searcher(detector)

    def search(first, last):
        part = image[first:last]
        keys = jnp.broadcast_to(jax.random.key(1), len(part))
        batch = searcher(state, {}, Batch(part, np.zeros(len(part), np.int32)), keys)
        return np.asarray(batch.found.codes)

    search(0, args.pictures), search(0, 1)  # compiles
    began = time.perf_counter()
    together = search(0, args.pictures)
    at_once = args.pictures / (time.perf_counter() - began)
    began = time.perf_counter()
    alone = np.concatenate([search(i, i + 1) for i in range(args.alone)])
    one_by_one = args.alone / (time.perf_counter() - began)
    np.testing.assert_allclose(together[: args.alone], alone, atol=1e-4)

    print(f"{args.steps} steps, {args.size}x{args.size}, on {jax.devices()[0].device_kind}")
    print(f"{args.pictures} at once: {at_once:.2f} pictures/s")
    print(f"one at a time: {one_by_one:.2f} pictures/s")
    print(f"ratio: {at_once / one_by_one:.1f}")


if __name__ == "__main__":
    main()
