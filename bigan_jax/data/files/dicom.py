"""Reads frames of DICOM files with pydicom (the extra `medical`), in the orientation in which viewers show them."""

import importlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num, UInt8

from bigan_jax.errors import UserError

_DEFLATED = "1.2.840.10008.1.2.1.99"
_REQUIRED = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated")
_LOWEST_HOUNSFIELD = -1024  # of CT; air is -1000, so what is below lies outside the scanner's circle


class Reorientation(NamedTuple):
    """What turns a frame as stored into the frame as shown: first the transposition, then the flips."""

    transpose: bool = False
    flip_rows: bool = False  # up and down
    flip_columns: bool = False  # left and right

    def apply(self, pixels: Num[np.ndarray, "h w *c"]) -> Num[np.ndarray, "h2 w2 *c"]:
        """Returns the frame as shown."""
        pixels = pixels.swapaxes(0, 1) if self.transpose else pixels
        return pixels[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


class _BoundedReader(io.BufferedReader):
    """A file of which at most the existing bytes are read, whatever length is requested."""

    def read(self, size=-1):
        remaining = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(remaining if size is None or size < 0 else min(size, remaining))


def read_header(pydicom: ModuleType, file: Path) -> Any:
    """Reads a file up to its pixels."""
    with _BoundedReader(file.open("rb", buffering=0)) as stream:
        pydicom.filereader.read_preamble(stream, force=False)
        # Read like dcmread does, which decompresses a deflated file at once.
        meta = pydicom.filereader.read_dataset(stream, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        if meta.get("TransferSyntaxUID") == _DEFLATED:
            raise UserError("deflated DICOM is not supported, as its size is unknown: save it uncompressed")
        stream.seek(0)
        return pydicom.dcmread(stream, stop_before_pixels=True)


def frames_shape(header: Any) -> tuple[int, int, int]:
    """Returns width and height of the first frame as shown, and the number of frames."""
    if "Rows" not in header or "Columns" not in header:
        raise UserError("a DICOM file without an image")
    if empty := [name for name in _REQUIRED if header.get(name) in (None, "")]:
        raise UserError(f"its attribute {empty[0]} is missing or empty: export the file again")
    width, height = int(header.Columns), int(header.Rows)
    if reorientation(header, 0).transpose:
        width, height = height, width
    return width, height, int(header.get("NumberOfFrames") or 1)


def reorientation(header: Any, frame: int) -> Reorientation:
    """Returns what shows a frame in the standard view of the plane that is closest to its own.

    Axial frames have the patient's left on the right and posterior at the bottom, coronal ones left and inferior,
    sagittal ones posterior and inferior (DICOM PS3.3, C.7.6.2.1.1: x grows to the left, y to posterior, z to superior).
    A frame without ImageOrientationPatient is shown as stored.
    """
    cosines = _orientation(header, frame)
    if cosines is None:
        return Reorientation()
    along_row, along_column = (int(np.abs(direction).argmax()) for direction in cosines)
    if along_row == along_column:
        return Reorientation()  # oblique by 45 degrees in its own plane
    transpose = along_row > along_column
    x, y = cosines[::-1] if transpose else cosines
    horizontal, vertical = sorted((along_row, along_column))
    downwards = -y[vertical] if vertical == 2 else y[vertical]  # superior is shown at the top
    return Reorientation(transpose, bool(downwards < 0), bool(x[horizontal] < 0))


def _orientation(header, frame):
    """The directions in which a row's columns and a column's rows follow each other; None if unknown."""
    value = _attribute(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient")
    numbers = _numbers("ImageOrientationPatient", value)
    return np.array(numbers).reshape(2, 3) if len(numbers) == 6 and any(numbers) else None


def _attribute(header, frame, sequence, name):
    """The value of an attribute: that of the frame, of all frames, or of the file (enhanced or not)."""
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*frames[frame : frame + 1], *(header.get("SharedFunctionalGroupsSequence") or [])[:1]]
    holders = [item for group in groups for item in (group.get(sequence) or [])[:1]]
    values = (holder.get(name) for holder in (*holders, header))
    return next((value for value in values if value not in (None, "")), None)


def _numbers(name, value) -> list[float]:
    """The values of an attribute; none if it is missing or empty."""
    if value is None or (isinstance(value, (str, bytes)) and not value.strip()):
        return []
    values = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
    try:
        numbers = [float(number) for number in values]
    except (TypeError, ValueError):
        numbers = [np.nan]
    if not np.isfinite(numbers).all():
        raise UserError(f"its attribute {name} must be a number (got {str(value)[:40]!r})")
    return numbers


def _number(name, value) -> float | None:
    """The value of an attribute; None if it is missing or empty."""
    numbers = _numbers(name, value)
    if len(numbers) > 1:
        raise UserError(f"its attribute {name} must be one number (got {str(value)[:40]})")
    return numbers[0] if numbers else None


def read_frames(
    pydicom: ModuleType, file: Path, numbers: Sequence[int]
) -> Iterator[Num[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]]:
    """Read frames one by one as shown, in physical values; padding is masked."""
    header = read_header(pydicom, file)
    interpretation = header.PhotometricInterpretation
    if interpretation == "PALETTE COLOR":
        raise UserError("DICOM with a palette is not supported: save it as PNG")
    iter_pixels = importlib.import_module("pydicom.pixels").iter_pixels
    with _BoundedReader(file.open("rb", buffering=0)) as stream:
        for number, pixels in zip(numbers, iter_pixels(stream, indices=numbers), strict=True):
            if pixels.ndim == 3 and pixels.dtype != np.uint8:
                raise UserError("DICOM color with more than 8 bits is not supported: save it as PNG")
            if pixels.ndim == 2:
                pixels = _physical_values(pydicom, header, number, pixels)
                pixels = -pixels if interpretation == "MONOCHROME1" else pixels
            yield reorientation(header, number).apply(pixels)


def _physical_values(pydicom, header, frame, pixels):
    """Applies the modality LUT or the rescaling, and masks padding."""
    is_padding = _is_padding(header, pixels)
    if header.get("ModalityLUTSequence"):
        values = pydicom.pixels.apply_modality_lut(pixels, header).astype(np.float32)
    else:
        slope, intercept = (
            _number(name, _attribute(header, frame, "PixelValueTransformationSequence", name))
            for name in ("RescaleSlope", "RescaleIntercept")
        )
        if slope == 0:
            raise UserError("its attribute RescaleSlope is 0: export the file again")
        values = pixels.astype(np.float32)
        values *= 1 if slope is None else slope
        values += intercept or 0
    if header.get("Modality") == "CT":
        is_padding |= values < _LOWEST_HOUNSFIELD
    return np.ma.MaskedArray(values, is_padding) if is_padding.any() else values


def _is_padding(header, pixels):
    """Whether stored values are PixelPaddingValue, or between it and PixelPaddingRangeLimit."""
    value, limit = (_number(n, header.get(n)) for n in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if value is None or pixels.dtype.kind not in "iu":
        return np.zeros(pixels.shape, bool)
    # Some files store a negative value as an unsigned number.
    limits = np.array([value, value if limit is None else limit], np.int64).astype(pixels.dtype)
    low, high = limits.min(), limits.max()
    return (pixels >= low) & (pixels <= high)


def require_same_plane(pydicom: ModuleType, image: Path, mask: Path, frame: int) -> None:
    """Raises a UserError if a mask's orientation or position differ from those of its image, where both are known."""
    headers = [read_header(pydicom, file) for file in (image, mask)]
    orientations = [_orientation(header, frame) for header in headers]
    positions = [
        _numbers("ImagePositionPatient", _attribute(h, frame, "PlanePositionSequence", "ImagePositionPatient"))
        for h in headers
    ]
    for what, (expected, found), tolerance in (
        ("ImageOrientationPatient", orientations, 0.01),
        ("ImagePositionPatient", positions, 0.1),
    ):
        if expected is None or found is None or len(expected) != len(found):
            continue
        if not np.allclose(expected, found, rtol=0, atol=tolerance):
            raise UserError(
                f"its {what} is {_listed(found)}, and that of its image {image.name} is {_listed(expected)}: save the "
                "mask on the grid of the image"
            )
    if orientations[1] is None and reorientation(headers[0], frame) != Reorientation():
        raise no_orientation_error(image)


def no_orientation_error(image: Path) -> UserError:
    """Returns the error for a mask without an orientation whose image is not stored as it is shown."""
    return UserError(
        f"it has no orientation, and its image {image.name} is not stored as it is shown: save the mask in the format "
        "of the image, with the image's orientation"
    )


def _listed(values):
    return "(" + ", ".join(f"{value:.4g}" for value in np.ravel(values)) + ")"
