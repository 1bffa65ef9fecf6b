"""Reads slices of DICOM and NIfTI files with pydicom and nibabel (the extra `medical`).

Every slice is an image: `scan.nii.gz#037` is slice 37, counted from 0: in NIfTI from the feet to the head, however the
volume is stored; in DICOM the frame.
"""

import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from types import ModuleType

import numpy as np
from jaxtyping import Num, UInt8

from bigan_jax.data.files import dicom, nifti
from bigan_jax.data.files.pixel_values import countable, percentiles, require_finite_values, row_strips, stretch
from bigan_jax.errors import UserError

DICOM = (".dcm", ".dicom")
NIFTI = (".nii", ".nii.gz")
SUFFIXES = frozenset(DICOM + NIFTI)
MAX_SLICES = 10_000  # a header that claims more is corrupt or malicious

Slice = Num[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]  # physical values (padding is masked), or color

_SLICE = re.compile(rf"(.*(?:{'|'.join(map(re.escape, SUFFIXES))}))#(\d+)", re.I | re.S)


def is_medical(name: str) -> bool:
    """Whether a file, or the file of a slice, is DICOM or NIfTI according to its name."""
    return split_slice(name)[0].lower().endswith(tuple(SUFFIXES))


def is_dicom(name: str | Path) -> bool:
    """Whether a file, or the file of a slice, is DICOM according to its name."""
    return split_slice(str(name))[0].lower().endswith(DICOM)


def split_slice(name: str) -> tuple[str, int | None]:
    """Returns ("a/scan.nii.gz", 37) for "a/scan.nii.gz#037", and (name, None) for other names."""
    match = _SLICE.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, None)


def stem(name: str) -> tuple[str, int | None]:
    """Returns a name without its suffix, and its slice: the same for an image and its mask."""
    file, number = split_slice(name)
    file = file[:-3] if file.lower().endswith(".nii.gz") else file
    return PurePosixPath(file).with_suffix("").as_posix(), number


def image_group(root: Path, name: str) -> str:
    """Returns the group of the image `root / name`: its volume, or for DICOM its patient.

    A patient (or the study, if there is no patient ID) is represented by a hash, so that reports do not disclose it.
    """
    file, _ = split_slice(name)
    if not is_dicom(file):
        return file
    try:
        header = dicom.read_header(_import_library(root / file), root / file)
    except Exception:  # reading the pixels will report the reason
        return file
    patient = str(header.get("PatientID") or header.get("StudyInstanceUID") or "").strip()
    digest = blake2b(patient.encode("utf-8", "replace"), digest_size=8).hexdigest()
    return f"patient {digest}" if patient else file


def slice_notes(requested: Iterable[str], accounted_for: Iterable[str]) -> tuple[str, ...]:
    """Returns notes about the slices among `requested` images; those not `accounted_for` count as skipped."""
    slices = {name for name in requested if is_medical(name)}
    counts = {
        "DICOM or NIfTI slices, each displayed from its 1st to 99th percentile": len(slices),
        "slices skipped: blank, or without the defect in their volume's mask": len(slices - set(accounted_for)),
    }
    return tuple(f"{count} {what}" for what, count in counts.items() if count)


def slice_names(file: Path) -> list[str]:
    """Lists the images in a file: its own name, or one name per slice if there are several.

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
    """Returns width, height and number of slices. Raises UserError for other shapes, or more data than the file has."""
    library = _import_library(file)
    if is_dicom(file):
        shape = dicom.frames_shape(dicom.read_header(library, file))
    else:
        grid = nifti.read_grid(library, file)
        x, y = grid.plane
        shape = grid.shown[x], grid.shown[y], grid.shown[grid.slice_axis]
    if shape[2] > MAX_SLICES:
        raise UserError(f"has {shape[2]} slices: at most {MAX_SLICES} are supported")
    return shape


def read_slices(file: Path, numbers: Sequence[int | None]) -> Iterator[Slice]:
    """Reads slices one by one; None is the only slice of a file.

    DICOM lookup tables and rescaling and NIfTI scaling are applied, and MONOCHROME1, in which high values are dark, is
    negated. All slices are shown in one orientation, however they are stored: `nifti.read_slices` and
    `dicom.reorientation`. Raises UserError if a slice does not exist.
    """
    *_, n_slices = volume_shape(file)
    if None in numbers and n_slices > 1:
        raise UserError(f"has {n_slices} slices: name one of them, such as {file.name}#{n_slices // 2:03d}")
    indices = [number or 0 for number in numbers]
    if max(indices) >= n_slices:
        raise UserError(f"has no slice {max(indices)}: it has {n_slices}, counted from 0")
    read = dicom.read_frames if is_dicom(file) else nifti.read_slices
    return read(_import_library(file), file, indices)


def require_same_space(image: Path, mask: Path) -> None:
    """Raises a UserError that names both unless an image (or slice) and its mask show the same part of the patient."""
    (image_file, number), (mask_file, _) = (split_slice(str(path)) for path in (image, mask))
    if not is_medical(image_file):
        return
    image, mask = Path(image_file), Path(mask_file)
    library = _import_library(image)
    if is_dicom(image) and is_dicom(mask):
        dicom.require_same_plane(library, image, mask, number or 0)
    elif is_medical(mask_file) and not is_dicom(image) and not is_dicom(mask):
        nifti.require_same_grid(library, image, mask)
    elif is_dicom(image) and dicom.reorientation(dicom.read_header(library, image), number or 0) != (False,) * 3:
        raise dicom.no_orientation_error(image)


def slice_to_uint8(values: Slice) -> UInt8[np.ndarray, "h w *c"]:
    """Converts physical values to gray by `percentile_stretch`; color is returned unchanged."""
    # MR intensities have no unit, and the range of CT is far wider than the contrast within a slice.
    return values if values.ndim == 3 else percentile_stretch(values)


def percentile_stretch(values: Num[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h w *c"]:
    """Map the 1st percentile of an image, over all channels, to 0 and the 99th to 255; equal ones both become 0.

    Masked values are left out of the percentiles and become 0. Raises UserError for values that are not finite.
    """

    def strips() -> Iterator[np.ndarray]:
        for strip in row_strips(values):
            known = strip.compressed() if isinstance(strip, np.ma.MaskedArray) else strip
            require_finite_values(known)
            yield countable(known)

    low, high = percentiles(strips)
    result = np.empty(values.shape, np.uint8)
    for strip, out in zip(row_strips(values), row_strips(result), strict=True):
        out[:] = np.ma.filled(stretch(countable(strip), low, high), 0)
    return result


def _import_library(file: Path) -> ModuleType:
    name = "pydicom" if is_dicom(file) else "nibabel"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = f"{file.name} requires {name}, which is not installed"
        raise UserError(f"{missing}: pip install 'bigan_jax[medical]'") from error
