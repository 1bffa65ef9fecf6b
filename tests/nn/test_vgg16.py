"""VGG16 compared with PyTorch, SciPy and its definition."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from bigan_jax.errors import UserError
from bigan_jax.nn.vgg16.network import VGG16, _max_pool, _relu
from bigan_jax.nn.vgg16.weights import load_weights

# Mean, standard deviation and maximum after the ReLU, computed with PyTorch from these weights.
GOLDEN = {
    "relu1_2": ((64, 64, 64), 1.569711, 3.601391, 31.4788),
    "relu2_2": ((32, 32, 128), 3.063711, 7.892454, 65.6434),
    "relu3_3": ((16, 16, 256), 1.501361, 6.519116, 160.2585),
    "relu4_3": ((8, 8, 512), 0.556045, 2.934646, 73.8382),
    "relu5_3": ((4, 4, 512), 0.209933, 1.293527, 28.6179),
}
TAPS = tuple(GOLDEN)


def sample_image(channels=3):
    i, j, c = np.ogrid[:64, :64, :channels]
    return (((7 * i + 13 * j + 29 * c) % 32) / 31).astype(np.float32)[None]


def features(weights, image, layers=TAPS, convention="torchvision", dtype=None):
    with jax.default_matmul_precision("highest"):  # GPUs would round to TensorFloat-32
        return VGG16(layers, convention, dtype).apply({"params": weights.params}, jnp.asarray(image))


def test_first_kernel_equals_torchvision(weights):
    rows = [[-0.553731, 0.142705, 0.528961], [-0.583124, 0.356551, 0.765662], [-0.690221, -0.048019, 0.484092]]
    first = weights.params["conv1_1"]
    np.testing.assert_allclose(first["kernel"][:, :, 0, 0], rows, atol=1e-6)
    bias = [0.403388, 0.377794, 0.464362, -0.322764]
    np.testing.assert_allclose(first["bias"][:4], bias, atol=1e-6)
    assert sum(a.size for p in weights.params.values() for a in p.values()) == 14_714_688


@pytest.mark.parametrize("convention", ["torchvision", "caffe"])
def test_first_layer_equals_scipy(convention, weights):
    image = sample_image()[0].astype(np.float64)
    if convention == "torchvision":
        planes = [
            (image[..., c] - mean) / std
            for c, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)])
        ]
    else:
        means = {2: 103.939, 1: 116.779, 0: 123.68}  # blue comes first
        planes = [255 * image[..., c] - mean for c, mean in means.items()]
    first = weights.params["conv1_1"]
    (actual,) = features(weights, sample_image(), ("relu1_1",), convention)
    for out in (0, 7, 63):
        kernel = first["kernel"][:, :, :, out].astype(np.float64)
        total = sum(signal.correlate2d(p, kernel[..., c], "same") for c, p in enumerate(planes))
        expected = np.maximum(total + first["bias"][out], 0)
        np.testing.assert_allclose(actual[0, ..., out], expected, rtol=1e-4, atol=1e-3)


def test_gray_images_are_repeated(weights):
    gray = jnp.asarray(sample_image(1))
    for gray_features, rgb_features in zip(
        features(weights, gray), features(weights, jnp.repeat(gray, 3, -1)), strict=True
    ):
        np.testing.assert_array_equal(gray_features, rgb_features)


def test_bfloat16_is_close(weights):
    image = sample_image()
    rounded = features(weights, image, dtype=jnp.bfloat16)
    for exact, coarse in zip(features(weights, image), rounded, strict=True):
        assert coarse.dtype == jnp.bfloat16
        difference = np.asarray(coarse, np.float32) - exact
        assert np.linalg.norm(difference) < 0.03 * np.linalg.norm(exact)


def test_only_the_requested_layers_are_built_in_order():
    shapes = jax.eval_shape(VGG16(("relu2_1", "relu1_1")).init, jax.random.key(0), jnp.asarray(sample_image()))
    assert list(shapes["params"]) == ["conv1_1", "conv1_2", "conv2_1"]
    loaded = load_weights("", ("relu2_1", "relu1_1"))
    equal_shapes = jax.tree.map(lambda made, read: made.shape == read.shape, shapes["params"], loaded.params)
    assert jax.tree.all(equal_shapes)
    deep, shallow = features(loaded, sample_image(), ("relu2_1", "relu1_1"))
    assert (deep.shape[-1], shallow.shape[-1]) == (128, 64)


def test_train_is_ignored_and_odd_sizes_pass(weights):
    network, image = VGG16(("relu2_1",)), jnp.asarray(sample_image()[:, :37, :45])
    (trained,) = network.apply({"params": weights.params}, image, train=True)
    (tested,) = network.apply({"params": weights.params}, image, train=False)
    np.testing.assert_array_equal(trained, tested)
    assert trained.shape == (1, 18, 22, 128)


def test_max_pool_and_its_gradient_equal_flax():
    x, weight = jax.random.normal(jax.random.key(0), (2, 2, 7, 10, 3))
    weight = weight[:, :3, :5]
    pooled = nn.max_pool(x, (2, 2), strides=(2, 2))
    np.testing.assert_array_equal(_max_pool(x), pooled)
    actual = jax.grad(lambda x: (weight * _max_pool(x)).sum())(x)
    expected = jax.grad(lambda x: (weight * nn.max_pool(x, (2, 2), strides=(2, 2))).sum())(x)
    np.testing.assert_array_equal(actual, expected)


def test_equal_maxima_share_the_gradient_of_max_pool():
    x = jnp.array([[1.0, 3.0, 2.0, 2.0], [3.0, 0.0, 2.0, 2.0]])[None, :, :, None]
    gradient = jax.grad(lambda x: (_max_pool(x) * jnp.array([6.0, 8.0])[:, None]).sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 3, 2, 2], [3, 0, 2, 2]])
    three = jnp.array([[5.0, 5.0], [1.0, 5.0]])[None, :, :, None]
    gradient = jax.grad(lambda x: 9 * _max_pool(x).sum())(three)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[3, 3], [0, 3]])


def test_compiled_max_pool_in_bfloat16_keeps_the_gradient():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 16), jnp.bfloat16)

    @jax.jit
    def gradient(x):
        return jax.grad(lambda x: _max_pool(x * 1.1).astype(jnp.float32).sum())(x)

    per_cell = gradient(x).astype(jnp.float32).reshape(2, 4, 2, 4, 2, 16).sum((2, 4))
    np.testing.assert_allclose(per_cell, 1.1, rtol=2e-2)


def test_relu_and_its_gradient_equal_flax():
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0])
    np.testing.assert_array_equal(_relu(x), nn.relu(x))
    actual, expected = (jax.grad(lambda x, f=f: (f(x) * x).sum())(x) for f in (_relu, nn.relu))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"layers": ("relu3_4",)}, (1, 64, 64, 3), "unknown VGG16 layer 'relu3_4'"),
        ({"layers": ()}, (1, 64, 64, 3), "at least one"),
        ({"convention": "keras"}, (1, 64, 64, 3), "unknown VGG16 convention 'keras'"),
        ({}, (1, 64, 64, 4), r"1 or 3 channels \(got 4\)"),
        ({"layers": ("relu5_1",)}, (1, 64, 8, 3), "too small for VGG16's conv5_1"),
    ],
)
def test_invalid_arguments_are_refused(fields, shape, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(VGG16(**fields).init, jax.random.key(0), jnp.zeros(shape))


def test_unknown_layer_is_refused_before_the_file_is_read():
    with pytest.raises(UserError, match="unknown VGG16 layer 'relu6_1'"):
        load_weights("nowhere.pth", ("relu6_1",))
