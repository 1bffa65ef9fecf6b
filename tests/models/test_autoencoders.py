"""FCAE, CAE, VAE, CVAE and VQ-VAE against NumPy, SciPy and, where it is installed, PyTorch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, stats

from bigan_jax.detector import Batch, Net, init_state
from bigan_jax.models import cae, fcae, vae, vqvae

SHAPE = (16, 16, 1)
SMALL = {"shape": SHAPE, "latent": 6, "widths": (4, 8)}
FCAE = partial(fcae.create, shape=SHAPE, hidden=(12, 8, 6))
CAE = partial(cae.create, **SMALL)
VAE = partial(vae.create, **SMALL)
CVAE = partial(VAE, conditional=True)
VQVAE = partial(vqvae.create, **SMALL, residual_width=3, codes=16)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def make_batch(condition=0, size=4):
    image = np.random.default_rng(0).random((size, *SHAPE), np.float32)
    return Batch(jnp.asarray(image), jnp.broadcast_to(jnp.asarray(condition), size))


def random_net(detector):
    """A network in inference mode with random variables, also statistics, scales and biases."""
    optimizers = dict.fromkeys(detector.objectives, optax.sgd(1.0))
    state = jax.eval_shape(lambda: init_state(detector, optimizers, 0, SHAPE))
    rng = np.random.default_rng(1)

    def randomize(path, x):
        positive = path[-1].key in ("scale", "var")
        values = rng.uniform(0.5, 1.5, x.shape) if positive else rng.normal(0, 0.2, x.shape)
        return jnp.asarray(values, x.dtype)

    variables = {name: {"params": state.params[name]} | state.collections[name] for name in state.params}
    return Net(detector.networks, jax.tree.map_with_path(randomize, variables), train=False)


def run(function, net, *args):
    """Returns function(net, *args), compiled."""

    def compiled(variables, args):
        return function(Net(net.networks, variables, train=False), *args)

    return jax.jit(compiled)(net.variables, args)


# --- VAE ------------------------------------------------------------------------------------------


def test_kl_equals_its_integral():
    mean, log_variance = np.array([-1.5, 0.0, 0.3, 2.0]), np.array([-3.0, 0.0, 1.5, -0.2])

    def integrand(x, q):
        return q.pdf(x) * (q.logpdf(x) - stats.norm.logpdf(x))

    expected = 0
    for m, v in zip(mean, log_variance, strict=True):
        q = stats.norm(m, np.exp(v / 2))
        expected += integrate.quad(integrand, m - 12 * q.std(), m + 12 * q.std(), args=(q,))[0]
    kl = vae.kl_from_prior(jnp.asarray([mean, 0 * mean]), jnp.asarray([log_variance, 0 * mean]))
    np.testing.assert_allclose(kl, [expected, 0], rtol=1e-5)


@pytest.mark.parametrize("extreme", [-100.0, 100.0])
def test_extreme_log_variances_have_finite_loss_and_gradient(extreme):
    def kl(x):
        return vae.kl_from_prior(jnp.zeros((1, 128)), vae.soft_limit(x)).sum()

    value, gradient = jax.value_and_grad(kl)(jnp.full((1, 128), extreme))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert (np.sign(gradient) == np.sign(extreme)).all()
    np.testing.assert_allclose(vae.soft_limit(jnp.array([[-5.0, 0, 0.1, 5]]))[0, ::3], [-5, 5], 0.03)


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_error_is_summed_over_pixels_and_kl_over_dimensions(beta):
    detector, batch, noise_keys = VAE(beta=beta), make_batch(), keys(4)
    net = random_net(detector)
    loss, logs = run(detector.objectives["elbo"].loss, net, batch, noise_keys)
    mean, log_variance = np.split(np.asarray(net("encoder", batch.image)), 2, axis=-1)
    log_variance = 20 * np.tanh(log_variance / 20)
    noise = np.stack([jax.random.normal(key, (6,)) for key in noise_keys])
    y = np.asarray(net("decoder", jnp.asarray(mean + np.exp(log_variance / 2) * noise)))
    squares = ((np.asarray(batch.image) - y) ** 2).sum((1, 2, 3))
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(1)
    np.testing.assert_allclose(loss, (squares + beta * kl).mean(), rtol=1e-4)
    np.testing.assert_allclose(logs["kl"], kl.mean(), rtol=1e-3)
    np.testing.assert_allclose(logs["mse"], squares.mean() / 256, rtol=1e-4)


def test_reconstruction_decodes_the_mean_code():
    detector, batch = VAE(), make_batch()
    net = random_net(detector)
    first, second = (run(detector.reconstruct, net, batch, keys(4, seed)) for seed in (0, 1))
    np.testing.assert_array_equal(first, second)
    loss = detector.objectives["elbo"].loss
    assert run(loss, net, batch, keys(4, 0))[0] != run(loss, net, batch, keys(4, 1))[0]


# --- CVAE -----------------------------------------------------------------------------------------


def test_condition_changes_the_reconstruction():
    detector = CVAE(conditions=3)
    net = random_net(detector)
    images = [run(detector.reconstruct, net, make_batch(c), keys(4)) for c in range(3)]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(images[i] - images[j]).max() > 1e-3
    mixed = run(detector.reconstruct, net, make_batch(np.array([0, 1, 2, 0])), keys(4))
    np.testing.assert_allclose(mixed[1], images[1][1], atol=1e-6)  # per image


def test_only_weights_of_present_conditions_have_gradients():
    detector, batch = CVAE(conditions=3), make_batch(np.array([0, 0, 2, 2]))
    net = random_net(detector)

    def loss(variables):
        return detector.objectives["elbo"].loss(Net(detector.networks, variables, train=False), batch, keys(4))[0]

    gradient = jax.jit(jax.grad(loss))(net.variables)
    first = gradient["encoder"]["params"]["EncoderStage_0"]["Downsample_0"]["kernel"]
    dense = gradient["decoder"]["params"]["Dense_0"]["kernel"]
    assert first.shape == (4, 4, 1 + 3, 4) and dense.shape[0] == 6 + 3
    for per_condition in (np.abs(first[:, :, 1:]).sum((0, 1, 3)), np.abs(dense[6:]).sum(1)):
        assert per_condition[0] > 0 and per_condition[2] > 0 and per_condition[1] == 0


def test_cvae_with_one_condition_is_a_vae_with_a_note():
    cvae, plain, batch = CVAE(conditions=1), VAE(conditions=1), make_batch()
    net = random_net(plain)
    for detector in (cvae, plain, VAE(conditions=3)):
        jax.tree.map(np.testing.assert_array_equal, random_net(detector).variables, net.variables)
        loss, _ = run(detector.objectives["elbo"].loss, net, batch, keys(4))
        np.testing.assert_array_equal(loss, run(plain.objectives["elbo"].loss, net, batch, keys(4))[0])
    assert "the same condition" in cvae.notes[0]
    assert not plain.notes and not CVAE(conditions=2).notes


# --- forward passes against PyTorch ---------------------------------------------------------------


class TorchLayers:
    """The same layers in PyTorch with the weights of one network; images are NCHW."""

    def __init__(self, torch, variables):
        self.torch, self.F = torch, torch.nn.functional
        self.variables = jax.tree.map(lambda x: torch.from_numpy(np.array(x)), variables)

    def get(self, path, collection="params"):
        node = self.variables[collection]
        for name in path.split("/"):
            node = node.get(name, {})
        return node

    def conv(self, x, path, stride=1, padding=1, transposed=False):
        p = self.get(path)
        f = self.F.conv_transpose2d if transposed else self.F.conv2d
        # HWIO to OIHW; a transposed convolution has the kernel of its adjoint, as in PyTorch.
        return f(x, p["kernel"].permute(3, 2, 0, 1), p.get("bias"), stride=stride, padding=padding)

    def dense(self, x, path):
        p = self.get(path)
        return self.F.linear(x, p["kernel"].T, p.get("bias"))

    def normal(self, x, path):
        p, s = self.get(path), self.get(path, "batch_stats")
        x = self.F.batch_norm(x, s["mean"], s["var"], p["scale"], p["bias"], eps=1e-5)
        return self.F.leaky_relu(x, 0.2)

    def residuals(self, x, path):
        for layer in (0, 1):
            y = self.conv(x.relu(), f"{path}/Conv_{2 * layer}")
            x = x + self.conv(y.relu(), f"{path}/Conv_{2 * layer + 1}", padding=0)
        return x.relu()


def torch_cae_encoder(t, x):
    for stage in ("EncoderStage_0", "EncoderStage_1"):
        x = t.normal(t.conv(x, f"{stage}/Downsample_0", 2), f"{stage}/BatchNorm_0")
    return t.dense(x.permute(0, 2, 3, 1).flatten(1), "Dense_0")


def torch_cae_decoder(t, z):
    x = t.dense(z, "Dense_0").reshape(-1, 4, 4, 8).permute(0, 3, 1, 2)
    x = t.normal(x, "BatchNorm_0")
    x = t.conv(x, "DecoderStage_0/Upsample_0", 2, transposed=True)
    x = t.normal(x, "DecoderStage_0/BatchNorm_0")
    return t.conv(x, "Upsample_0", 2, transposed=True).sigmoid()


def torch_vae_encoder(t, x):
    return torch_cae_encoder(t, x).chunk(2, 1)[0]


def torch_dense_stack(t, x):
    for layer in (0, 1):
        x = t.normal(t.dense(x, f"Dense_{layer}"), f"BatchNorm_{layer}")
    return t.dense(x, "Dense_2")


def torch_fcae_decoder(t, z):
    return torch_dense_stack(t, z).sigmoid().reshape(-1, 1, 16, 16)


def torch_vq_encoder(t, x):
    for layer in ("Downsample_0", "Downsample_1"):
        x = t.conv(x, layer, 2).relu()
    x = t.residuals(t.conv(x, "Conv_0").relu(), "ResidualStack_0")
    z = t.conv(x, "Conv_1", padding=0).permute(0, 2, 3, 1)
    vectors = t.get("codebook/vectors", "codebook")
    return vectors[t.torch.cdist(z.reshape(-1, 6), vectors).argmin(1)].reshape(z.shape)


def torch_vq_decoder(t, code):
    x = t.residuals(t.conv(code.permute(0, 3, 1, 2), "Conv_0"), "ResidualStack_0")
    x = t.conv(x, "Upsample_0", 2, transposed=True).relu()
    return t.conv(x, "Upsample_1", 2, transposed=True).sigmoid()


@pytest.mark.parametrize(
    ("create", "encoder", "decoder"),
    [
        (FCAE, lambda t, x: torch_dense_stack(t, x.flatten(1)), torch_fcae_decoder),
        (CAE, torch_cae_encoder, torch_cae_decoder),
        (VAE, torch_vae_encoder, torch_cae_decoder),
        (VQVAE, torch_vq_encoder, torch_vq_decoder),
    ],
    ids=["fcae", "cae", "vae", "vqvae"],
)
def test_reconstructions_equal_pytorch(create, encoder, decoder):
    torch = pytest.importorskip("torch")
    detector, batch = create(), make_batch()
    net = random_net(detector)
    reconstruction = np.asarray(run(detector.reconstruct, net, batch, keys(4)))
    image = torch.from_numpy(np.array(batch.image)).permute(0, 3, 1, 2)
    code = encoder(TorchLayers(torch, net.variables["encoder"]), image)
    expected = decoder(TorchLayers(torch, net.variables["decoder"]), code).permute(0, 2, 3, 1)
    np.testing.assert_allclose(reconstruction, expected.numpy(), atol=1e-5)
    assert reconstruction.std() > 1e-3  # not constant
