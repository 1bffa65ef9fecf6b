"""AnoGAN, GANomaly and BiGAN against plain NumPy; trained networks."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from bigan_jax.detector import Batch, Net, example_keys, inference_net, init_state
from bigan_jax.errors import UserError
from bigan_jax.models import anogan, bigan, ganomaly
from bigan_jax.nn.blocks import BATCH_AXIS
from bigan_jax.training import device_layout, epoch_runner, health
from bigan_jax.training.augmentation import AugmentationSettings
from bigan_jax.training.train_step import TrainingSet

SHAPE = (16, 16, 1)
LATENT = 8
GANS = {
    "anogan": anogan.create(shape=SHAPE, latent=LATENT, widths=(16, 32)),
    "ganomaly": ganomaly.create(shape=SHAPE, latent=LATENT, width=16),
    "bigan": bigan.create(
        shape=SHAPE,
        latent=LATENT,
        widths=(16, 32),
        discriminator_widths=(16, 32),
        discriminator_hidden=16,
        discriminator_dropout=0.0,  # tested in nn/test_blocks.py
    ),
}
# The learning rates of configs/, in the order of the updates.
RATES = {
    "anogan": {"discriminator": 2e-4, "generator": 2e-4},
    "ganomaly": {"generator": 2e-4, "discriminator": 2e-4},
    "bigan": {"discriminator": 1e-4, "adversarial": 1e-4},
}
close = partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5)


@functools.cache
def training_set():
    """Disks of random position and size on a dark background."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :16]
    x, y, radius = rng.uniform([[5], [5], [2]], [[11], [11], [5]], (3, 32))[..., None, None]
    disks = np.hypot(rows - y, columns - x) < radius
    image = 40 + 150 * disks + rng.normal(0, 8, disks.shape)
    return TrainingSet(image.clip(0, 255).astype(np.uint8)[..., None], np.zeros(32, np.int32))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(jax, "device_count", lambda: 1)


@functools.cache
def runner(name):
    """The model's epoch runner, and its initial state, with learning rates, on the host."""
    adam = optax.inject_hyperparams(optax.adam, static_args="b1")
    optimizers = {k: adam(learning_rate=rate, b1=0.5) for k, rate in RATES[name].items()}
    state = jax.jit(lambda: init_state(GANS[name], optimizers, 0, SHAPE))()
    run = epoch_runner.EpochRunner(
        GANS[name], optimizers, AugmentationSettings(), {}, device_layout.replicate(training_set())
    )
    return run, jax.device_get(state)


@functools.cache
def perturbed(name):
    """A state with noise added to all variables, so that biases and BatchNorm have an effect."""
    _, state = runner(name)
    rng = np.random.default_rng(0)

    def noise(x):
        return 0.1 * rng.normal(size=x.shape).astype(np.float32)

    return state._replace(
        params=jax.tree.map(lambda x: x + noise(x), state.params),
        collections=jax.tree.map(lambda x: x + np.abs(noise(x)), state.collections),
    )


@pytest.fixture
def batch():
    return Batch(jnp.asarray(training_set().image[:6]) / 255, training_set().condition[:6])


def run_in_training(detector, state, run):
    """Returns `run(net, keys)` for a network in training mode and six images."""
    variables = {name: {"params": state.params[name], **state.collections[name]} for name in state.params}
    keys = example_keys(jax.random.key(5), jnp.arange(6))

    def one_shard(_):
        return run(Net(detector.networks, variables, train=True), keys)

    out = jax.jit(jax.vmap(one_shard, axis_name=BATCH_AXIS))(jnp.zeros(1))
    return jax.tree.map(lambda x: np.asarray(x[0], np.float64), out)


def losses_of(detector, state, batch):
    """Returns (loss, logs) by objective."""
    return {
        name: run_in_training(detector, state, lambda net, keys, o=o: o.loss(net, batch, keys))
        for name, o in detector.objectives.items()
    }


# --- the same in NumPy ----------------------------------------------------------------------------


def conv(x, p):
    windows = sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (4, 4), (1, 2))
    return np.einsum("bhwcij,ijcd->bhwd", windows[:, ::2, ::2], p["kernel"]) + p.get("bias", 0)


def transposed_conv(x, p):
    kernel, (batch, height, width, _) = p["kernel"], x.shape
    out = np.zeros((batch, 2 * height + 2, 2 * width + 2, kernel.shape[2]))
    for i in range(4):
        for j in range(4):
            out[:, i : i + 2 * height : 2, j : j + 2 * width : 2] += x @ kernel[i, j].T
    return out[:, 1:-1, 1:-1] + p.get("bias", 0)


