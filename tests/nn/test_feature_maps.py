"""Features on a grid, and networks from files, against the same network in Flax and against loops in NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export
from safetensors.flax import load_file, save_file

from bigan_jax.detector import FITTED, Net
from bigan_jax.errors import UserError
from bigan_jax.models import feature_pca, memory_bank, patch_gaussian
from bigan_jax.nn import exported_network, feature_maps
from tests.helpers import features
from tests.helpers.training import limit_devices

IMAGE = (16, 16, 3)
PLATFORMS = ("cpu", "cuda", "tpu")


def apply(images):
    return features.MODULE.apply(features.VARIABLES, images)


def write(path, function=apply, shape="b, 16, 16, 3", dtype=jnp.float32, **options):
    """Writes an exported function of one array, and returns the file's name."""
    dimensions = export.symbolic_shape(shape)
    exported = export.export(jax.jit(function), **{"platforms": PLATFORMS} | options)
    path.write_bytes(exported(jax.ShapeDtypeStruct(dimensions, dtype)).serialize())
    return str(path)


@pytest.fixture(scope="module")
def any_batch(tmp_path_factory):
    return write(tmp_path_factory.mktemp("networks") / "any.stablehlo")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A network that takes two images at a time."""
    return write(tmp_path_factory.mktemp("networks") / "pairs.stablehlo", shape="2, 16, 16, 3")


def images(*shape, seed=0):
    return np.random.default_rng(seed).random((*shape, *IMAGE), np.float32)


def test_grid_features_are_the_averages_of_neighbors_and_cells():
    raw = features.random_images(3)
    net = Net({feature_maps.NETWORK: features.MODULE}, {feature_maps.NETWORK: features.VARIABLES}, train=False)
    found = jax.jit(lambda x: feature_maps.grid_features(net, x, 4))(raw / np.float32(255))
    for layer, expected in zip(found, features.reference_features(raw), strict=True):
        np.testing.assert_allclose(layer, expected, rtol=1e-4, atol=1e-5)


def test_grid_that_does_not_divide_a_map_weighs_pixels_by_area():
    x = np.arange(10.0, dtype=np.float32)
    found = feature_maps._averages(10, 4) @ x
    smooth = np.convolve(np.pad(x, 1, "edge"), np.ones(3) / 3, "valid")
    fine = np.repeat(smooth, 2).reshape(4, 5).mean(1)  # 20 half pixels in 4 cells of 2.5 pixels
    np.testing.assert_allclose(found, fine, rtol=1e-6)


def test_scaled_layers_have_mean_0_and_a_total_variance_of_1(monkeypatch):
    """On 1 and 4 devices, with sums in float32 of a large mean."""
    raw = features.random_images(21)
    params = []
    for devices in 1, 4:
        limit_devices(monkeypatch, devices)
        detector = memory_bank.create(shape=IMAGE, network=features.NETWORK, grid=4, components=7)
        params.append(features.fit(detector, raw).params[FITTED])
    layers = features.reference_features(raw)
    center = np.concatenate([x.mean((0, 1)) for x in layers])
    scale = [np.sqrt(x.reshape(-1, x.shape[-1]).var(0).sum()) for x in layers]
    for fitted in params:
        np.testing.assert_allclose(fitted["center"], center, rtol=1e-5)
        np.testing.assert_allclose(fitted["scale"], scale, rtol=1e-3)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_exported_network_equals_the_module(any_batch, pairs, number):
    expected = apply(images(number))
    for file in any_batch, pairs:
        module, variables = exported_network.load(file)
        found = jax.jit(lambda x, m=module, v=variables: m.apply(v, x, train=False))(images(number))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_exported_network_runs_on_each_device(any_batch, pairs):
    expected = jax.vmap(apply)(images(4, 3))
    for file in any_batch, pairs:
        module, variables = exported_network.load(file)
        found = jax.pmap(lambda x, m=module, v=variables: m.apply(v, x), axis_name="batch")(images(4, 3))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_gray_images_become_rgb(any_batch):
    module, variables = exported_network.load(any_batch)
    gray = jnp.asarray(images(2)[..., :1])
    expected = apply(jnp.repeat(gray, 3, -1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), module.apply(variables, gray), expected)


@pytest.mark.parametrize("model", [patch_gaussian, feature_pca, memory_bank])
def test_detectors_take_a_file_or_a_module(model, any_batch, monkeypatch):
    limit_devices(monkeypatch, 4)
    small = {"images": 32} if model is feature_pca else {"bank": 9} if model is memory_bank else {}
    raw, new = features.random_images(12), features.random_images(3, seed=1)
    results = []
    for network in any_batch, features.NETWORK:
        detector = model.create(shape=IMAGE, network=network, grid=4, components=6, **small)
        results.append(features.score(detector, features.fit(detector, raw), new))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2), *results)


def test_weights_from_safetensors(tmp_path):
    """As docs/how-to/other-networks.md shows it."""
    save_file(flatten_dict(features.VARIABLES["params"], sep="/"), tmp_path / "weights.safetensors")
    params = unflatten_dict(load_file(tmp_path / "weights.safetensors"), sep="/")
    network = feature_maps.FeatureNetwork(features.MODULE, {"params": params})
    assert feature_maps.load_network(network, "", ()) is network
    jax.tree.map(np.testing.assert_array_equal, network.module.apply(network.variables, images(2)), apply(images(2)))


def test_another_file_has_other_variables(any_batch, pairs):
    digests = [bytes(exported_network.load(file)[1]["file"]["sha256"]) for file in (any_batch, pairs, any_batch)]
    assert digests[0] == digests[2] != digests[1]


def refused(path, message):
    with pytest.raises(UserError, match=message) as error:
        exported_network.load(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def library(x):
    return (x * jnp.linalg.inv(x[:, :3, :3, 0]).sum((1, 2))[:, None, None, None],)


def host_code(x):
    return (
        jax.lax.cond(x.sum() > 0, jax.ffi.ffi_call("any_function", jax.ShapeDtypeStruct(x.shape, x.dtype)), jnp.sin, x),
    )


@pytest.mark.parametrize(("function", "target"), [(library, "lapack_"), (host_code, "any_function")])
def test_custom_call_is_refused(tmp_path, function, target):
    checks = [export.DisabledSafetyCheck.custom_call("any_function")]
    options = {"shape": "2, 16, 16, 3", "platforms": ("cpu",), "disabled_checks": checks}
    refused(write(tmp_path / "network", function, **options), f"operation 'stablehlo.custom_call {target}.*is refused")


@pytest.mark.parametrize("operation", ["stablehlo.infeed", "stablehlo.send", "tpu.enqueue_dma", "llvm.call"])
def test_operation_that_leaves_the_program_is_refused(operation):
    with pytest.raises(UserError, match=f"'{operation}' is refused"):
        exported_network._require_computations({"func.func", "stablehlo.add", operation})


def test_pooling_and_gelu_of_any_batch_are_accepted(tmp_path):
    """Symbolic shapes are custom calls in the file, but not in a compiled program."""

    def pool(x):
        return (
            jax.nn.gelu(-jax.lax.reduce_window(-x, np.inf, jax.lax.min, (1, 2, 2, 1), (1, 2, 2, 1), "SAME"), False),
        )

    module, variables = exported_network.load(write(tmp_path / "pool", pool, shape="b, 2*h, 2*w, 3"))
    np.testing.assert_allclose(jax.jit(module.apply)(variables, images(2))[0], pool(images(2))[0], atol=1e-6)
    with pytest.raises(UserError, match=r"does not take images of 15x15x3: .*2\*h"):
        module.apply(variables, jnp.zeros((1, 15, 15, 3)))


def test_images_of_another_size_are_refused(any_batch):
    with pytest.raises(UserError, match=r"takes images of 16x16x3 \(got 32x32x3\).*config\.data\.image_size"):
        memory_bank.create(shape=(32, 32, 3), network=any_batch)


@pytest.mark.parametrize(
    ("function", "shape", "dtype", "message"),
    [
        (lambda x: (x.mean((1, 2)),), "b, 16, 16, 3", jnp.float32, r"returns float32\[b, 3\]\. Export a jitted"),
        (lambda x: (), "b, 16, 16, 3", jnp.float32, "returns nothing"),
        (lambda x: (x.sum(0, keepdims=True),), "b, 16, 16, 3", jnp.float32, r"returns float32\[1, 16, 16, 3\]"),
        (lambda x: (x > 0,), "b, 16, 16, 3", jnp.float32, r"returns bool\["),
        (lambda x: (x,), "b, 16, 16, 3", jnp.uint8, r"takes uint8\[b, 16, 16, 3\]"),
        (lambda x: (x[None],), "b, 16, 3", jnp.float32, r"takes float32\[b, 16, 3\]"),
    ],
)
def test_function_that_is_no_feature_network_is_refused(tmp_path, function, shape, dtype, message):
    refused(write(tmp_path / "network.stablehlo", function, shape, dtype), message)


def test_function_of_two_arguments_is_refused(tmp_path):
    array = jax.ShapeDtypeStruct((2, *IMAGE), jnp.float32)
    path = tmp_path / "network.stablehlo"
    path.write_bytes(export.export(jax.jit(lambda x, y: (x + y,)))(array, array).serialize())
    refused(path, r"takes float32\[2, 16, 16, 3\], float32\[2, 16, 16, 3\]")


def test_network_for_other_devices_is_refused(tmp_path):
    path = write(tmp_path / "network.stablehlo", platforms=("tpu",))
    refused(path, "exported for tpu, and this machine computes on cpu.*platforms=")


def test_damaged_and_missing_files_are_refused(any_batch, tmp_path):
    with open(any_batch, "rb") as file:
        content = file.read()
    path = tmp_path / "network.stablehlo"
    rng = np.random.default_rng(0)
    for damaged in b"", b"no network", content[: len(content) // 2], rng.bytes(5000):
        path.write_bytes(damaged)
        refused(path, "damaged or none of jax.export.*Export a jitted function")
    refused(tmp_path / "absent.stablehlo", re.escape("no absent.stablehlo"))
    refused(tmp_path, "no ")
