"""Convolutions compared with Flax's and with finite differences."""

import itertools
from importlib.util import find_spec

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from benchmarks.convolutions import implementations
from bigan_jax.nn import convolutions, winograd

SIZES = [(2, 1, 3, 5, 7), (1, 4, 4, 8, 1), (3, 8, 6, 2, 16), (2, 16, 16, 4, 3)]  # b, h, w, d, c
SIZES += [(1, 2, 3, 68, 17)]  # with many channels on both sides
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2, jnp.float16: 2e-3}


def draw(seed, shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def assert_near(actual, expected, dtype):
    scale = np.abs(np.asarray(expected, np.float32)).max()
    np.testing.assert_allclose(
        np.asarray(actual, np.float32) / scale, np.asarray(expected, np.float32) / scale, atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("b", "h", "w", "d", "c"), SIZES)
def test_upsample_and_its_gradients_equal_flax(b, h, w, d, c, dtype):
    module = nn.ConvTranspose(c, (4, 4), (2, 2), padding="SAME", transpose_kernel=True, use_bias=False, dtype=dtype)
    code, kernel = draw(0, (b, h, w, d), dtype), draw(1, (4, 4, c, d), dtype)
    image, back = jax.vjp(convolutions.upsample, code, kernel)
    expected, expected_back = jax.vjp(lambda x, k: module.apply({"params": {"kernel": k}}, x), code, kernel)
    assert image.shape == (b, 2 * h, 2 * w, c)
    assert_near(image, expected, dtype)
    cotangent = draw(2, image.shape, dtype)
    for actual, expected_grad in zip(back(cotangent), expected_back(cotangent), strict=True):
        assert actual.dtype == dtype
        assert_near(actual, expected_grad, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("b", "h", "w", "d", "c"), SIZES)
def test_downsample_and_its_gradients_equal_flax(b, h, w, d, c, dtype):
    module = nn.Conv(d, (4, 4), (2, 2), padding="SAME", use_bias=False, dtype=dtype)
    image, kernel = draw(0, (b, 2 * h, 2 * w, c), dtype), draw(1, (4, 4, c, d), dtype)
    code, back = jax.vjp(convolutions.downsample, image, kernel)
    expected, expected_back = jax.vjp(lambda x, k: module.apply({"params": {"kernel": k}}, x), image, kernel)
    assert code.shape == (b, h, w, d)
    assert_near(code, expected, dtype)
    cotangent = draw(2, code.shape, dtype)
    for actual, expected_grad in zip(back(cotangent), expected_back(cotangent), strict=True):
        assert actual.dtype == dtype
        assert_near(actual, expected_grad, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("b", "h", "w", "d", "c"), SIZES)
@pytest.mark.parametrize("size", [1, 3])
def test_stride_1_and_its_gradients_equal_flax(b, h, w, d, c, dtype, size):
    module = {1: convolutions.conv1x1, 3: convolutions.conv3x3}[size](d, dtype)
    image = draw(0, (b, h, w, c), dtype)
    variables = {"params": {"kernel": draw(1, (size, size, c, d)), "bias": draw(3, (d,))}}
    code, back = jax.vjp(module.apply, variables, image)
    expected, expected_back = jax.vjp(nn.Conv(d, (size, size), dtype=dtype).apply, variables, image)
    assert_near(code, expected, dtype)
    cotangent = draw(2, code.shape, dtype)
    actual_leaves, expected_leaves = (jax.tree.leaves(f(cotangent)) for f in (back, expected_back))
    for actual, expected_grad in zip(actual_leaves, expected_leaves, strict=True):
        assert actual.dtype == expected_grad.dtype
        assert_near(actual, expected_grad, dtype)


OPERATIONS = [convolutions.upsample, convolutions.downsample, convolutions.same]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_finite_differences(operation):
    depth = 3 if operation is convolutions.upsample else 2
    size = 3 if operation is convolutions.same else 4
    args = draw(0, (2, 4, 6, depth)), draw(1, (size, size, 2, 3))
    check_grads(operation, args, order=2, modes=["rev"], rtol=2e-2)


@pytest.mark.parametrize(("c", "d"), [(1, 8), (3, 4), (8, 1), (4, 3), (6, 5)])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_accelerator_implementations_and_gradients_equal_the_cpu(operation, c, d, monkeypatch):
    size = 3 if operation is convolutions.same else 4
    x = draw(0, (2, 4, 6, d if operation is convolutions.upsample else c))
    kernel = draw(1, (size, size, c, d))

    def value_and_gradients(x, kernel):
        y, back = jax.vjp(operation, x, kernel)
        return y, *back(draw(2, y.shape))

    on_cpu = value_and_gradients(x, kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for actual, expected in zip(value_and_gradients(x, kernel), on_cpu, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4)

    two_seeds = jax.jit(jax.vmap(value_and_gradients))
    both = two_seeds(*(jnp.stack([a, a]) for a in (x, kernel)))
    for actual, expected in zip(both, on_cpu, strict=True):
        np.testing.assert_allclose(actual[1], expected, atol=1e-4)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_second_derivatives_of_accelerator_implementations(operation, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    size = 3 if operation is convolutions.same else 4
    args = draw(0, (2, 4, 6, 2)), draw(1, (size, size, 2, 2))
    check_grads(operation, args, order=2, modes=["rev"], rtol=2e-2)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_accelerator_implementations_in_bfloat16(operation, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    size = 3 if operation is convolutions.same else 4
    x, kernel = draw(0, (2, 6, 6, 2)), draw(1, (size, size, 2, 2))
    x, kernel = (a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, kernel))
    rounded = operation(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert rounded.dtype == jnp.bfloat16
    assert_near(rounded, operation(x, kernel), jnp.bfloat16)


@pytest.mark.parametrize("shape", [(2, 8, 12), (1, 7, 5), (3, 1, 2)])
def test_winograd_equals_a_convolution_in_float64(shape):
    image, kernel = draw(0, (*shape, 6)), draw(1, (3, 3, 6, 5))
    _, h, w = shape
    padded = np.pad(np.asarray(image, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = np.asarray(kernel, np.float64)
    expected = sum(padded[:, i : i + h, j : j + w] @ taps[i, j] for i in range(3) for j in range(3))
    np.testing.assert_allclose(jax.jit(winograd.convolve)(image, kernel), expected, atol=2e-5 * np.abs(expected).max())


def test_winograd_takes_large_float32_layers_on_cpus_only():
    def primitives(dtype, depth=128, target="cpu"):
        image = jax.ShapeDtypeStruct((2, 32, 32, 128), dtype)
        kernel, bias = jax.ShapeDtypeStruct((3, 3, 128, depth), dtype), jnp.zeros(depth, dtype)
        layer = convolutions.conv3x3(depth)
        with convolutions.traced_for(target):
            return str(
                jax.make_jaxpr(lambda x, k: layer.apply({"params": {"kernel": k, "bias": bias}}, x))(image, kernel)
            )

    assert "conv_general_dilated" not in primitives(jnp.float32)
    assert "conv_general_dilated" in primitives(jnp.bfloat16)
    assert "conv_general_dilated" in primitives(jnp.float32, depth=8)
    assert "conv_general_dilated" in primitives(jnp.float32, target="gpu")
    assert "conv_general_dilated" in primitives(jnp.float32, target=convolutions.PLAIN)


def test_gradients_by_winograd_equal_xlas(monkeypatch):
    monkeypatch.setattr(winograd, "is_faster", lambda *_: True)
    x, kernel = draw(0, (2, 6, 9, 4)), draw(1, (3, 3, 4, 5))

    def xla(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def gradients(convolve):
        y, back = jax.vjp(convolve, x, kernel)
        return back(draw(2, y.shape))

    for actual, expected in zip(gradients(convolutions.same), gradients(xla), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4)
    seeds = jax.vmap(convolutions.same, (0, None))(jnp.stack([x, 2 * x]), kernel)
    np.testing.assert_allclose(seeds[1], 2 * xla(x, kernel), atol=1e-3)


def test_implementations_in_the_benchmark_agree():
    results = {}
    for each in itertools.chain(*implementations(1, "float32", torch=bool(find_spec("torch")))):
        results.setdefault(each.operation, []).append(each.call())
    assert len(results) == 12
    for expected, *actual_values in results.values():
        for actual in actual_values:
            assert_near(actual, expected, jnp.float32)


@pytest.mark.parametrize("module", [convolutions.Upsample(16), convolutions.Downsample(16)])
def test_initial_weights_keep_the_variance(module):
    x = draw(0, (8, 16, 16, 32))
    y, _ = module.init_with_output(jax.random.key(1), x)
    assert 0.8 < float(y.std()) < 1.2
