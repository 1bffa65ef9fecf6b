"""AnoGAN's latent search: images are independent, both loops agree, and restarts never hurt."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigan_jax.detector import Batch, inference_net, init_state
from bigan_jax.evaluation.anomaly_score import ScoreFormula
from bigan_jax.evaluation.latent_search import LatentSearcher
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.models import anogan

SHAPE = (16, 16, 1)
STEPS, RATE = 20, 0.02
ANOGAN = partial(anogan.create, shape=SHAPE, latent=6, widths=(4, 8), search_steps=STEPS, search_rate=RATE)
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def state():
    detector = ANOGAN()
    optimizers = dict.fromkeys(detector.objectives, optax.sgd(1.0))
    state = jax.jit(lambda: init_state(detector, optimizers, 0, SHAPE))()
    # Kernels as large as those of a trained GAN: from N(0, 0.02), small networks output almost 0.
    return state._replace(params=jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, state.params))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, *SHAPE), np.uint8)


@functools.cache
def compiled_search(scanned, **fields):
    detector = ANOGAN(**fields)

    @jax.jit
    def score(state, batch):
        net = inference_net(detector, state, {})
        return detector.native_score(net, batch, None), detector.reconstruct(net, batch, None)

    return LatentSearcher(detector, scanned), score


def search(state, images, scanned=False, **fields):
    """Returns native scores, reconstructions and latent codes."""
    batch = Batch(jnp.asarray(images) / 255, jnp.zeros(len(images), jnp.int32))
    keys = jnp.broadcast_to(jax.random.key(1), len(images))
    searcher, score = compiled_search(scanned, **fields)
    batch = searcher(state, {}, batch, keys)
    return *score(state, batch), batch.latent.codes


def test_images_do_not_affect_each_other(state, images):
    together = search(state, images)
    for i in (0, 3):
        alone = search(state, images[i : i + 1])
        jax.tree.map(lambda a, b, i=i: close(a[i], b[0]), together, alone)


def test_scan_and_host_loop_agree(state, images):
    looped, scanned = (search(state, images, s) for s in (False, True))
    jax.tree.map(close, looped, scanned)


def test_search_reduces_the_distance(state, images):
    at_start, _, _ = search(state, images, search_steps=1, search_rate=0.0)
    at_end, _, _ = search(state, images)
    assert (at_end < at_start).all()


def test_search_is_adam_on_the_paper_loss(state, images):
    """Compares one image with Adam written out (Kingma and Ba 2015, Algorithm 1)."""
    net = inference_net(ANOGAN(), state, {})
    x = 2 * (jnp.asarray(images[:1]) / 255) - 1

    def loss(z):
        image = net("generator", z[None])
        (_, f), (_, g) = net("discriminator", x), net("discriminator", image)
        return 0.9 * jnp.abs(x - image).sum() + 0.1 * jnp.abs(f - g).sum()

    start_key = jax.random.fold_in(jax.random.key(1), 0)
    z = np.array(jax.random.uniform(start_key, (6,), minval=-1, maxval=1), np.float64)
    m, v = np.zeros(6), np.zeros(6)
    gradient = jax.jit(jax.grad(loss))
    for t in range(1, STEPS + 1):
        g = np.array(gradient(jnp.float32(z)), np.float64)
        m, v = 0.5 * m + 0.5 * g, 0.999 * v + 0.001 * g**2
        z -= RATE * (m / (1 - 0.5**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    score, reconstruction, codes = search(state, images[:1])
    close(codes[0, 0], z)
    close(score[0], loss(jnp.float32(z)))
    close(reconstruction, (net("generator", jnp.float32(z)[None]) + 1) / 2)


def test_restarts_are_never_worse(state, images):
    once, _, _ = search(state, images)
    best, reconstruction, codes = search(state, images, restarts=4)
    assert codes.shape == (5, 4, 6)
    assert (best <= once * (1 + 1e-5)).all() and (best < 0.999 * once).any()
    assert reconstruction.shape == images.shape
    # The reconstruction is that of the restart with the best score.
    net = inference_net(ANOGAN(), state, {})
    x = 2 * (jnp.asarray(images) / 255) - 1
    (_, f), (_, g) = (net("discriminator", y) for y in (x, 2 * reconstruction - 1))
    residual = jnp.abs(x - (2 * reconstruction - 1)).sum((1, 2, 3))
    close(best, 0.9 * residual + 0.1 * jnp.abs(f - g).sum((1, 2, 3)))


def test_scorer_runs_the_search(state, images):
    """Neither the padding of the last batch nor the order of images matters."""
    scorer = AnomalyScorer(ANOGAN(), state, ScoreFormula({"mse": 0.7, "ssim": 0.3}), SHAPE, batch_size=2, name="paper")
    scores = scorer.score(images, progress="test")
    backwards = scorer.score(images[::-1])
    close(scores.native, backwards.native[::-1])
    close(scores.score, backwards.score[::-1])
    assert scores.reconstruction.shape == images.shape


def test_progress_counts_all_steps(state, images):
    batch = Batch(jnp.asarray(images) / 255, jnp.zeros(5, jnp.int32))
    keys = jnp.broadcast_to(jax.random.key(1), 5)
    for scanned in (False, True):
        steps = []
        LatentSearcher(ANOGAN(), scanned)(state, {}, batch, keys, steps.append)
        assert sum(steps) == STEPS
