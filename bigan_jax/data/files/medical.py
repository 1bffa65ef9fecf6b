"""Reads slices of DICOM and NIfTI files with pydicom and nibabel (the extra `medical`).

Every slice is an image: `scan.nii.gz#037` is slice 37, counted from 0 along the third axis (in DICOM: the frame).
"""

import importlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from types import ModuleType

import numpy as np
from jaxtyping import Num, UInt8

from bigan_jax.errors import UserError

DICOM = (".dcm", ".dicom")
NIFTI = (".nii", ".nii.gz")
SUFFIXES = frozenset(DICOM + NIFTI)
MAX_SLICES = 10_000  # a header that claims more is corrupt or malicious
MAX_HEADER = 2**26  # bytes before the values of a NIfTI file, including header extensions

Slice = Num[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]  # physical values, or color

_DEFLATED = "1.2.840.10008.1.2.1.99"
_SLICE = re.compile(rf"(.*(?:{'|'.join(map(re.escape, SUFFIXES))}))#(\d+)", re.I | re.S)


def is_medical(name: str) -> bool:
    """Whether a file, or the file of a slice, is DICOM or NIfTI according to its name."""
    return split_slice(name)[0].lower().endswith(tuple(SUFFIXES))


def split_slice(name: str) -> tuple[str, int | None]:
    """Return ("a/scan.nii.gz", 37) for "a/scan.nii.gz#037", and (name, None) for other names."""
    match = _SLICE.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, None)


def stem(name: str) -> tuple[str, int | None]:
    """Return a name without its suffix, and its slice: the same for an image and its mask."""
    file, number = split_slice(name)
    file = file[:-3] if file.lower().endswith(".nii.gz") else file
    return PurePosixPath(file).with_suffix("").as_posix(), number


def image_group(root: Path, name: str) -> str:
    """Return the group of the image `root / name`: its volume, or for DICOM its patient.

    A patient (or the study, if there is no patient ID) is represented by a hash, so that reports do not disclose it.
    """
    file, _ = split_slice(name)
    if not _is_dicom(file):
        return file
    try:
        header = _dicom_header(root / file)
    except Exception:  # reading the pixels will report the reason
        return file
    patient = str(header.get("PatientID") or header.get("StudyInstanceUID") or "").strip()
    digest = blake2b(patient.encode("utf-8", "replace"), digest_size=8).hexdigest()
    return f"patient {digest}" if patient else file


def slice_notes(requested: Iterable[str], accounted_for: Iterable[str]) -> tuple[str, ...]:
    """Return notes about the slices among `requested` images; those not `accounted_for` count as skipped."""
    slices = {name for name in requested if is_medical(name)}
    counts = {
        "DICOM or NIfTI slices, each displayed from its 1st to 99th percentile": len(slices),
        "slices skipped: blank, or without the defect in their volume's mask": len(slices - set(accounted_for)),
    }
    return tuple(f"{count} {what}" for what, count in counts.items() if count)


def slice_names(file: Path) -> list[str]:
    """List the images in a file: its own name, or one name per slice if there are several.

    An unreadable file keeps its name: reading it reports the reason. Raises UserError if its library is missing.
    """
    _import_library(file)
    try:
        *_, n_slices = volume_shape(file)
    except Exception:
        n_slices = 1
    digits = max(3, len(str(n_slices - 1)))
    names = [f"{file.name}#{i:0{digits}}" for i in range(n_slices)]
    return names if n_slices > 1 else [file.name]


def volume_shape(file: Path) -> tuple[int, int, int]:
    """Return width, height and number of slices. Raises UserError for other shapes, or more data than the file has."""
    if _is_dicom(file):
        header = _dicom_header(file)
        if "Rows" not in header or "Columns" not in header:
            raise UserError("a DICOM file without an image")
        shape = int(header.Columns), int(header.Rows), int(header.get("NumberOfFrames") or 1)
    else:
        image = _nifti(file)
        axes = image.shape
        while len(axes) > 3 and axes[-1] == 1:
            axes = axes[:-1]
        if len(axes) not in (2, 3):
            raise UserError(f"has {len(axes)} axes: save each volume as a file with three")
        shape = (axes[0], axes[1], (*axes, 1)[2])
        n_bytes = np.prod(shape, dtype=float) * image.get_data_dtype().itemsize
        if n_bytes > 1100 * file.stat().st_size:  # deflate compresses to a thousandth at best
            raise UserError("is truncated: its header claims more data than the file can hold")
    if shape[2] > MAX_SLICES:
        raise UserError(f"has {shape[2]} slices: at most {MAX_SLICES} are supported")
    return shape


def read_slices(file: Path, numbers: Sequence[int | None]) -> Iterator[Slice]:
    """Read slices one by one; None is the only slice of a file.

    DICOM rescaling and NIfTI scaling are applied, and MONOCHROME1, in which high values are dark, is negated. NIfTI
    slices are rotated so that the second axis points up. Raises UserError if a slice does not exist.
    """
    *_, n_slices = volume_shape(file)
    if None in numbers and n_slices > 1:
        raise UserError(f"has {n_slices} slices: name one of them, such as {file.name}#{n_slices // 2:03d}")
    indices = [number or 0 for number in numbers]
    if max(indices) >= n_slices:
        raise UserError(f"has no slice {max(indices)}: it has {n_slices}, counted from 0")
    return _dicom_slices(file, indices) if _is_dicom(file) else _nifti_slices(file, indices)