def norm(x, p, statistics=None):
    """Normalizes by the batch's statistics, or by those that are passed."""
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if statistics is None else statistics
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def dense(x, p):
    return x.reshape(len(x), -1) @ p["kernel"] + p.get("bias", 0)


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bce(logits, label):
    return -np.log(sigmoid(logits if label else -logits)).mean()


class DCGAN:
    """A network of a state as NumPy functions."""

    def __init__(self, state, name, trained=False):
        """trained: whether BatchNorm uses the collected statistics."""
        self.p = jax.tree.map(lambda x: np.asarray(x, np.float64), state.params[name])
        self.statistics = state.collections[name].get("batch_stats", {}) if trained else None

    def norm(self, x, index):
        name = f"BatchNorm_{index}"
        s = None if self.statistics is None else self.statistics[name]
        return norm(x, self.p[name], s and (np.asarray(s["mean"]), np.asarray(s["var"])))

    def encode(self, x):
        x = leaky(conv(x, self.p["Downsample_0"]))
        for i in range(1, sum(name.startswith("Downsample") for name in self.p)):
            x = leaky(self.norm(conv(x, self.p[f"Downsample_{i}"]), i - 1))
        return dense(x, self.p["Dense_0"]), x

    def generate(self, z, side=4):
        x = dense(z, self.p["Dense_0"]).reshape(len(z), side, side, -1)
        for i in range(sum(name.startswith("Upsample") for name in self.p)):
            x = transposed_conv(np.maximum(self.norm(x, i), 0), self.p[f"Upsample_{i}"])
        return np.tanh(x)

    def pair(self, x, z):
        """Returns D(x, z): logits and the last hidden layer."""
        x = leaky(conv(x, self.p["EncoderStage_0"]["Downsample_0"]))
        stage = self.p["EncoderStage_1"]
        x = conv(x, stage["Downsample_0"])
        if self.statistics is None:
            x = norm(x, stage["BatchNorm_0"])
        else:
            s = self.statistics["EncoderStage_1"]["BatchNorm_0"]
            x = norm(x, stage["BatchNorm_0"], (np.asarray(s["mean"]), np.asarray(s["var"])))
        joint = np.concatenate([leaky(x).reshape(len(x), -1), leaky(dense(z, self.p["Dense_0"]))], 1)
        hidden = leaky(dense(joint, self.p["Dense_1"]))
        return dense(hidden, self.p["Dense_2"])[:, 0], hidden


def test_ganomaly_in_numpy(batch):
    state, detector = perturbed("ganomaly"), GANS["ganomaly"]
    x = 2 * np.asarray(batch.image, np.float64) - 1
    encoder, generator, second, discriminator = (DCGAN(state, name) for name in detector.networks)
    code, _ = encoder.encode(x)
    reconstruction = generator.generate(code)
    second_code, _ = second.encode(reconstruction)
    (real, f), (fake, g) = discriminator.encode(x), discriminator.encode(reconstruction)

    (loss, logs), (d_loss, d_logs) = losses_of(detector, state, batch).values()
    close(logs["features"], ((f - g) ** 2).mean())
    close(logs["mae"], np.abs(x - reconstruction).mean())
    close(logs["code"], ((code - second_code) ** 2).mean())
    close(loss, 1 * logs["features"] + 50 * logs["mae"] + 1 * logs["code"])
    close(logs["reconstruction_spread"], reconstruction.std(0).mean())
    close(logs["real_spread"], x.std(0).mean())
    close(d_loss, bce(real, 1) + bce(fake, 0))
    close([d_logs["real"], d_logs["fake"]], [sigmoid(real).mean(), sigmoid(fake).mean()])


def test_ganomaly_scores_in_numpy(batch):
    state, detector = perturbed("ganomaly"), GANS["ganomaly"]
    encoder, generator, second, _ = (DCGAN(state, n, trained=True) for n in detector.networks)
    code, _ = encoder.encode(2 * np.asarray(batch.image, np.float64) - 1)
    reconstruction = generator.generate(code)
    net = inference_net(detector, state, {})
    close(detector.reconstruct(net, batch, None), (reconstruction + 1) / 2)
    expected = ((code - second.encode(reconstruction)[0]) ** 2).mean(1)
    close(detector.native_score(net, batch, None), expected)


def test_ganomaly_halves_down_to_four_pixels():
    for size, stages in ((128, 5), (64, 4), (8, 1)):
        detector = ganomaly.create(shape=(size, size, 1))
        assert len(detector.networks["encoder"].widths) == stages
    for shape in ((96, 96, 1), (4, 4, 1), (64, 32, 1)):
        with pytest.raises(UserError, match="image_size"):
            ganomaly.create(shape=shape)


