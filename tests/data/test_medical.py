"""DICOM and NIfTI: slices are oriented as in viewers, and volumes are groups."""

import io
import struct
import zlib

import numpy as np
import pytest

from bigan_jax.data import loading
from bigan_jax.data.files import medical
from bigan_jax.data.files.folders import walk
from bigan_jax.data.files.images import image_size, read_encoded, read_files, read_image, read_mask
from bigan_jax.data.files.unreadable import split_unreadable
from bigan_jax.data.settings import DataSettings
from bigan_jax.errors import UserError
from tests.helpers.datasets import decoded, everything


def write_dicom(path, pixels, **fields):
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = fields.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    dicom = pydicom.Dataset()
    dicom.file_meta = meta
    color = pixels.ndim == 3 and pixels.shape[-1] == 3
    dicom.Rows, dicom.Columns = pixels.shape[:2] if color else pixels.shape[-2:]
    if pixels.ndim == 3 and not color:
        dicom.NumberOfFrames = len(pixels)
    dicom.SamplesPerPixel = 3 if color else 1
    if color:
        dicom.PlanarConfiguration = 0
    dicom.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    dicom.BitsAllocated = dicom.BitsStored = pixels.dtype.itemsize * 8
    dicom.HighBit = dicom.BitsStored - 1
    dicom.PixelRepresentation = int(pixels.dtype.kind == "i")
    dicom.PixelData = pixels.tobytes()
    for name, value in fields.items():
        setattr(dicom, name, value)
    path.parent.mkdir(exist_ok=True)
    dicom.save_as(path, enforce_file_format=True)


def stretched(values):
    """The documented percentile stretch, by np.interp."""
    return np.interp(values, np.percentile(values, (1, 99)), (0, 255))


def test_dicom_is_rescaled_stretched_and_not_inverted(tmp_path):
    pixels = np.random.default_rng(0).integers(-1000, 3000, (16, 16)).astype(np.int16)
    write_dicom(tmp_path / "plain.dcm", pixels, RescaleSlope=2, RescaleIntercept=-1024)
    write_dicom(tmp_path / "inverse.DCM", pixels, PhotometricInterpretation="MONOCHROME1")
    values = next(medical.read_slices(tmp_path / "plain.dcm", [None]))
    np.testing.assert_array_equal(values, pixels * 2.0 - 1024)
    plain, inverse = (read_image(tmp_path / name, 16, 1)[..., 0] for name in ("plain.dcm", "inverse.DCM"))
    np.testing.assert_allclose(plain, stretched(pixels), atol=0.51)
    np.testing.assert_allclose(inverse, stretched(-pixels), atol=0.51)
    color = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    write_dicom(tmp_path / "color.dcm", color)
    np.testing.assert_array_equal(read_image(tmp_path / "color.dcm", 16, 3), color)


def test_dicom_frames_are_images_and_patients_are_groups(tmp_path):
    frames = np.random.default_rng(0).integers(0, 4000, (3, 16, 16)).astype(np.uint16)
    write_dicom(tmp_path / "many.dcm", frames, PatientID="Ada")
    write_dicom(tmp_path / "one.dcm", frames[0], PatientID="Ada")
    write_dicom(tmp_path / "other.dcm", frames[0], StudyInstanceUID="1.2.3")
    names = walk(tmp_path).images
    assert names == ["many.dcm#000", "many.dcm#001", "many.dcm#002", "one.dcm", "other.dcm"]
    images = decoded(tmp_path, names, 16)[..., 0]
    np.testing.assert_allclose(images[2], stretched(frames[2]), atol=0.51)
    np.testing.assert_array_equal(images[0], images[3])
    groups = [medical.image_group(tmp_path, name) for name in names]
    assert len(set(groups[:4])) == 1 and groups[4] != groups[0]
    assert not any("Ada" in group for group in groups)


def write_nifti(path, values, scale=(1, 0), version=1):
    nibabel = pytest.importorskip("nibabel")
    image = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}[version](values, np.eye(4))
    image.header.set_slope_inter(*scale)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


@pytest.mark.parametrize(("name", "version"), [("scan.nii", 1), ("scan.nii.gz", 1), ("s.nii.gz", 2)])
def test_volume_is_listed_as_slices_along_the_third_axis(tmp_path, name, version):
    values = np.random.default_rng(0).integers(0, 4000, (20, 16, 12)).astype(np.int16)
    write_nifti(tmp_path / "a" / name, values, (2.0, 1.0), version)
    names = walk(tmp_path).images
    assert names == [f"a/{name}#{i:03d}" for i in range(12)]
    images = decoded(tmp_path, names, 16)
    single = [read_image(tmp_path / n, 16, 1) for n in names]
    stored = [read_image(io.BytesIO(read_encoded(tmp_path / n)), 16, 1) for n in names]
    np.testing.assert_array_equal(images, single)
    np.testing.assert_array_equal(images, stored)
    assert image_size(tmp_path / names[0]) == (20, 16)
    # x points to the right, y upwards.
    values = next(medical.read_slices(tmp_path / "a" / name, [7]))
    assert values[-1, 3] == values.T[3, -1] and values.shape == (16, 20)
    assert {medical.image_group(tmp_path, n) for n in names} == {f"a/{name}"}
    with pytest.raises(UserError, match="has no slice 12"):
        read_image(tmp_path / f"a/{name}#012", 16, 1)
    with pytest.raises(UserError, match="has 12 slices: name one of them, such as"):
        read_image(tmp_path / "a" / name, 16, 1)