def slice_to_uint8(values: Slice) -> UInt8[np.ndarray, "h w *c"]:
    """Convert physical values to gray by `percentile_stretch`; color is returned unchanged."""
    # MR intensities have no unit, and the range of CT is far wider than the contrast within a slice.
    return values if values.ndim == 3 else percentile_stretch(values)


def percentile_stretch(values: Num[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h w *c"]:
    """Map the 1st percentile of an image, over all channels, to 0 and the 99th to 255; equal ones both become 0."""
    require_finite_values(values)
    low, high = np.percentile(values, (1, 99))
    scaled = (values.astype(np.float64) - low) / (high - low) if high > low else 0 * values
    return np.round(255 * scaled.clip(0, 1)).astype(np.uint8)


def require_finite_values(values: Num[np.ndarray, "..."]) -> None:
    """Raise a UserError if a value is NaN or infinite."""
    if not np.isfinite(values).all():
        raise UserError("has values that are not finite (NaN or infinite)")


def _dicom_slices(file, numbers):
    header = _dicom_header(file)
    interpretation = header.PhotometricInterpretation
    slope, intercept = header.get("RescaleSlope", 1), header.get("RescaleIntercept", 0)
    if interpretation == "PALETTE COLOR":
        raise UserError("DICOM with a palette is not supported: save it as PNG")
    iter_pixels = importlib.import_module("pydicom.pixels").iter_pixels
    with _BoundedReader(file.open("rb", buffering=0)) as stream:
        for pixels in iter_pixels(stream, indices=numbers):
            if pixels.ndim == 3 and pixels.dtype != np.uint8:
                raise UserError("DICOM color with more than 8 bits is not supported: save it as PNG")
            values = pixels if pixels.ndim == 3 else pixels * float(slope) + float(intercept)
            yield -values if interpretation == "MONOCHROME1" else values


def _nifti_slices(file, numbers):
    # The file is kept open, so that a compressed file is decompressed once.
    image = _nifti(file, keep_file_open=True)
    if image.get_data_dtype().fields or image.get_data_dtype().kind == "c":
        raise UserError("NIfTI with color or complex values is not supported: save it as gray")
    n_axes = len(image.shape)
    for number in numbers:
        yield np.rot90(image.dataobj[(slice(None), slice(None), number, *[0] * n_axes)[:n_axes]])


def _is_dicom(file):
    return str(file).lower().endswith(DICOM)


def _nifti(file, **options):
    """Open a NIfTI file; only its header is in memory."""
    nibabel = _import_library(file)
    with nibabel.openers.ImageOpener(file, "rb") as stream:
        start = stream.read(544)
        # Not nibabel.load, which lets the file choose its own type, XML among others.
        is_nifti2 = nibabel.Nifti2Image.header_class.may_contain_header(start)
        image_class, size = (nibabel.Nifti2Image, 540) if is_nifti2 else (nibabel.Nifti1Image, 348)
        header = image_class.header_class(start[:size], check=False)
        if any(start[size : size + 1]):
            _check_extensions(stream, size + 4, header)
    return image_class.from_filename(file, **options)


def _check_extensions(stream, start, header):
    """Check the sizes of header extensions, because nibabel reads each with the size it claims."""
    end = header["vox_offset"]
    if not start <= end <= MAX_HEADER:
        raise UserError(f"corrupt: its header ends at byte {end:.0f}")
    byte_order = "big" if header.endianness == ">" else "little"
    while (remaining := int(end) - start) >= 16:
        stream.seek(start)
        size = int.from_bytes(stream.read(4), byte_order, signed=True)
        if not 8 <= size <= remaining:
            raise UserError(f"corrupt: a header extension of {size} bytes in {remaining} bytes")
        start += size


class _BoundedReader(io.BufferedReader):
    """A file of which at most the existing bytes are read, whatever length is requested."""

    def read(self, size=-1):
        remaining = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(remaining if size is None or size < 0 else min(size, remaining))


def _dicom_header(file):
    pydicom = _import_library(file)
    with _BoundedReader(file.open("rb", buffering=0)) as stream:
        pydicom.filereader.read_preamble(stream, force=False)
        # Read like dcmread does, which decompresses a deflated file at once.
        meta = pydicom.filereader.read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        if meta.get("TransferSyntaxUID") == _DEFLATED:
            raise UserError("deflated DICOM is not supported, as its size is unknown: save it uncompressed")
        stream.seek(0)
        return pydicom.dcmread(stream, stop_before_pixels=True)


def _import_library(file: Path) -> ModuleType:
    name = "pydicom" if _is_dicom(file) else "nibabel"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = f"{file.name} requires {name}, which is not installed"
        raise UserError(f"{missing}: pip install 'bigan_jax[medical]'") from error
