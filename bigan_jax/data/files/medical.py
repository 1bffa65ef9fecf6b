"""Slices of DICOM and NIfTI files, read by pydicom and nibabel: the extra `medical`.

A file of several slices stands for as many pictures: `scan.nii.gz#037` is the slice 37, counted
from 0 along the third axis as it is stored (in DICOM: the frame). They are one group.
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
MAX_SLICES = 10_000  # a header that promises more is broken, or a trap

MAX_HEADER = 2**26  # bytes before a NIfTI file's values, its extensions included

_DEFLATED = "1.2.840.10008.1.2.1.99"
_SLICE = re.compile(rf"(.*(?:{'|'.join(map(re.escape, SUFFIXES))}))#(\d+)", re.I | re.S)


def is_medical(name: str) -> bool:
    """Whether a file, or the file of a slice, is DICOM or NIfTI by its name."""
    return split_slice(name)[0].lower().endswith(tuple(SUFFIXES))


def split_slice(name: str) -> tuple[str, int | None]:
    """("a/scan.nii.gz", 37) of "a/scan.nii.gz#037"; any other name with None."""
    match = _SLICE.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, None)


def stem(name: str) -> tuple[str, int | None]:
    """A name without its suffix, and its slice: what a picture and its mask have in common."""
    file, number = split_slice(name)
    whole = file[:-3] if file.lower().endswith(".nii.gz") else file
    return PurePosixPath(whole).with_suffix("").as_posix(), number


def group(root: Path, name: str) -> str:
    """What the picture `root / name` belongs with: its volume, or for DICOM its patient.

    A DICOM patient (or study, where no patient is named) becomes a hash of its identifier, so
    that a report does not tell it. Any other picture is a group of its own.
    """
    file, _ = split_slice(name)
    if not _is_dicom(file):
        return file
    try:
        header = _dicom_header(root / file)
    except Exception:  # reading its pixels will tell why
        return file
    known = str(header.get("PatientID") or header.get("StudyInstanceUID") or "").strip()
    digest = blake2b(known.encode("utf-8", "replace"), digest_size=8).hexdigest()
    return f"patient {digest}" if known else file


def slice_notes(asked: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """What a user should know of the slices among the pictures `asked` for; `known` are those of
    which more is told elsewhere, or which were kept."""
    asked = {name for name in asked if is_medical(name)}
    if not asked:
        return ()
    notes = [f"{len(asked)} DICOM or NIfTI slices, each shown from its 1st to its 99th percentile"]
    if blank := len(asked - set(known)):
        notes.append(f"{blank} slices left out: blank, or without the defect that the mask shows")
    return tuple(notes)


def names(file: Path) -> list[str]:
    """The names of the pictures in a file: its own, or one a slice where it has several.

    A file that cannot be read keeps its own name: reading it tells why. Raises UserError where
    the library for it is not installed.
    """
    _library(file)
    try:
        *_, count = shape(file)
    except Exception:
        count = 1
    digits = max(3, len(str(count - 1)))
    return [f"{file.name}#{i:0{digits}}" for i in range(count)] if count > 1 else [file.name]


def shape(file: Path) -> tuple[int, int, int]:
    """Width, height and number of slices, from the header. Raises UserError for other shapes."""
    if _is_dicom(file):
        header = _dicom_header(file)
        if "Rows" not in header or "Columns" not in header:
            raise UserError("a DICOM file without a picture")
        found = int(header.Columns), int(header.Rows), int(header.get("NumberOfFrames") or 1)
    else:
        image = _nifti(file)
        sizes = image.shape
        while len(sizes) > 3 and sizes[-1] == 1:
            sizes = sizes[:-1]
        if len(sizes) not in (2, 3):
            raise UserError(f"has {len(sizes)} axes: save its volumes one by one, with three")
        found = (*sizes, 1)[:3]
        promised = np.prod(found, dtype=float) * image.get_data_dtype().itemsize
        if promised > 1100 * file.stat().st_size:  # deflate shrinks to a thousandth at best
            raise UserError("is cut short: its header promises more than the file can hold")
    if found[2] > MAX_SLICES:
        raise UserError(f"has {found[2]} slices: {MAX_SLICES} is the most")
    return found


def slices(
    file: Path, numbers: Sequence[int | None]
) -> Iterator[Num[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]]:
    """The slices with these numbers, one after the other: physical values, or 8-bit color.

    DICOM's rescaling and NIfTI's scaling are applied, and MONOCHROME1, where high means dark, is
    turned round. NIfTI slices are turned so that the second axis points up, as viewers show them.
    Only one slice is held at a time. None is the only slice of a file that has one.
    Raises UserError for a slice that there is not.
    """
    *_, count = shape(file)
    if None in numbers and count > 1:
        raise UserError(f"has {count} slices: name one, such as {file.name}#{count // 2:03d}")
    wanted = [number or 0 for number in numbers]
    if max(wanted) >= count:
        raise UserError(f"has no slice {max(wanted)}: it has {count}, counted from 0")
    return _dicom_slices(file, wanted) if _is_dicom(file) else _nifti_slices(file, wanted)


def window(
    values: Num[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"],
) -> UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]:
    """Physical values to gray, as `stretch` does; color, which has no unit, stays as it is.

    The unit of MR is arbitrary and CT's range far wider than what differs within a slice, so that
    each slice is judged by its own contrast: an overall change of brightness is not seen.
    """
    return values if values.ndim == 3 else percentile_stretch(values)


def percentile_stretch(values: Num[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h w *c"]:
    """The picture's own 1st percentile, over all channels, becomes 0 and the 99th 255.

    Where the two are equal the picture is black. Raises UserError for values that are not finite.
    """
    if not np.isfinite(values).all():
        raise UserError("holds values that are not numbers (NaN or infinite)")
    low, high = np.percentile(values, (1, 99))
    scaled = (values.astype(np.float64) - low) / (high - low) if high > low else 0 * values
    return np.round(255 * scaled.clip(0, 1)).astype(np.uint8)


def _dicom_slices(file, numbers):
    header = _dicom_header(file)
    kind = header.PhotometricInterpretation
    slope, intercept = header.get("RescaleSlope", 1), header.get("RescaleIntercept", 0)
    if kind == "PALETTE COLOR":
        raise UserError("DICOM with a palette is not read: save it as PNG")
    read = importlib.import_module("pydicom.pixels").iter_pixels
    with _BoundedReader(file.open("rb", buffering=0)) as stream:
        for pixels in read(stream, indices=numbers):
            if pixels.ndim == 3 and pixels.dtype != np.uint8:
                raise UserError("DICOM color with more than 8 bits is not read: save it as PNG")
            values = pixels if pixels.ndim == 3 else pixels * float(slope) + float(intercept)
            yield -values if kind == "MONOCHROME1" else values


def _nifti_slices(file, numbers):
    # Kept open, so that a compressed file is read through once.
    image = _nifti(file, keep_file_open=True)
    if image.get_data_dtype().fields or image.get_data_dtype().kind == "c":
        raise UserError("NIfTI of colors or complex numbers is not read: save it with one number")
    axes = len(image.shape)
    for number in numbers:
        yield np.rot90(image.dataobj[(slice(None), slice(None), number, *[0] * axes)[:axes]])


def _is_dicom(file):
    return str(file).lower().endswith(DICOM)


def _nifti(file, **options):
    """The image of a NIfTI file, of which nothing but the header is in memory."""
    nibabel = _library(file)
    with nibabel.openers.ImageOpener(file, "rb") as stream:
        begin = stream.read(544)
        # Not nibabel.load: what it makes of a file is the file's choice, XML among others.
        second = nibabel.Nifti2Image.header_class.may_contain_header(begin)
        kind, size = (nibabel.Nifti2Image, 540) if second else (nibabel.Nifti1Image, 348)
        header = kind.header_class(begin[:size], check=False)
        if any(begin[size : size + 1]):
            _check_extensions(stream, size + 4, header)
    return kind.from_filename(file, **options)


def _check_extensions(stream, start, header):
    """Nibabel reads what follows a header whole, each of as many bytes as it claims to have."""
    end = header["vox_offset"]
    if not start <= end <= MAX_HEADER:
        raise UserError(f"damaged: its header ends at byte {end:.0f}")
    order = "big" if header.endianness == ">" else "little"
    while (left := int(end) - start) >= 16:
        stream.seek(start)
        size = int.from_bytes(stream.read(4), order, signed=True)
        if not 8 <= size <= left:
            raise UserError(f"damaged: {size} bytes follow its header, in {left} bytes")
        start += size


class _BoundedReader(io.BufferedReader):
    """A file that takes no more memory than it has bytes, whatever length it is asked for."""

    def read(self, size=-1):
        rest = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(rest if size is None or size < 0 else min(size, rest))


def _dicom_header(file):
    pydicom = _library(file)
    with _BoundedReader(file.open("rb", buffering=0)) as stream:
        pydicom.filereader.read_preamble(stream, force=False)
        # As dcmread reads it, who inflates a deflated file whole.
        meta = pydicom.filereader.read_dataset(
            stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2
        )
        if meta.get("TransferSyntaxUID") == _DEFLATED:
            raise UserError("deflated DICOM is not read: its size is known too late")
        stream.seek(0)
        return pydicom.dcmread(stream, stop_before_pixels=True)


def _library(file: Path) -> ModuleType:
    name = "pydicom" if _is_dicom(file) else "nibabel"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{file.name} is read by {name}, which is not here: pip install 'bigan_jax[medical]'"
        ) from error
