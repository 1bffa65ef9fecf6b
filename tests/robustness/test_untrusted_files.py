"""Untrusted files: regression tests of security holes, and a short run of the fuzz targets."""

import gzip
import hashlib
import io
import json
import lzma
import shutil
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from bigan_jax.data import inputs
from bigan_jax.data.files import archives, images, medical, unreadable
from bigan_jax.data.files.pixel_values import PixelValues
from bigan_jax.errors import UserError
from bigan_jax.nn.vgg16 import formats
from tests.data.test_archives import entry, pack, write_normal_images
from tests.fuzz.targets import TARGETS
from tests.helpers.datasets import tiled_tiff
from tests.helpers.runs import ROOT
from tests.helpers.weight_files import fake_torch

INPUTS = {"images": 300, "archives": 300, "medical": 200, "settings": 150, "results": 100}
INPUTS |= {"weights": 300, "checkpoints": 40, "tables": 300}


@pytest.mark.parametrize("target", TARGETS)
def test_corrupt_files_are_reported_and_have_no_effect(target):
    command = [sys.executable, "-m", "tests.fuzz", f"--target={target}", f"--inputs={INPUTS[target]}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["inputs"] >= INPUTS[target] and report["distinct errors"] > 3
    assert not report["findings"]


@contextmanager
def limited_memory(max_bytes=2**25):
    """Asserts that Python allocates at most a number of bytes at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < max_bytes
    finally:
        tracemalloc.stop()


# --- archives ---


def unpack(archive, **options):
    return archives.extract_once(inputs.resolve_path(archive), archive.parent / "home", **options)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_with_a_wrong_size_is_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as out:
        out.writestr("a.png", bytes(2**26))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    assert len(content) < 2**17
    start = content.rindex(b"PK\1\2") + 24
    content[start : start + 4] = (100).to_bytes(4, "little")  # the declared size
    (tmp_path / "a.zip").write_bytes(content)
    with limited_memory(), pytest.raises(UserError, match="not compressed by deflate"):
        unpack(tmp_path / "a.zip")


def test_zip_member_without_a_name_is_skipped(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr("a.png", b"a")
        out.writestr(zipfile.ZipInfo("x"), b"b")
    content = (tmp_path / "a.zip").read_bytes()
    for before in b"PK\3\4", b"PK\1\2":
        at = content.rindex(before)
        length = at + (26 if before == b"PK\3\4" else 28)
        name = content.index(b"x", at)
        content = content[:length] + b"\0\0" + content[length + 2 : name] + content[name + 1 :]
    end = content.rindex(b"PK\5\6")
    start, size = content.index(b"PK\1\2"), end - content.index(b"PK\1\2")
    content = content[: end + 12] + struct.pack("<II", size, start) + content[end + 20 :]
    (tmp_path / "a.zip").write_bytes(content)
    folder = unpack(tmp_path / "a.zip")
    assert [p.name for p in Path(folder).iterdir()] == ["a.png"]


def tar_of(*infos, format=tarfile.PAX_FORMAT):
    return b"".join(i.tobuf(format) + content for i, content in infos) + bytes(1024)


def test_tar_with_a_huge_folder_is_refused(tmp_path):
    folder, _ = entry("a", tarfile.DIRTYPE)
    folder.size = 2**62
    (tmp_path / "a.tar").write_bytes(tar_of((folder, b""), format=tarfile.GNU_FORMAT))
    with pytest.raises(UserError, match="looks like a decompression bomb"):
        unpack(tmp_path / "a.tar")


def test_tar_with_wrong_sizes_is_refused(tmp_path, monkeypatch):
    less, _ = entry("less.png")
    less.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.size": str(-(2**40))}
    less.pax_headers |= {"GNU.sparse.map": "0,0"}
    more, _ = entry("more.png")
    more.pax_headers = {"GNU.sparse.size": str(2**33), "GNU.sparse.map": "0,0"}
    (tmp_path / "a.tar").write_bytes(tar_of((less, b""), (more, b"")))

    def write(content, out, length):
        raise AssertionError(f"would write {len(content.read(2**20))} bytes and more")

    monkeypatch.setattr(shutil, "copyfileobj", write)
    with pytest.raises(UserError, match=r"size of its member .* is not that of its content"):
        unpack(tmp_path / "a.tar")


def test_tar_header_does_not_fill_the_memory(tmp_path):
    info, _ = entry("a.png")
    info.pax_headers = {"comment": "x" * 2**26}
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_of((info, b"")), 1))
    with limited_memory(), pytest.raises(UserError, match="header of more than 1"):
        unpack(tmp_path / "a.tar.gz")


def test_lack_of_memory_for_a_dictionary_is_reported(tmp_path, monkeypatch):
    def without_memory(*_):
        raise MemoryError

    monkeypatch.setitem(archives._OPENERS, b"\xfd7zXZ\x00", without_memory)
    (tmp_path / "a.tar.xz").write_bytes(lzma.compress(bytes(1024)))
    with pytest.raises(UserError, match="cannot be extracted"):
        unpack(tmp_path / "a.tar.xz")


def test_full_disk_error_names_the_option_to_change(tmp_path, monkeypatch):
    archive = pack(write_normal_images(tmp_path / "mine", 2), tmp_path / "mine.zip")

    def full(content, out, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match=r"disk is full.*--config\.data\.tfds_dir=DIR"):
        unpack(archive)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"disk is full.*--output=DIR"):
        inputs.open_inputs(archive, tmp_path / "out").__enter__()
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(UserError, match=r"0\.0 MiB free.*--output=DIR"):
        inputs.open_inputs(archive, tmp_path / "out").__enter__()
    assert not list((tmp_path / "out").iterdir())


# --- images and volumes ---


def test_tile_larger_than_its_image_is_not_allocated(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiled_tiff(16, 30_000))
    with pytest.raises(UserError, match="30000x30000 is more than 100 megapixels"):
        images.read_image(tmp_path / "a.tif", 8, 1)


def test_sixteen_bit_images_use_little_memory():
    image = Image.fromarray(np.arange(2**24, dtype=np.uint16).reshape(2**12, -1))
    with limited_memory(2**26):
        strips = [np.asarray(strip) for strip in PixelValues(image, full_depth=True).eight_bit_strips(window=False)]
    gray = np.concatenate(strips)
    assert np.array_equal(gray.ravel()[: 2**16], np.round(np.arange(2**16) / 257))


def test_reason_is_short_and_printable():
    def fails():
        raise ValueError("\x1b[2J\u202e" + "x" * 10**6)

    reason = unreadable.try_read("a", fails).reason
    assert reason.isprintable() and "\\x1b" in reason and len(reason) < 1000


def dicom(path, syntaxes, body=b""):
    """Writes a DICOM file with several transfer syntaxes."""
    meta = b"".join(struct.pack("<HH2sH", 2, 0x10, b"UI", len(s)) + s.encode() for s in syntaxes)
    path.write_bytes(bytes(128) + b"DICM" + meta + body)
    return path


def test_deflated_dicom_is_refused(tmp_path):
    pytest.importorskip("pydicom")
    plain, deflated = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
    packed = zlib.compressobj(9, wbits=-15)
    bomb = packed.compress(bytes(2**26)) + packed.flush()
    for syntaxes in [deflated], [plain, deflated]:
        file = dicom(tmp_path / "a.dcm", syntaxes, bomb)
        with limited_memory(), pytest.raises(UserError, match="deflated"):
            images.read_image(file, 8, 1)


def test_length_in_dicom_does_not_allocate_memory(tmp_path):
    pytest.importorskip("pydicom")
    long = struct.pack("<HH2sHI", 8, 0x16, b"OB", 0, 2**30) + b"short"
    file = dicom(tmp_path / "a.dcm", ["1.2.840.10008.1.2.1"], long)
    with limited_memory(), pytest.raises(Exception):  # noqa: B017 (pydicom's choice)
        images.read_image(file, 8, 1)


def nifti(tmp_path, change):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.ones((8, 8, 2), np.int16), np.eye(4))
    return tmp_path / "a.nii.gz", change(bytearray(image.to_bytes()))


def test_nifti_extension_does_not_fill_the_memory(tmp_path):
    for end in 352 + 2**26, 0:  # 0: nibabel would read to the end of the file
        path, content = nifti(tmp_path, bytes)
        extension = struct.pack("<ii", 2**26, 6) + bytes(2**26 - 8)
        content = content[:108] + struct.pack("<f", end) + content[112:348] + b"\1\0\0\0"
        path.write_bytes(gzip.compress(content + extension, 1))
        with limited_memory(), pytest.raises(UserError, match="header ends"):
            medical.volume_shape(path)


@pytest.mark.parametrize("size", [2**31 - 1, 17, 0, -8])
def test_nifti_extension_must_fit_in_the_header(tmp_path, size):
    path, content = nifti(tmp_path, bytes)
    content = content[:108] + struct.pack("<f", 352 + 32) + content[112:348] + b"\1\0\0\0"
    first = struct.pack("<ii", 16, 6) + bytes(8)
    path.write_bytes(gzip.compress(content + first + struct.pack("<ii", size, 6) + bytes(10**4)))
    with limited_memory(), pytest.raises(UserError, match=r"header extension of .* bytes in 16 bytes"):
        medical.volume_shape(path)
    path.write_bytes(gzip.compress(content + first + first + bytes(10**4)))
    assert medical.volume_shape(path)


def test_nifti_is_not_parsed_as_cifti(tmp_path, monkeypatch):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti2Image(np.ones((8, 8), np.int16), np.eye(4))
    image.header["intent_code"] = 3001  # CIFTI: XML in an extension
    image.to_filename(tmp_path / "a.nii")

    def parsed(*_, **__):
        raise AssertionError("parsed as XML")

    monkeypatch.setattr(nibabel.Cifti2Image, "from_filename", parsed)
    monkeypatch.setattr(nibabel.Cifti2Image, "from_file_map", parsed)
    assert medical.volume_shape(tmp_path / "a.nii") == (8, 8, 1)


# --- VGG16's weights ---


def test_name_in_a_pickle_is_printed_safely(tmp_path, monkeypatch):
    content = b"\x80\x02c\x1b[2Jos\n" + b"s" * 10**5 + b"\n."
    (tmp_path / "a.ckpt").write_bytes(content)
    monkeypatch.setattr(formats, "PACKAGE_SHA256", hashlib.sha256(content).hexdigest())
    with pytest.raises(UserError, match="refused") as error:
        formats.read(tmp_path / "a.ckpt")
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


@pytest.mark.parametrize("suffix", [".npz", ".pth"])
def test_zip_member_does_not_grow_beyond_its_declared_size(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    path = tmp_path / f"a{suffix}"
    array = np.zeros((3, 3, 3, 64), np.float32)
    for method in zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED:
        with zipfile.ZipFile(path, "w", method) as out:
            np.lib.format.write_array(buffer := io.BytesIO(), array)
            out.writestr("conv1_1/kernel.npy", buffer.getvalue()[:128] + bytes(2**26))
        content = bytearray(path.read_bytes())
        start = content.rindex(b"PK\1\2") + 24
        content[start : start + 4] = (7040).to_bytes(4, "little")
        path.write_bytes(content)
        with limited_memory(), pytest.raises(UserError, match=r"deflated|damaged|missing"):
            formats.read(path)


def test_hdf5_with_external_data_or_huge_chunks_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(bytes(64 * 4))
    name = "block1_conv1/block1_conv1_b_1:0"
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(name, (64,), "<f4", external=[(str(tmp_path / "secret"), 0, 256)])
    with pytest.raises(UserError, match="another file"):
        formats.read(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        layout = h5py.VirtualLayout((64,), "<f4")
        layout[:] = h5py.VirtualSource(tmp_path / "b.h5", "x", (64,))
        file.create_virtual_dataset(name, layout)
    with pytest.raises(UserError, match="another file"):
        formats.read(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset(name, (64,), "<f4", chunks=(2**27,), maxshape=(None,), compression="gzip")
        assert data.chunks
    with pytest.raises(UserError, match="chunks of more"):
        formats.read(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(name, (64,), "S1000000")
    with pytest.raises(UserError, match="must be numbers"):
        formats.read(tmp_path / "a.h5")
