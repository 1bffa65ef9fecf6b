"""Files from strangers: holes that were found, and a short form of the search for more."""

import gzip
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
from bigan_jax.errors import UserError
from bigan_jax.nn.vgg16 import formats as files
from tests.data.test_archives import entry, normals, pack
from tests.fuzz.targets import TARGETS
from tests.helpers.datasets import tiled_tiff
from tests.helpers.runs import ROOT
from tests.helpers.weight_files import tensors, torch_pickle, torch_zip

INPUTS = {"pictures": 300, "archives": 300, "medical": 200, "settings": 150, "results": 100}
INPUTS |= {"weights": 300, "checkpoints": 40, "tables": 300}


@pytest.mark.parametrize("target", TARGETS)
def test_spoiled_files_are_told_and_do_nothing(target):
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        f"--target={target}",
        f"--inputs={INPUTS[target]}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["inputs"] >= INPUTS[target] and told["distinct errors"] > 3
    assert not told["findings"]


@contextmanager
def little_memory(most=2**25):
    """At most so many bytes more, at any moment, by what Python allocates."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


# --- archives ---


def unpack(archive, **options):
    return archives.extract_once(inputs.resolve_path(archive), archive.parent / "home", **options)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_hides_what_comes_out_is_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as out:
        out.writestr("a.png", bytes(2**26))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    assert len(content) < 2**17
    at = content.rindex(b"PK\1\2") + 24
    content[at : at + 4] = (100).to_bytes(4, "little")  # the size it claims to have
    (tmp_path / "a.zip").write_bytes(content)
    with little_memory(), pytest.raises(UserError, match="not compressed by deflate"):
        unpack(tmp_path / "a.zip")


def test_a_zip_member_without_a_name_is_passed_over(tmp_path):
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


def test_a_tar_that_claims_a_huge_folder_is_refused_at_once(tmp_path):
    folder, _ = entry("a", tarfile.DIRTYPE)
    folder.size = 2**62
    (tmp_path / "a.tar").write_bytes(tar_of((folder, b""), format=tarfile.GNU_FORMAT))
    with pytest.raises(UserError, match="looks like a decompression bomb"):
        unpack(tmp_path / "a.tar")


def test_a_tar_whose_sizes_are_not_those_of_its_content_is_refused(tmp_path, monkeypatch):
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


def test_a_header_of_a_tar_does_not_fill_the_memory(tmp_path):
    info, _ = entry("a.png")
    info.pax_headers = {"comment": "x" * 2**26}
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_of((info, b"")), 1))
    with little_memory(), pytest.raises(UserError, match="header of more than 1"):
        unpack(tmp_path / "a.tar.gz")


def test_no_memory_for_a_dictionary_is_told(tmp_path, monkeypatch):
    def without_memory(*_):
        raise MemoryError

    monkeypatch.setitem(archives._OPENERS, b"\xfd7zXZ\x00", without_memory)
    (tmp_path / "a.tar.xz").write_bytes(lzma.compress(bytes(1024)))
    with pytest.raises(UserError, match="cannot be extracted"):
        unpack(tmp_path / "a.tar.xz")


def test_a_full_disk_names_the_place_to_change(tmp_path, monkeypatch):
    archive = pack(normals(tmp_path / "mine", 2), tmp_path / "mine.zip")

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


# --- pictures and volumes ---


def test_a_tile_larger_than_its_picture_is_not_made(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiled_tiff(16, 30_000))
    with pytest.raises(UserError, match="30000x30000 is more than 100 megapixels"):
        images.read_image(tmp_path / "a.tif", 8, 1)


def test_sixteen_bits_take_little_memory():
    picture = Image.fromarray(np.arange(2**24, dtype=np.uint16).reshape(2**12, -1))
    with little_memory(2**27):
        gray = np.asarray(images._to_eight_bit(picture))
    assert np.array_equal(gray.ravel()[: 2**16], np.round(np.arange(2**16) / 257))


def test_a_reason_is_short_and_printable():
    def fails():
        raise ValueError("\x1b[2J\u202e" + "x" * 10**6)

    reason = unreadable.try_read("a", fails).reason
    assert reason.isprintable() and "\\x1b" in reason and len(reason) < 1000


def dicom(path, syntaxes, body=b""):
    """A DICOM file with these transfer syntaxes, one after the other."""
    meta = b"".join(struct.pack("<HH2sH", 2, 0x10, b"UI", len(s)) + s.encode() for s in syntaxes)
    path.write_bytes(bytes(128) + b"DICM" + meta + body)
    return path


def test_deflated_dicom_is_refused_however_it_says_so(tmp_path):
    pytest.importorskip("pydicom")
    plain, deflated = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
    packed = zlib.compressobj(9, wbits=-15)
    bomb = packed.compress(bytes(2**26)) + packed.flush()
    for syntaxes in [deflated], [plain, deflated]:
        file = dicom(tmp_path / "a.dcm", syntaxes, bomb)
        with little_memory(), pytest.raises(UserError, match="deflated"):
            images.read_image(file, 8, 1)


def test_a_length_in_dicom_takes_no_memory(tmp_path):
    pytest.importorskip("pydicom")
    long = struct.pack("<HH2sHI", 8, 0x16, b"OB", 0, 2**30) + b"short"
    file = dicom(tmp_path / "a.dcm", ["1.2.840.10008.1.2.1"], long)
    with little_memory(), pytest.raises(Exception):  # noqa: B017 (pydicom's choice)
        images.read_image(file, 8, 1)


def nifti(tmp_path, change):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.ones((8, 8, 2), np.int16), np.eye(4))
    return tmp_path / "a.nii.gz", change(bytearray(image.to_bytes()))


def test_an_extension_of_nifti_does_not_fill_the_memory(tmp_path):
    for end in 352 + 2**26, 0:  # 0: nibabel would read to the end of the file
        path, content = nifti(tmp_path, bytes)
        extension = struct.pack("<ii", 2**26, 6) + bytes(2**26 - 8)
        content = content[:108] + struct.pack("<f", end) + content[112:348] + b"\1\0\0\0"
        path.write_bytes(gzip.compress(content + extension, 1))
        with little_memory(), pytest.raises(UserError, match="header ends"):
            medical.volume_shape(path)


@pytest.mark.parametrize("size", [2**31 - 1, 17, 0, -8])
def test_an_extension_of_nifti_is_no_longer_than_the_header(tmp_path, size):
    path, content = nifti(tmp_path, bytes)
    content = content[:108] + struct.pack("<f", 352 + 32) + content[112:348] + b"\1\0\0\0"
    first = struct.pack("<ii", 16, 6) + bytes(8)
    path.write_bytes(gzip.compress(content + first + struct.pack("<ii", size, 6) + bytes(10**4)))
    with (
        little_memory(),
        pytest.raises(UserError, match=r"header extension of .* bytes in 16 bytes"),
    ):
        medical.volume_shape(path)
    path.write_bytes(gzip.compress(content + first + first + bytes(10**4)))
    assert medical.volume_shape(path)


def test_nifti_is_not_read_as_what_it_says_it_is(tmp_path, monkeypatch):
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


def refused(path, content, match):
    path.write_bytes(content)
    with little_memory(), pytest.raises(UserError, match=match):
        files.read(path)


def test_a_pickle_with_a_far_memo_is_refused(tmp_path):
    for put in b"r\xff\xff\xff\x03", b"p99999999\n":
        refused(tmp_path / "a.pth", torch_zip({}, b"\x80\x02}" + put + b"."), "memo")


@pytest.mark.parametrize("twice", [b"q\x01h\x01", b"2", b"N0q\x01h\x01"])
def test_a_pickle_that_hashes_for_years_is_refused(tmp_path, twice):
    nested = b"\x80\x02}N\x85" + (twice + b"\x86") * 50 + b"Ns."
    refused(tmp_path / "a.pth", torch_zip({}, nested), "tuple")


def test_a_pickle_changes_nothing_that_outlives_it(tmp_path):
    before = np.dtype("<f4").byteorder, files._tensor.__class__.__call__.__defaults__
    swap = (
        b"\x80\x02ctorch\nFloatStorage\n(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb."
    )
    refused(tmp_path / "a.pth", torch_zip({}, swap), "damaged")
    defaults = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x0c__defaults__N\x85s\x86b."
    refused(tmp_path / "a.pth", torch_zip({}, defaults), "damaged|refused")
    assert before == (np.dtype("<f4").byteorder, files._tensor.__class__.__call__.__defaults__)


def test_the_name_that_a_pickle_asks_for_is_shown_harmlessly(tmp_path):
    asks = b"\x80\x02c\x1b[2Jos\n" + b"s" * 10**5 + b"\n."
    with pytest.raises(UserError) as error:
        (tmp_path / "a.pth").write_bytes(torch_zip({}, asks))
        files.read(tmp_path / "a.pth")
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_what_a_zip_says_of_its_members_holds(tmp_path):
    """A storage, and an array, that would grow far beyond the size they claim."""
    state = {"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}
    for method in zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED:
        with zipfile.ZipFile(tmp_path / "a.pth", "w", method) as out:
            out.writestr("a/data.pkl", torch_pickle(tensors(state)))
            out.writestr("a/data/0", bytes(2**26))
        content = bytearray((tmp_path / "a.pth").read_bytes())
        at = content.rindex(b"PK\1\2") + 24
        content[at : at + 4] = (6912).to_bytes(4, "little")
        refused(tmp_path / "a.pth", bytes(content), "deflating|damaged|missing")


def test_names_of_storages_are_text(tmp_path):
    """A list of twice the same list, thirty deep, has a gigabyte of text."""
    key = b"]N" + b"a" + b"".join(b"q%c](h%ch%ce" % (i, i, i) for i in range(1, 31))
    pickled = b"\x80\x02}U\x11features.0.weight"
    pickled += b"ctorch._utils\n_rebuild_tensor_v2\n((U\x07storageX\x03\0\0\0<f4" + key
    pickled += b"tQK\0K\x02\x85K\x01\x85tRs."
    refused(tmp_path / "a.pth", torch_zip({}, pickled), "without a type or a name")


def test_hdf5_of_another_file_or_of_huge_pieces_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(bytes(64 * 4))
    name = "block1_conv1/block1_conv1_b_1:0"
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(name, (64,), "<f4", external=[(str(tmp_path / "secret"), 0, 256)])
    with pytest.raises(UserError, match="another file"):
        files.read(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        layout = h5py.VirtualLayout((64,), "<f4")
        layout[:] = h5py.VirtualSource(tmp_path / "b.h5", "x", (64,))
        file.create_virtual_dataset(name, layout)
    with pytest.raises(UserError, match="another file"):
        files.read(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset(
            name, (64,), "<f4", chunks=(2**27,), maxshape=(None,), compression="gzip"
        )
        assert data.chunks
    with pytest.raises(UserError, match="pieces of more"):
        files.read(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(name, (64,), "S1000000")
    with pytest.raises(UserError, match="no numbers"):
        files.read(tmp_path / "a.h5")
