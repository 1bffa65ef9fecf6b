"""DICOM and NIfTI: slices are oriented as in viewers, and volumes are groups."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest

from bigan_jax.data import loading
from bigan_jax.data.files import medical, nifti
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


# --- DICOM: orientation, lookup tables, padding, empty attributes ---

AXIAL, CORONAL, SAGITTAL = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)


def sequence(**fields):
    """A DICOM sequence of one item."""
    pydicom = pytest.importorskip("pydicom")
    item = pydicom.Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return pydicom.Sequence([item])


def only_slice(path, number=None):
    return next(medical.read_slices(path, [number]))


@pytest.mark.parametrize("plane", [AXIAL, CORONAL, SAGITTAL])
def test_dicom_is_shown_in_one_orientation_however_it_is_stored(tmp_path, plane):
    """All eight ways to store a plane, by rotating and flipping an array and its direction cosines."""
    pixels = np.random.default_rng(0).integers(0, 4000, (10, 14)).astype(np.uint16)
    tilt = np.array([0.02, -0.05, 0.03])
    for i in range(8):
        stored, row, column = pixels, np.array(plane[:3]) + tilt, np.array(plane[3:]) - tilt
        if i & 1:
            stored, row = stored[:, ::-1], -row
        if i & 2:
            stored, column = stored[::-1], -column
        if i & 4:
            stored, row, column = stored.T, column, row
        path = tmp_path / f"{i}.dcm"
        write_dicom(path, stored.copy(), ImageOrientationPatient=[*row, *column])
        np.testing.assert_array_equal(only_slice(path), pixels)
        assert image_size(path) == (14, 10)
        assert read_image(path, 8, 1).tolist() == read_image(tmp_path / "0.dcm", 8, 1).tolist()


def test_frames_of_an_enhanced_file_have_their_own_orientation_and_rescaling(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4000, (3, 12, 12)).astype(np.uint16)
    stored = np.stack([pixels[0], pixels[1, :, ::-1], pixels[2]])
    frames = []
    for cosines, slope in (AXIAL, 2), ((-1, 0, 0, 0, 1, 0), 3), (AXIAL, None):
        frames += sequence(PlaneOrientationSequence=sequence(ImageOrientationPatient=list(cosines)))
        if slope:
            frames[-1].PixelValueTransformationSequence = sequence(RescaleSlope=slope, RescaleIntercept=-7)
    shared = sequence(PixelValueTransformationSequence=sequence(RescaleSlope=5, RescaleIntercept=None))
    groups = {"PerFrameFunctionalGroupsSequence": frames, "SharedFunctionalGroupsSequence": shared}
    write_dicom(tmp_path / "a.dcm", stored, RescaleSlope=100, RescaleIntercept=1, **groups)
    slices = [*medical.read_slices(tmp_path / "a.dcm", [0, 1, 2])]
    expected = [pixels[0] * 2.0 - 7, pixels[1] * 3.0 - 7, pixels[2] * 5.0 + 1]
    np.testing.assert_array_equal(slices, expected)


def test_modality_lut_is_applied(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 70, (16, 16)).astype(np.uint16)
    table = np.sort(np.random.default_rng(1).integers(0, 4000, 50))[::-1]
    lut = sequence(LUTDescriptor=[50, 10, 16], ModalityLUTType="US")
    pydicom = pytest.importorskip("pydicom")
    lut[0].add(pydicom.DataElement("LUTData", "US", table.tolist()))
    write_dicom(tmp_path / "a.dcm", pixels, ModalityLUTSequence=lut)
    expected = table[(pixels.astype(int) - 10).clip(0, 49)]
    np.testing.assert_array_equal(only_slice(tmp_path / "a.dcm"), expected)
    np.testing.assert_allclose(read_image(tmp_path / "a.dcm", 16, 1)[..., 0], stretched(expected), atol=0.51)


PADDING = {
    "value": (-2000, {"PixelPaddingValue": -2000}),
    "unsigned": (-2000, {"PixelPaddingValue": 65536 - 2000}),
    "range": (-1990, {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1980}),
    "reversed range": (-1990, {"PixelPaddingValue": -1980, "PixelPaddingRangeLimit": -2000}),
    "below the circle": (-3024, {"Modality": "CT"}),
    "below the circle, rescaled": (-1000, {"Modality": "CT", "RescaleIntercept": -1024}),
    "bright": (30000, {"PixelPaddingValue": 30000, "PhotometricInterpretation": "MONOCHROME1"}),
}


@pytest.mark.parametrize("case", PADDING)
def test_padding_is_black_and_does_not_set_the_contrast(tmp_path, case):
    padding, fields = PADDING[case]
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    inside = x**2 + y**2 <= 1
    pixels = np.random.default_rng(0).integers(0, 400, (32, 32)).astype(np.int16)
    stored = np.where(inside, pixels, padding).astype(np.int16)
    pydicom = pytest.importorskip("pydicom")
    for name in "PixelPaddingValue", "PixelPaddingRangeLimit":
        if fields.get(name, 0) > 32767:  # as some devices write it
            write_dicom(tmp_path / "a.dcm", stored, **{k: v for k, v in fields.items() if k != name})
            content = pydicom.dcmread(tmp_path / "a.dcm")
            content.add(pydicom.DataElement(name, "US", fields[name]))
            content.save_as(tmp_path / "a.dcm")
            break
    else:
        write_dicom(tmp_path / "a.dcm", stored, **fields)
    shown = read_image(tmp_path / "a.dcm", 32, 1)[..., 0]
    sign = -1 if "PhotometricInterpretation" in fields else 1
    limits = np.percentile(sign * pixels[inside].astype(float), (1, 99))
    expected = np.where(inside, np.interp(sign * pixels, limits, (0, 255)), 0)
    np.testing.assert_allclose(shown, expected, atol=0.51)


@pytest.mark.filterwarnings("ignore:A value of 'None' for")
def test_empty_attributes_have_their_defaults_or_are_named(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4000, (16, 16)).astype(np.uint16)
    empty = ("RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "ImageOrientationPatient", "NumberOfFrames")
    empty += ("PatientID", "ModalityLUTSequence", "PerFrameFunctionalGroupsSequence", "PixelPaddingRangeLimit")
    write_dicom(tmp_path / "a.dcm", pixels, **dict.fromkeys(empty))
    np.testing.assert_array_equal(only_slice(tmp_path / "a.dcm"), pixels)
    assert walk(tmp_path).images == ["a.dcm"] and medical.image_group(tmp_path, "a.dcm") == "a.dcm"
    pydicom = pytest.importorskip("pydicom")
    for name, value, message in (
        ("RescaleSlope", 0, "RescaleSlope is 0"),
        ("RescaleSlope", [1, 2], r"RescaleSlope must be one number \(got \[1"),
        ("Rows", None, "its attribute Rows is missing or empty"),
        ("PhotometricInterpretation", None, "PhotometricInterpretation is missing or empty"),
        ("BitsAllocated", None, "BitsAllocated is missing or empty"),
        ("SamplesPerPixel", None, "SamplesPerPixel is missing or empty"),
    ):
        write_dicom(tmp_path / "a.dcm", pixels)
        header = pydicom.dcmread(tmp_path / "a.dcm")
        setattr(header, name, value)
        header.save_as(tmp_path / "a.dcm")
        with pytest.raises(UserError, match=message):
            read_image(tmp_path / "a.dcm", 8, 1)


# --- NIfTI ---


def write_nifti(path, values, scale=(1, 0), version=1, affine=None):
    nibabel = pytest.importorskip("nibabel")
    affine = np.eye(4) if affine is None else affine
    image = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}[version](values, affine)
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


def all_orientations():
    """Six orders of the axes, and eight ways to flip them."""
    return itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))


def reoriented(image, order, flips):
    """A volume stored with other axes, by nibabel."""
    ornt = np.stack([order, flips], axis=-1)
    return image.as_reoriented(ornt)


OBLIQUE = np.array([[1.9, 0.2, -0.3, -90], [-0.2, 2.1, 0.4, -126], [0.3, -0.4, 3.0, -72], [0, 0, 0, 1]])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_volume_is_shown_in_one_orientation_however_it_is_stored(tmp_path, suffix, monkeypatch):
    nibabel = pytest.importorskip("nibabel")
    monkeypatch.setattr(nifti, "_BLOCK_BYTES", 8 * 40 * 2)  # several passes
    values = np.random.default_rng(0).integers(0, 4000, (8, 5, 6)).astype(np.int16)
    volume = nibabel.Nifti1Image(values, OBLIQUE)
    volume.header.set_slope_inter(0.5, 3)
    for order, flips in all_orientations():
        path = tmp_path / f"a{suffix}"
        nibabel.save(reoriented(volume, order, flips), path)
        canonical = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
        np.testing.assert_array_equal(canonical.shape, values.shape)
        assert medical.volume_shape(path) == (8, 5, 6) and image_size(tmp_path / f"a{suffix}#002") == (8, 5)
        for numbers in range(6), [4, 1], [3]:
            for number, plane in zip(numbers, medical.read_slices(path, numbers), strict=True):
                np.testing.assert_array_equal(plane, np.rot90(canonical[..., number]))


def test_a_single_slice_of_any_plane_is_one_image(tmp_path):
    values = np.random.default_rng(0).integers(0, 4000, (9, 12)).astype(np.int16)
    nibabel = pytest.importorskip("nibabel")
    for axis in range(3):
        volume = nibabel.Nifti1Image(np.expand_dims(values, axis), OBLIQUE)
        for order, flips in all_orientations():
            nibabel.save(reoriented(volume, order, flips), tmp_path / "a.nii")
            assert walk(tmp_path).images == ["a.nii"]
            np.testing.assert_array_equal(only_slice(tmp_path / "a.nii"), np.rot90(values))
    header = nibabel.Nifti1Header()
    header.set_sform(np.diag([2.0, 2, 0, 1]), code=1)  # without thickness, as some programs write it
    nibabel.save(nibabel.Nifti1Image(values, None, header), tmp_path / "a.nii")
    np.testing.assert_array_equal(only_slice(tmp_path / "a.nii"), np.rot90(values))


def test_mask_may_be_stored_in_another_order_but_not_on_another_grid(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = nibabel.Nifti1Image(np.zeros((8, 5, 6), np.int16), OBLIQUE)
    image, mask = tmp_path / "a.nii.gz", tmp_path / "a_mask.nii"
    nibabel.save(volume, image)
    for order, flips in all_orientations():
        nibabel.save(reoriented(volume, order, flips), mask)
        medical.require_same_space(tmp_path / "a.nii.gz#003", tmp_path / "a_mask.nii#003")
    shifted = OBLIQUE.copy()
    shifted[0, 3] += 2
    for values, affine in (
        (np.zeros((8, 5, 6), np.int16), np.eye(4)),  # written without the affine
        (np.zeros((8, 5, 6), np.int16), shifted),
        (np.zeros((8, 5, 6), np.int16), np.diag([-1, 1, 1, 1]) @ OBLIQUE),
        (np.zeros((8, 5, 7), np.int16), OBLIQUE),
    ):
        write_nifti(mask, values, affine=affine)
        with pytest.raises(UserError, match=r"it is 8x5x. with the affine .* its volume a\.nii\.gz is 8x5x6 with the"):
            medical.require_same_space(image, mask)


def test_mask_of_dicom_has_the_orientation_of_its_image(tmp_path):
    pixels, flipped = np.zeros((8, 8), np.uint16), [-1, 0, 0, 0, 1, 0]
    image, mask = tmp_path / "a.dcm", tmp_path / "mask.dcm"
    write_dicom(image, pixels, ImageOrientationPatient=flipped, ImagePositionPatient=[1, 2, 3])
    write_dicom(mask, pixels, ImageOrientationPatient=flipped, ImagePositionPatient=[1, 2, 3.01])
    medical.require_same_space(image, mask)
    write_dicom(mask, pixels, ImageOrientationPatient=list(AXIAL))
    with pytest.raises(UserError, match=r"ImageOrientationPatient is \(1, 0.* of its image a\.dcm is \(-1, 0"):
        medical.require_same_space(image, mask)
    write_dicom(mask, pixels, ImageOrientationPatient=flipped, ImagePositionPatient=[1, 2, 4])
    with pytest.raises(UserError, match="ImagePositionPatient"):
        medical.require_same_space(image, mask)
    write_dicom(mask, pixels)
    for other in mask, tmp_path / "mask.png":
        with pytest.raises(UserError, match=r"has no orientation, and its image a\.dcm is not stored as it is shown"):
            medical.require_same_space(image, other)
    write_dicom(image, pixels, ImageOrientationPatient=list(AXIAL))
    medical.require_same_space(image, tmp_path / "mask.png")


def test_dataset_names_a_mask_on_another_grid(tmp_path):
    random = np.random.default_rng(0)
    for i in range(10):
        write_nifti(tmp_path / "normal" / f"{i:02d}.nii.gz", random.integers(0, 1000, (16, 16, 2)).astype(np.int16))
    volume, lesion = random.integers(0, 1000, (16, 16, 2)).astype(np.int16), np.zeros((16, 16, 2), np.uint8)
    lesion[2:6, 3:5] = 1
    write_nifti(tmp_path / "anomalous" / "x.nii.gz", volume)
    write_nifti(tmp_path / "masks" / "x.nii.gz", lesion, affine=np.diag([-1, -1, 1, 1]))
    settings = DataSettings("folder", dir=tmp_path, image_size=16, tfds_dir=tmp_path / "tfds")
    for _ in range(2):  # when prepared, and when reopened
        with pytest.raises(UserError, match=r"masks/x\.nii\.gz#000: it is .* its volume x\.nii\.gz is"):
            loading.load_dataset(settings)
    # The same mask, stored from left to right and from front to back.
    affine = np.diag([-1.0, -1, 1, 1])
    affine[:2, 3] = 15
    write_nifti(tmp_path / "masks" / "x.nii.gz", lesion[::-1, ::-1], affine=affine)
    images = everything(loading.load_dataset(settings))
    np.testing.assert_array_equal(images.mask[images.label], [np.rot90(lesion[..., i]) > 0 for i in range(2)])


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
