"""Attention, residual connections, dropout and networks, compared with NumPy."""

import jax
import numpy as np
import pytest

from bigan_jax.nn.blocks import DecoderStage, SqueezeExcite, dropout
from bigan_jax.nn.networks import ConvDecoder, JointDiscriminator


def draw(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_squeeze_excite_equals_numpy():
    x = draw(0, (2, 3, 5, 8))
    y, variables = SqueezeExcite(ratio=4).init_with_output(jax.random.key(1), x)
    first, second = (variables["params"][f"Dense_{i}"] for i in (0, 1))
    assert first["kernel"].shape == (8, 2)
    pooled = np.mean(x, (1, 2))
    hidden = np.maximum(pooled @ first["kernel"] + first["bias"], 0)
    gate = 1 / (1 + np.exp(-(hidden @ second["kernel"] + second["bias"])))
    np.testing.assert_allclose(y, x * gate[:, None, None], rtol=1e-5)


def test_residual_adds_the_upsampled_projection():
    x = draw(0, (2, 3, 4, 5))
    stage = DecoderStage(6, residual=True)
    variables = stage.init(jax.random.key(1), x, train=False)
    without = DecoderStage(6)
    kernel = variables["params"]["Dense_0"]["kernel"]
    skip = np.kron(np.einsum("bhwd,dc->bhwc", x, kernel), np.ones((1, 2, 2, 1)))
    np.testing.assert_allclose(
        stage.apply(variables, x, train=False), without.apply(variables, x, train=False) + skip, atol=1e-5
    )


@pytest.mark.parametrize("last", ["upsample", "conv"])
def test_decoder_returns_images_of_its_shape(last):
    decoder = ConvDecoder((32, 64, 3), 8, (8, 4), last=last)
    image, _ = decoder.init_with_output(jax.random.key(0), draw(1, (2, 5)), train=False)
    assert image.shape == (2, 32, 64, 3)
    assert image.min() >= 0 and image.max() <= 1


def test_dropout_keeps_the_mean_and_is_independent_per_image():
    keys = jax.random.split(jax.random.key(0), 4)
    features = 1 + draw(1, (4, 50, 40)) ** 2
    dropped = dropout(keys, features, 0.3)
    kept = np.asarray(dropped != 0)
    np.testing.assert_allclose(dropped[kept], features[kept] / 0.7, rtol=1e-6)
    assert kept.mean() == pytest.approx(0.7, abs=0.03)
    np.testing.assert_array_equal(dropout(keys[2:3], features[2:3], 0.3)[0], dropped[2])


def test_discriminator_has_dropout_only_with_keys():
    image, code = draw(0, (4, 16, 16, 1)), draw(1, (4, 8))
    keys = jax.random.split(jax.random.key(2), 4)
    network = JointDiscriminator((8, 16), 8, dropout=0.5)
    variables = network.init(jax.random.key(3), image, code, train=False)
    plain, features = network.apply(variables, image, code, train=False)
    dropped, dropped_features = network.apply(variables, image, code, keys, train=False)
    assert (features != 0).all() and 0.3 < np.mean(dropped_features == 0) < 0.7
    assert np.abs(plain - dropped).max() > 1e-3
