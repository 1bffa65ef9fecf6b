"""BatchNorm statistics for scoring, against NumPy in float64 and on any number of devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigan_jax.detector import Detector, LatentSearch, Objective
from bigan_jax.models import vae
from bigan_jax.nn import losses
from bigan_jax.nn.blocks import BATCH_AXIS, BatchNorm
from bigan_jax.training import epoch_runner
from bigan_jax.training.batchnorm_statistics import pool
from tests.helpers.training import SHAPE, assert_near, initial_states, limit_devices, make_runner, training_set

ORDER = np.random.default_rng(5).permutation(32).reshape(8, 4)
SGD = optax.sgd(0.1)
IMAGES = training_set().image / 255  # float64
SEARCH = LatentSearch(1, lambda net, batch, keys: batch.image, lambda net, batch, search: search)


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return BatchNorm(use_running_average=not train)(nn.Dense(3)(x.reshape(len(x), -1)))


class Conv(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return BatchNorm(use_running_average=not train)(nn.Conv(3, (1, 1))(x))


def layer(params, x):
    """Returns the values before BatchNorm in float64, [n, 3]."""
    (weights,) = (p for name, p in params.items() if "BatchNorm" not in name)
    kernel = np.asarray(weights["kernel"], np.float64).reshape(-1, 3)
    return x.reshape(-1, len(kernel)) @ kernel + np.asarray(weights["bias"], np.float64)


def make_detector(network, averaging=0.0, search=None):
    """Returns a detector that reconstructs by "n", whose loss also calls it, and "d" twice."""

    def loss(net, batch, keys):
        outputs = net("n", 1 - batch.image), net("d", batch.image), net("d", 1 - batch.image)
        return sum(jnp.square(x).mean() for x in outputs), {}

    def reconstruct(net, batch, keys):
        return net("n", batch.image)

    objectives = {"fit": Objective(("n", "d"), loss)}
    return Detector({"n": network, "d": Dense()}, objectives, reconstruct, search=search, averaging=averaging)


def prior_loss(net, batch, keys):
    return jnp.square(net("n", losses.standard_normal(keys, 3))).mean(), {}


PRIOR = Detector({"n": Dense()}, {"fit": Objective(("n",), prior_loss)}, reconstruct=None, search=SEARCH)


def estimate(detector, order, scanned=False, streamed=False, change=lambda state: state):
    """Returns the state after an estimate over batches [steps, *seeds, batch]."""
    seeds = order.shape[1] if order.ndim > 2 else 0
    runner = make_runner(detector, SGD, scanned, seeds, streamed)
    states = [change(state) for state in initial_states(detector, SGD, range(3, 3 + max(1, seeds)))]
    state = jax.tree.map(lambda *x: jnp.stack(x), *states) if seeds else states[0]
    state = runner.with_statistics(runner.layout.to_devices(state), order)
    return jax.device_get(runner.layout.from_devices(state))


def assert_statistics(state, name, values):
    """Compares with mean and population variance."""
    statistics = state.collections[name]["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], values.mean(0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(statistics["var"], values.var(0), rtol=1e-4)


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("network", [Dense(), Conv()], ids=["dense", "conv"])
def test_statistics_are_those_of_all_images_as_reconstructed(network, scanned):
    """Over batches of 4. Those of the discriminator, which does not reconstruct, are of both its calls."""
    state = estimate(make_detector(network), ORDER, scanned)
    assert_statistics(state, "n", layer(state.params["n"], IMAGES))
    both = np.concatenate([IMAGES, 1 - IMAGES])
    values = layer(state.params["d"], both)
    assert_statistics(state, "d", values)
    of_batches = layer(state.params["d"], IMAGES[ORDER.ravel()]).reshape(8, 4, 3)
    assert (of_batches.var(1).mean(0) < 0.95 * of_batches.reshape(-1, 3).var(0)).all()  # the mean would be too low


def test_statistics_are_those_of_averaged_weights():
    def change(state):
        return state._replace(average=jax.tree.map(lambda x: x + 0.1, state.params))

    state = estimate(make_detector(Dense(), averaging=0.9), ORDER, change=change)
    assert_statistics(state, "n", layer(state.average["n"], IMAGES))


def test_statistics_with_latent_search_are_those_of_the_objective():
    state = estimate(make_detector(Dense(), search=SEARCH), ORDER)
    assert_statistics(state, "n", layer(state.params["n"], 1 - IMAGES))


def test_batches_draw_different_codes():
    one, two = (estimate(PRIOR, order).collections["n"]["batch_stats"] for order in (ORDER[:1], ORDER[[0, 0]]))
    assert np.abs(one["BatchNorm_0"]["mean"] - two["BatchNorm_0"]["mean"]).min() > 1e-2


def test_devices_programs_and_streaming_agree(monkeypatch):
    """With random codes, and for each of two seeds with their own images."""
    monkeypatch.setattr(epoch_runner, "_CHUNK", 3 * 4 * 2 * IMAGES[0].size)  # chunks of 3, 3 and 2 batches
    orders = np.stack([ORDER, ORDER[::-1]], 1)
    results = []
    for devices, scanned, streamed in (1, False, False), (4, False, True), (4, True, False), (2, True, True):
        limit_devices(monkeypatch, devices)
        results.append(estimate(PRIOR, orders, scanned, streamed).collections)
    for result in results[1:]:
        assert_near(result, results[0], tolerance=1e-5)


def test_vae_has_statistics_of_mean_codes():
    """Those of the decoder's first layer, for one batch; codes are drawn in training alone."""
    detector = vae.create(shape=SHAPE, latent=4, widths=(4,))
    state = estimate(detector, np.arange(32)[None])
    variables = {"params": state.params["encoder"], **state.collections["encoder"]}

    def encode(x):
        code, _ = detector.networks["encoder"].apply(variables, x, train=True, mutable=["batch_stats"])
        return code

    codes = jax.vmap(encode, axis_name=BATCH_AXIS)(jnp.asarray(IMAGES, jnp.float32)[None])[0]
    dense = jax.tree.map(np.float64, state.params["decoder"]["Dense_0"])
    values = np.asarray(codes[:, :4], np.float64) @ dense["kernel"] + dense["bias"]
    statistics = state.collections["decoder"]["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["var"], values.reshape(-1, 4).var(0), rtol=1e-3)


def test_pooled_variance_is_exact_to_rounding_for_a_large_mean():
    """The difference of the mean square and the squared mean has no correct digit in float32."""
    values = 3e3 + np.random.default_rng(0).normal(0, 0.5, (50, 6, 2)).astype(np.float32)
    pooled = {"mean": jnp.zeros(2), "var": jnp.zeros(2)}
    for number, batch in enumerate(values.astype(np.float64)):
        moments = {"mean": np.float32(batch.mean(0)), "var": np.float32(batch.var(0))}
        pooled = pool(pooled, moments, jnp.array(1 / (number + 1)))
    np.testing.assert_allclose(pooled["var"], values.reshape(-1, 2).astype(np.float64).var(0), rtol=1e-2)
