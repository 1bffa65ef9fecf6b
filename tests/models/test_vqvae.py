"""The VQ-VAE and its codebook, compared with NumPy and sonnet, on one and four devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigan_jax.detector import init_state
from bigan_jax.models import vqvae
from bigan_jax.nn.blocks import BATCH_AXIS
from bigan_jax.training import device_layout, epoch_runner
from bigan_jax.training.augmentation import AugmentationSettings
from bigan_jax.training.train_step import TrainingSet
from tests.helpers.training import assert_near, gradient_recorder
from tests.models.test_autoencoders import SHAPE, VQVAE, keys, make_batch, random_net, run

# --- codebook ---

SIZE, DEPTH = 8, 3


def codebook(reseed_dead=False, size=SIZE):
    module = vqvae.Codebook(size, decay=0.9, epsilon=1e-5, reseed_dead=reseed_dead)
    variables = module.init(jax.random.key(0), jnp.zeros((2, 2, 2, DEPTH)), keys(2), train=False)
    return module, variables


def random_outputs(seed, images=4, std=0.3):
    rng = np.random.default_rng(seed)
    return rng.normal(0.1 * seed, std, (images, 2, 2, DEPTH)).astype(np.float32)


@partial(jax.jit, static_argnums=(0, 4))
def train_step(module, variables, outputs, image_keys, devices):
    """Takes one update step on simulated devices and returns the results of each."""

    def per_device(outputs, image_keys):
        return module.apply(variables, outputs, image_keys, train=True, mutable=["codebook"])

    def shard(x):
        return x.reshape(devices, -1, *x.shape[1:])

    return jax.vmap(per_device, axis_name=BATCH_AXIS)(shard(outputs), shard(image_keys))


def test_outputs_are_quantized_to_their_nearest_vectors():
    module, variables = codebook()
    outputs = random_outputs(0)
    code = module.apply(variables, jnp.asarray(outputs), keys(4), train=False).code
    vectors = np.asarray(variables["codebook"]["vectors"], np.float64)
    distances = np.linalg.norm(outputs[..., None, :] - vectors, axis=-1)
    np.testing.assert_allclose(code, vectors[distances.argmin(-1)], atol=1e-6)
    assert len(np.unique(distances.argmin(-1))) > 2
    assert vqvae.nearest(jnp.ones((1, 2)), jnp.ones((4, 2)))[0] == 0


def test_gradient_is_straight_through():
    module, variables = codebook()
    outputs = jnp.asarray(random_outputs(0))

    def quantize(x):
        quantized = module.apply(variables, x, keys(4), train=False)
        return quantized.code, quantized.commitment

    (code, _), back = jax.vjp(quantize, outputs)
    cotangent = jnp.asarray(random_outputs(5))
    np.testing.assert_array_equal(back((cotangent, jnp.zeros(())))[0], cotangent)
    gradient = back((jnp.zeros_like(code), jnp.ones(())))[0]
    np.testing.assert_allclose(gradient, 2 * (outputs - code) / outputs.size, atol=1e-7)


@pytest.mark.parametrize("devices", [1, 4])
def test_codebook_update_equals_sonnet(devices):
    """Debiased averages from 0 and Laplace smoothing, in NumPy with float64."""
    module, variables = codebook()
    vectors = np.asarray(variables["codebook"]["vectors"], np.float64)
    uses, sums, dead_counts = np.zeros(SIZE), np.zeros((SIZE, DEPTH)), set()
    for step in range(1, 7):
        outputs = random_outputs(step, std=1.0)
        quantized, updated = train_step(module, variables, outputs, keys(4), devices)
        flat = outputs.reshape(-1, DEPTH).astype(np.float64)
        assigned = np.eye(SIZE)[((flat[:, None] - vectors) ** 2).sum(-1).argmin(1)]
        uses -= (uses - assigned.sum(0)) * (1 - 0.9)
        sums -= (sums - assigned.T @ flat) * (1 - 0.9)
        average = uses / (1 - 0.9**step)
        total = average.sum()
        smoothed = (average + 1e-5) / (total + SIZE * 1e-5) * total
        vectors = sums / (1 - 0.9**step) / smoothed[:, None]
        fraction = assigned.mean(0)
        entropy = -(fraction * np.log(fraction + 1e-10)).sum()
        for device in range(devices):
            variables = jax.tree.map(lambda x, d=device: x[d], updated)
            book = variables["codebook"]
            np.testing.assert_allclose(book["vectors"], vectors, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(book["uses"], average, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(quantized.perplexity[device], np.exp(entropy), rtol=1e-4)
            assert quantized.dead[device] == (average < vqvae.DEAD_BELOW).sum()
        dead_counts.add(int(quantized.dead[0]))
    assert dead_counts != {0}


def test_perplexity_of_even_use_is_the_number_of_entries():
    np.testing.assert_allclose(vqvae.perplexity(jnp.full(8, 3.0)), 8, rtol=1e-6)
    np.testing.assert_allclose(vqvae.perplexity(jnp.zeros(8).at[2].set(5)), 1, rtol=1e-6)
    uses = jnp.asarray(np.random.default_rng(0).integers(0, 9, 8), jnp.float32)
    assert 1 < vqvae.perplexity(uses) < 8


def test_dead_entries_are_reset_to_outputs_of_the_batch():
    outputs = random_outputs(3)
    books = {}
    for seed, devices in ((0, 1), (1, 1), (0, 4)):
        module, variables = codebook(reseed_dead=True, size=32)
        quantized, updated = train_step(module, variables, outputs, keys(4, seed), devices)
        books[seed, devices] = np.asarray(updated["codebook"]["vectors"])
        assert (books[seed, devices] == books[seed, devices][:1]).all()  # the same on every device
    assert quantized.dead[0] >= 32 - 16
    np.testing.assert_allclose(books[0, 4][0], books[0, 1][0], atol=1e-5)
    assert not np.allclose(books[0, 1], books[1, 1])
    _, without_reseeding = train_step(*codebook(size=32), outputs, keys(4), 1)
    dead = np.asarray(without_reseeding["codebook"]["uses"])[0] == 0
    np.testing.assert_array_equal(without_reseeding["codebook"]["vectors"][0][dead], 0)
    distances = np.abs(books[0, 1][0][dead][:, None] - outputs.reshape(-1, DEPTH)).max(-1)
    assert distances.min(1).max() < 1e-4
    assert len(np.unique(distances.argmin(1))) > 4
    np.testing.assert_allclose(books[0, 1][0][~dead], without_reseeding["codebook"]["vectors"][0][~dead], rtol=1e-3)


# --- detector ---


@pytest.mark.parametrize("reseed_dead", [False, True])
def test_codebook_is_the_same_on_one_and_four_devices(monkeypatch, reseed_dead):
    detector = VQVAE(reseed_dead=reseed_dead)
    rng = np.random.default_rng(0)
    training_set = TrainingSet(rng.integers(0, 256, (16, *SHAPE), np.uint8), np.zeros(16, np.int32))
    order = rng.permutation(np.tile(np.arange(16), 2)).reshape(4, 8)
    optimizers = {"reconstruction": gradient_recorder()}
    results = []
    for devices, scanned in ((1, False), (4, True)):
        monkeypatch.setattr(jax, "local_device_count", lambda devices=devices: devices)
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        state = jax.jit(lambda: init_state(detector, optimizers, 3, SHAPE))()
        initial = jax.device_get(state)
        run = epoch_runner.EpochRunner(
            detector, optimizers, AugmentationSettings(), {}, device_layout.replicate(training_set), scanned
        )
        state, logs = run.epoch(device_layout.replicate(state), ("reconstruction",), order)
        trained = jax.device_get(device_layout.first(state))
        state = jax.device_get(device_layout.first(run.with_statistics(state, order)))
        jax.tree.map(np.testing.assert_array_equal, state.collections, trained.collections)
        results.append((logs, state.opt_state, state.params, state.collections))
    assert_near(*results)
    assert 1 <= logs["reconstruction/perplexity"].mean() <= 16
    assert 0 <= logs["reconstruction/dead_codes"].mean() <= 16
    before, after = (s.collections["encoder"]["codebook"]["codebook"] for s in (initial, state))
    assert np.abs(after["vectors"] - before["vectors"]).max() > 1e-3


def test_loss_is_scaled_error_plus_commitment():
    detector, batch = VQVAE(data_variance=0.5), make_batch()
    net = random_net(detector)
    loss, logs = run(detector.objectives["reconstruction"].loss, net, batch, keys(4))
    error = np.square(batch.image - run(detector.reconstruct, net, batch, keys(4))).mean()
    np.testing.assert_allclose(logs["mse"], error, rtol=1e-5)
    np.testing.assert_allclose(loss, error / 0.5 + 0.25 * logs["commitment"], rtol=1e-5)


def test_codebook_is_float32_in_a_bfloat16_model():
    detector, batch = VQVAE(dtype=jnp.bfloat16), make_batch()
    net = random_net(detector)
    quantized = net("encoder", batch.image, keys(4))
    leaves = jax.tree.leaves((quantized, net.variables["encoder"]["codebook"]))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    assert run(detector.reconstruct, net, batch, keys(4)).dtype == jnp.float32
