"""Reads slices of NIfTI files with nibabel (the extra `medical`), in nibabel's closest canonical orientation (RAS)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from bigan_jax.errors import UserError

MAX_HEADER = 2**26  # bytes before the values of a file, including header extensions
_BLOCK_BYTES = 2**27  # of slices that are read in one pass


class Grid(NamedTuple):
    """The axes of a volume as stored, and as shown: the patient's right, anterior and superior (RAS)."""

    shape: tuple[int, ...]  # as stored, of three axes
    orientation: Int[np.ndarray, "3 2"]  # for each stored axis: the axis shown, and 1 or -1 if it is flipped
    affine: Float[np.ndarray, "4 4"]  # from voxels as stored to millimeters

    @property
    def shown(self) -> tuple[int, ...]:
        """The shape in RAS."""
        return tuple(self.shape[i] for i in np.argsort(self.orientation[:, 0]))

    @property
    def slice_axis(self) -> int:
        """The axis, as shown, that counts the slices: the last of length 1 (a single slice of any plane), else S."""
        return max((axis for axis, n in enumerate(self.shown) if n == 1), default=2)

    @property
    def plane(self) -> tuple[int, int]:
        """The axes, as shown, that point to the right and up in a slice."""
        x, y = (axis for axis in range(3) if axis != self.slice_axis)
        return x, y

    def __str__(self) -> str:
        rows = ", ".join(f"({', '.join(f'{value:.4g}' for value in row)})" for row in self.affine[:3])
        return f"{'x'.join(map(str, self.shape))} with the affine {rows}"


def open_nifti(nibabel: ModuleType, file: Path, **options: Any) -> Any:
    """Open a NIfTI file; only its header is in memory."""
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
    """Checks the sizes of header extensions, because nibabel reads each with the size it claims."""
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


def read_grid(nibabel: ModuleType, file: Path) -> Grid:
    """Reads the grid of a volume. Raises UserError for other shapes, or more data than the file has."""
    return _grid(nibabel, open_nifti(nibabel, file), file)


def _grid(nibabel, image, file) -> Grid:
    axes = image.shape
    while len(axes) > 3 and axes[-1] == 1:
        axes = axes[:-1]
    if len(axes) not in (2, 3):
        raise UserError(f"has {len(axes)} axes: save each volume as a file with three")
    n_bytes = np.prod(axes, dtype=float) * image.get_data_dtype().itemsize
    if n_bytes > 1100 * file.stat().st_size:  # deflate compresses to a thousandth at best
        raise UserError("is truncated: its header claims more data than the file can hold")
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all():
        raise UserError("its affine has values that are not finite: its orientation is unknown")
    orientation = nibabel.orientations.io_orientation(affine)
    # An axis without length, such as the third of a flat image, takes the direction that is left.
    missing = iter({0, 1, 2} - set(orientation[:, 0]))
    rows = [(next(missing), 1) if np.isnan(axis) else (axis, flip) for axis, flip in orientation]
    return Grid((*axes, 1)[:3], np.array(rows, int), affine)


def require_same_grid(nibabel: ModuleType, volume: Path, mask: Path) -> None:
    """Raises a UserError unless a mask has the voxels of its volume, in any order of storage."""
    grids = [read_grid(nibabel, file) for file in (volume, mask)]
    corners = [_corners(grid) for grid in grids]
    voxel = np.linalg.norm(grids[0].affine[:3, :3], axis=0)
    if grids[0].shown != grids[1].shown or np.abs(corners[0] - corners[1]).max() > 0.1 * voxel.min():
        raise UserError(
            f"it is {grids[1]}, and its volume {volume.name} is {grids[0]}: save the mask on the grid of the volume, "
            "with the volume's affine"
        )


def _corners(grid):
    """The positions of the first and the last voxel along each axis as shown, in millimeters."""
    signs, axes = grid.orientation[:, 1], grid.orientation[:, 0]
    last = np.array(grid.shape) - 1
    first = np.where(signs < 0, last, 0)
    ends = [first + (last * signs)[i] * np.eye(3)[i] for i in np.argsort(axes)]
    return np.array([grid.affine[:3, :3] @ voxel + grid.affine[:3, 3] for voxel in (first, *ends)])


def read_slices(nibabel: ModuleType, file: Path, numbers: Sequence[int]) -> Iterator[Num[np.ndarray, "h w"]]:
    """Reads slices one by one, scaled, with the axes of `Grid.plane` to the right and up."""
    # The file is kept open, so that a compressed file is decompressed once.
    image = open_nifti(nibabel, file, keep_file_open=True)
    if image.get_data_dtype().fields or image.get_data_dtype().kind == "c":
        raise UserError("NIfTI with color or complex values is not supported: save it as gray")
    grid = _grid(nibabel, image, file)
    axis = grid.orientation[:, 0].tolist().index(grid.slice_axis)
    n, is_flipped = grid.shape[axis], grid.orientation[axis, 1] < 0
    stored = [n - 1 - number if is_flipped else number for number in numbers]
    # Compressed files are read forwards only. Slices in the order of storage are read one by one; others in blocks.
    in_order = axis == 2 and stored == sorted(stored)
    length = 1 if in_order else max(1, _BLOCK_BYTES * n // (8 * int(np.prod(grid.shape))))
    for start in range(0, len(stored), length):
        for plane in _read_planes(image, grid.shape, axis, stored[start : start + length]):
            yield _as_shown(plane, np.delete(grid.orientation, axis, 0))


def _read_planes(image, shape, axis, indices):
    """Returns the planes at the `indices` of an axis as stored, read in one pass."""
    rest = (0,) * max(0, len(image.shape) - 3)

    def read(z):
        return image.dataobj[(slice(None), slice(None), z, *rest)[: len(image.shape)]]

    if axis == 2:
        planes = {z: read(z) for z in sorted(set(indices))}
        return [planes[z] for z in indices]
    columns = [np.take(read(z), indices, axis) for z in range(shape[2])]
    return np.moveaxis(np.stack(columns, -1), axis, 0)


def _as_shown(plane, orientation):
    (x, x_sign), (y, y_sign) = orientation
    plane = plane[::x_sign, ::y_sign]
    return np.rot90(plane if x < y else plane.T)
