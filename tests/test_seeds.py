"""Several seeds side by side: each as it is alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigan_jax import detector as game
from bigan_jax import parallel
from bigan_jax.detector import TrainingSet
from bigan_jax.models import fcae, improved_bigan
from bigan_jax.training import epoch_order

SHAPE = (16, 16, 1)
BIGAN = improved_bigan.create(
    shape=SHAPE,
    latent=8,
    widths=(8,),
    discriminator_widths=(8,),
    discriminator_hidden=8,
    se_ratio=4,
    reconstruction_terms={"mse": 1.0},
)
DUE = ("discriminator", "adversarial", "reconstruction")
AUGMENTATION = {"flip": True, "translate": 0.05, "scale": 0.05}
PICTURES = TrainingSet(
    np.random.default_rng(0).integers(0, 256, (32, *SHAPE), np.uint8), np.zeros(32, np.int32)
)


def devices(monkeypatch, number):
    monkeypatch.setattr(jax, "local_device_count", lambda: number)
    monkeypatch.setattr(jax, "device_count", lambda: number)


def runner(detector, optimizer, scanned, seeds=0, streamed=False):
    return parallel.Runner(
        detector,
        dict.fromkeys(detector.objectives, optimizer),
        AUGMENTATION,
        parallel.replicate(dict(detector.frozen)),
        PICTURES if streamed else parallel.replicate(PICTURES),
        scanned,
        seeds,
    )


def trained(run, state, orders, due=DUE):
    """The state after two epochs and an estimate of statistics, and the logs of the second."""
    state = run.layout.place(state)
    for order in orders:
        state, logs = run.epoch(state, due, order)
    in_order = np.broadcast_to(np.arange(8), orders[0].shape)
    state = run.with_statistics(state, in_order)
    return jax.device_get(run.layout.take(state)), logs


def states(detector, optimizer, seeds):
    optimizers = dict.fromkeys(detector.objectives, optimizer)
    begin = jax.jit(lambda seed: game.init(detector, optimizers, seed, SHAPE))
    return [begin(seed) for seed in seeds]


@pytest.mark.parametrize(
    ("number", "seeds", "scanned"),
    [(1, 3, False), (2, 4, True), (4, 2, False), (4, 2, True)],
    ids=["on one device", "two a device", "all on all", "all on all, scanned"],
)
def test_each_seed_is_as_it_is_alone(monkeypatch, number, seeds, scanned):
    """State, statistics and logs. Plain gradient descent: see test_detector."""
    devices(monkeypatch, number)
    optimizer, names = optax.sgd(0.02), range(5, 5 + seeds)
    begin = states(BIGAN, optimizer, names)
    orders = [[epoch_order(seed, epoch, 32, 2, 8) for seed in names] for epoch in range(2)]
    together, logs = trained(
        runner(BIGAN, optimizer, scanned, seeds),
        jax.tree.map(lambda *x: jnp.stack(x), *begin),
        [np.stack(order, 1) for order in orders],
    )
    alone = runner(BIGAN, optimizer, scanned)
    for i in {0, seeds - 1}:
        state, its_logs = trained(alone, begin[i], [order[i] for order in orders])
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
            jax.tree.map(lambda x, i=i: x[i], together),
            state,
        )
        assert logs.keys() == its_logs.keys()
        for name in logs.keys() - {"adversarial/spread", "adversarial/real_spread"}:
            assert logs[name].shape == (seeds, 2)
            np.testing.assert_allclose(logs[name][i], its_logs[name], rtol=1e-3, atol=1e-4)


def test_seeds_differ():
    """They do not all train on the same noise, pictures or initial values."""
    optimizer = optax.sgd(0.02)
    begin = states(BIGAN, optimizer, (0, 1))
    kernel = [state.params["encoder"]["Dense_0"]["kernel"] for state in begin]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1
    same = begin[0]._replace(seed=begin[1].seed)  # but for the noise
    order = epoch_order(0, 0, 32, 2, 8)
    run = runner(BIGAN, optimizer, False, 2)
    both = jax.tree.map(lambda *x: jnp.stack(x), begin[0], same)
    _, logs = trained(run, both, [np.stack([order, order], 1)])
    assert np.abs(np.subtract(*logs["discriminator/loss"])).min() > 1e-4


def test_streamed_seeds_each_get_their_pictures(monkeypatch):
    devices(monkeypatch, 2)
    detector = fcae.create(shape=SHAPE, hidden=(8, 4))
    optimizer, due = optax.sgd(0.02), tuple(detector.objectives)
    begin = jax.tree.map(lambda *x: jnp.stack(x), *states(detector, optimizer, range(3)))
    orders = [np.stack([epoch_order(seed, 0, 32, 2, 8) for seed in range(3)], 1)]
    found = [
        trained(runner(detector, optimizer, scanned, 3, streamed), begin, orders, due)
        for scanned, streamed in ((False, False), (False, True))
    ]
    jax.tree.map(np.testing.assert_array_equal, *found)