def test_anogan_losses_in_numpy(batch):
    state, detector = perturbed("anogan"), GANS["anogan"]
    z = run_in_training(
        detector, state, lambda net, keys: jax.vmap(lambda k: jax.random.uniform(k, (LATENT,), minval=-1))(keys)
    )
    x, generated = 2 * np.asarray(batch.image) - 1, DCGAN(state, "generator").generate(z)
    discriminator = DCGAN(state, "discriminator")
    (real, _), (fake, _) = discriminator.encode(x), discriminator.encode(generated)
    (d_loss, _), (g_loss, logs) = losses_of(detector, state, batch).values()
    close(d_loss, bce(real, 1) + bce(fake, 0))
    close(g_loss, bce(fake, 1))
    close(logs["generated_spread"], generated.std(0).mean())


def test_bigan_in_numpy(batch):
    """The losses of D, and of E and G with exchanged labels."""
    state, detector = perturbed("bigan"), GANS["bigan"]
    z, code, generated = run_in_training(
        detector,
        state,
        lambda net, keys: (
            z := jax.vmap(lambda k: jax.random.normal(k, (LATENT,)))(keys),
            net("encoder", batch.image),
            net("generator", z),
        ),
    )
    discriminator = DCGAN(state, "discriminator")
    real, _ = discriminator.pair(np.asarray(batch.image), code)
    fake, _ = discriminator.pair(generated, z)
    (d_loss, d_logs), (loss, logs) = losses_of(detector, state, batch).values()
    close(d_loss, bce(real, 1) + bce(fake, 0))
    close(loss, bce(real, 0) + bce(fake, 1))
    close([d_logs["real"], d_logs["fake"]], [sigmoid(real).mean(), sigmoid(fake).mean()])
    close(logs["generated_spread"], generated.std(0).mean())


def test_bigan_score_in_numpy(batch):
    state, detector = perturbed("bigan"), GANS["bigan"]
    # Averaged weights are used for scoring; here they equal the last ones.
    state = state._replace(average=state.params)
    net = inference_net(detector, state, {})
    x, code = np.asarray(batch.image), np.asarray(net("encoder", batch.image))
    reconstruction = np.asarray(net("generator", net("encoder", batch.image)))
    discriminator = DCGAN(state, "discriminator", trained=True)
    (_, f), (_, g) = discriminator.pair(x, code), discriminator.pair(reconstruction, code)
    expected = 0.9 * np.abs(x - reconstruction).sum((1, 2, 3)) + 0.1 * np.abs(f - g).sum(1)
    close(detector.native_score(net, batch, None), expected)
    assert detector.averaging == 0.999


@pytest.mark.parametrize("name", ["ganomaly", "bigan"])
def test_native_scores_are_independent(batch, name):
    detector = GANS[name]
    net = inference_net(detector, perturbed(name)._replace(average={}), {})
    batch_scores = detector.native_score(net, batch, None)
    single = detector.native_score(net, jax.tree.map(lambda x: x[2:3], batch), None)
    assert batch_scores.shape == (6,)
    close(batch_scores[2], single[0])


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "objective", "trained"),
    [
        ("anogan", "discriminator", {"discriminator"}),
        ("anogan", "generator", {"generator"}),
        ("ganomaly", "discriminator", {"discriminator"}),
        ("ganomaly", "generator", {"encoder", "generator", "second_encoder"}),
        ("bigan", "discriminator", {"discriminator"}),
        ("bigan", "adversarial", {"encoder", "generator"}),
    ],
)
def test_only_owned_networks_change(name, objective, trained):
    run, before = runner(name)
    after, _ = run.epoch(device_layout.replicate(before), (objective,), np.arange(8)[None])
    after = jax.device_get(device_layout.first(after))
    for network in GANS[name].networks:
        unchanged = jax.tree.map(
            np.array_equal,
            (before.params[network], before.collections[network]),
            (after.params[network], after.collections[network]),
        )
        unchanged = jax.tree.leaves(unchanged)
        assert not any(unchanged) if network in trained else all(unchanged), network


@pytest.mark.parametrize("name", GANS)
def test_health_warns_of_a_diverging_run_only(name):
    """The learning rate of D is a hundred times too high."""
    run, initial = runner(name)
    warnings = {1: [], 100: []}
    for factor, factor_warnings in warnings.items():
        state = jax.tree.map(np.copy, initial)
        state.opt_state["discriminator"].hyperparams["learning_rate"] *= np.float32(factor)
        state = device_layout.replicate(state)
        for epoch in range(10):
            order = np.random.default_rng(epoch).permutation(32).reshape(4, 8)
            state, logs = run.epoch(state, tuple(RATES[name]), order)
            factor_warnings += health.health_warnings({"epoch": epoch, **jax.tree.map(np.mean, logs)})
    assert warnings[1] == []
    assert any("saturated" in warning for warning in warnings[100])
