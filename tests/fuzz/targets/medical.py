"""DICOM and NIfTI files."""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate

from bigan_jax.data.files import images, medical
from bigan_jax.data.files.folders import walk
from bigan_jax.data.files.unreadable import UnreadableFile, split_unreadable, try_read
from tests.fuzz.mutations import corrupt, corrupt_inside, corruptions

images.MAX_PIXELS = 10**6
medical.MAX_SLICES = 50
RNG = np.random.default_rng(0)


def _dicom(pixels, syntax=pydicom.uid.ExplicitVRLittleEndian, encoded=None, **fields) -> bytes:
    header = pydicom.Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    header.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    header.SOPClassUID, header.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3"
    header.PatientID, header.StudyInstanceUID = "somebody", "1.2.3.4"
    color = pixels.shape[-1] == 3
    header.Rows, header.Columns = pixels.shape[-3 + (not color) :][:2]
    header.SamplesPerPixel = 3 if color else 1
    header.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    if color:
        header.PlanarConfiguration = 0
    header.BitsAllocated = header.BitsStored = 8 * pixels.itemsize
    header.HighBit, header.PixelRepresentation = header.BitsStored - 1, 0
    header.PixelData = encoded or pixels.tobytes()
    for name, value in fields.items():
        setattr(header, name, value)
    header.save_as(content := io.BytesIO(), enforce_file_format=True)
    return content.getvalue()


def _jpeg(pixels) -> bytes:
    Image.fromarray(pixels).save(content := io.BytesIO(), "JPEG")
    return encapsulate([content.getvalue()])


def _nifti(values, kind=nibabel.Nifti1Image, extension=False) -> bytes:
    image = kind(values, np.diag([1, 2, 3, 1]))
    if extension:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"words" * 9))
    return image.to_bytes()


def _seeds() -> dict[str, bytes]:
    deep = RNG.integers(0, 4000, (20, 24), np.uint16)
    gray = (deep >> 4).astype(np.uint8)
    frames = RNG.integers(0, 4000, (3, 20, 24), np.uint16)
    color = RNG.integers(0, 256, (20, 24, 3), np.uint8)
    syntax = pydicom.uid
    volume = RNG.integers(0, 4000, (12, 10, 4)).astype(np.int16)
    rle = pydicom.dcmread(io.BytesIO(_dicom(deep)))
    rle.compress(syntax.RLELossless)
    rle.save_as(packed := io.BytesIO())
    return {
        "deep.dcm": _dicom(deep, RescaleSlope=2, RescaleIntercept=-1000),
        "dark.dcm": _dicom(gray, PhotometricInterpretation="MONOCHROME1"),
        "implicit.dcm": _dicom(deep, syntax.ImplicitVRLittleEndian),
        "frames.dcm": _dicom(frames, NumberOfFrames=3),
        "color.dcm": _dicom(color),
        "jpeg.dcm": _dicom(gray, syntax.JPEGBaseline8Bit, _jpeg(gray)),
        "rle.dcm": packed.getvalue(),
        "volume.nii": _nifti(volume),
        "real.nii": _nifti(RNG.random((12, 10, 3), np.float32)),
        "second.nii": _nifti(volume, nibabel.Nifti2Image),
        "extended.nii": _nifti(volume, extension=True),
        "volume.nii.gz": gzip.compress(_nifti(volume)),
        "extended.nii.gz": gzip.compress(_nifti(volume, extension=True)),
    }


SEEDS = _seeds()
cases = corruptions(SEEDS, ("plain", "inside"))
warm = [(name, "plain", [], name) for name in SEEDS]


def attempt(case, folder: Path) -> Iterator[str]:
    name, wrapping, changes, other = case
    content, other = SEEDS[name], SEEDS[other]
    if wrapping == "inside" and name.endswith(".gz"):
        content = corrupt_inside(content, changes, other, gzip.decompress, gzip.compress)
    else:
        content = corrupt(content, changes, other)
    data = folder / "data"
    data.mkdir()
    (file := data / f"a.{name.partition('.')[2]}").write_bytes(content)
    names = walk(data).images
    for read in lambda x, _: images.read_image(x, 8, 1), lambda x, _: images.read_mask(x, 8):
        _, unreadable = split_unreadable(images.read_files(read, data, names, "images"))
        yield from (file.reason for file in unreadable)
    for read in (
        lambda: images.image_size(data / names[0]),
        lambda: images.read_encoded(data / names[0], mask=True),
        lambda: medical.image_group(data, file.name),
    ):
        if isinstance(result := try_read(file.name, read), UnreadableFile):
            yield result.reason