def test_slices_are_oriented_as_in_viewers(tmp_path):
    values = np.zeros((8, 6, 2), np.float32)
    values[6, 5, 1] = 9  # far along x and y: right and up
    write_nifti(tmp_path / "s.nii.gz", values)
    (pixels,) = medical.read_slices(tmp_path / "s.nii.gz", [1])
    assert np.argwhere(pixels).tolist() == [[0, 6]]
    # A single voxel of 48 vanishes in a stretched image, but not in a mask or an encoded mask.
    path = tmp_path / "s.nii.gz#001"
    for source in path, io.BytesIO(read_encoded(path, mask=True)):
        assert np.argwhere(read_mask(source, 8, (8, 6))).tolist() == [[0, 6]]


def test_stem_is_equal_for_slices_of_volume_and_mask():
    assert medical.stem("a/b.nii.gz#003") == ("a/b", 3) == medical.stem("a/b.nii#003")
    assert medical.stem("a/b.c.png") == ("a/b.c", None)
    assert medical.split_slice("leaf #3.png") == ("leaf #3.png", None)


@pytest.mark.parametrize("suffix", [".dcm", ".nii.gz"])
def test_missing_extra_is_named(tmp_path, monkeypatch, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"anything")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(UserError, match=r"pip install 'bigan_jax\[medical\]'"):
        walk(tmp_path)


def test_reasons_of_unreadable_medical_files(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    noise = np.random.default_rng(0).integers(0, 4000, (32, 32, 9)).astype(np.int16)
    write_nifti(tmp_path / "cut.nii.gz", noise)
    content = (tmp_path / "cut.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(content[: len(content) * 2 // 3])
    write_nifti(tmp_path / "nan.nii", np.full((8, 8), np.nan, np.float32))
    write_nifti(tmp_path / "time.nii", np.zeros((8, 8, 8, 3), np.float32))
    write_nifti(tmp_path / "huge.nii.gz", np.zeros((8, 8, 2), np.uint8))
    header = bytearray(zlib.decompress((tmp_path / "huge.nii.gz").read_bytes(), 31))
    header[42:46] = struct.pack("<2h", 30_000, 30_000)
    (tmp_path / "huge.nii").write_bytes(header)
    (tmp_path / "huge.nii.gz").unlink()
    (tmp_path / "text.nii.gz").write_text("no volume")
    (tmp_path / "text.dcm").write_text("no DICOM")
    write_dicom(tmp_path / "large.dcm", noise[..., 0].astype(np.uint16), Rows=30_000, Columns=30_000)
    deflated = pydicom.uid.DeflatedExplicitVRLittleEndian
    write_dicom(tmp_path / "deflated.dcm", noise[..., 0].astype(np.uint16), syntax=deflated)
    names = walk(tmp_path).images
    assert [n for n in names if n.startswith("cut")] == [f"cut.nii.gz#{i:03d}" for i in range(9)]
    results = read_files(lambda x, _: read_image(x, 8, 1), tmp_path, names, "images")
    images, unreadable = split_unreadable(results)
    reasons = dict(unreadable)
    # Slices before the cut are read; the first one after it has the reason, the others refer to it.
    cut = [reasons.pop(f"cut.nii.gz#{i:03d}", None) for i in range(9)]
    first = next(i for i, reason in enumerate(cut) if reason)
    assert 3 < first < 8 and "ended" in cut[first] and "earlier slice" in cut[-1]
    assert [image is None for image in images[:9]] == [i >= first for i in range(9)]
    assert "NaN" in reasons.pop("nan.nii") and "4 axes" in reasons.pop("time.nii")
    assert "truncated" in reasons.pop("huge.nii")
    assert "30000x30000 is more than 100" in reasons.pop("large.dcm")
    assert "deflated" in reasons.pop("deflated.dcm")
    assert reasons.keys() == {"text.dcm", "text.nii.gz"} and all(reasons.values())


def test_dataset_of_volumes(tmp_path):
    random = np.random.default_rng(0)
    for i in range(12):
        values = random.integers(0, 1000, (16, 16, 4)).astype(np.int16)
        values[..., 3] = 0  # outside the head
        write_nifti(tmp_path / "normal" / f"{i:02d}.nii.gz", values)
    lesion = np.zeros((16, 16, 4), np.uint8)
    lesion[4:8, 4:8, 1] = 1
    write_nifti(tmp_path / "anomalous" / "x.nii.gz", values)
    write_nifti(tmp_path / "masks" / "x.nii.gz", lesion)
    loaded = loading.load_dataset(DataSettings("folder", dir=tmp_path, image_size=16))
    groups = [set(split.group) for split in loaded[:3]]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 13
    images = everything(loaded)
    assert len(images.path) == 12 * 3 + 1 and np.ptp(images.image, (1, 2, 3)).min() > 0
    anomalous = images.select(images.label)
    assert anomalous.path.tolist() == ["anomalous/x.nii.gz#001"]
    assert anomalous.mask.sum() == 16 and anomalous.has_mask.all()
    assert any(n.startswith("52 DICOM or NIfTI slices, each displayed from") for n in loaded.notes)
    assert any(n.startswith("15 slices skipped: blank") for n in loaded.notes)
