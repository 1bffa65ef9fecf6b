"""Picture files to uint8 arrays of one size, whatever their mode."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image, ImageOps
from tqdm import tqdm

from bigan_jax.errors import UserError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"}
    | {".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".avif"}
)
MAX_PIXELS = 100_000_000  # a larger picture is a mistake or a trap, and would fill the memory
MAX_LISTED = 20
MANY = 200  # files from which on a progress bar is worth its line


def list_pictures(folder: Path) -> list[str]:
    """Every picture below `folder`, as sorted relative paths with forward slashes.

    Hidden files and folders are passed over, and folders that are links are not entered.
    """
    found = []
    for parent, folders, files in os.walk(folder, followlinks=False):
        folders[:] = [f for f in folders if not f.startswith(".") and f != "__MACOSX"]
        found += [
            (Path(parent) / f).relative_to(folder).as_posix()
            for f in files
            if not f.startswith(".") and Path(f).suffix.lower() in SUFFIXES
        ]
    return sorted(found)


def _open(path: Path) -> Image.Image:
    picture = Image.open(path)
    width, height = picture.size
    if width * height > MAX_PIXELS:  # known from the header, before anything is decoded
        picture.close()
        raise UserError(
            f"{width}x{height} is more than {MAX_PIXELS // 10**6} megapixels: scale it down first"
        )
    return picture


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Mode L or RGB: 16-bit and float grey rescaled, transparency laid over white."""
    if picture.mode.startswith("I"):  # I;16 and its byte orders, or I: 16 bits in 32
        values = np.asarray(picture).astype(np.float64).clip(0, 65535) / 257
        return Image.fromarray(np.round(values).astype(np.uint8))
    if picture.mode == "F":
        values = np.asarray(picture)
        if not (values.min() >= 0 and values.max() <= 1):
            raise UserError("a float picture with values outside [0, 1]: save it with 8 or 16 bits")
        return Image.fromarray(np.round(values * 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def read_image(path: Path, size: int, channels: int) -> UInt8[np.ndarray, "size size channels"]:
    """Decode one picture: EXIF orientation applied, grey (channels 1) or RGB (3), 0 to 255.

    Grey is the luma 0.299 R + 0.587 G + 0.114 B; 16-bit grey is divided by 257. The picture is
    resized with an antialiasing Lanczos filter to a square: one that is not square is stretched,
    not cropped. Raises UserError above MAX_PIXELS, and Pillow's errors for a broken file.
    """
    with _open(path) as picture:
        picture = _eight_bit(ImageOps.exif_transpose(picture))
        picture = picture.convert("L" if channels == 1 else "RGB")
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture).reshape(size, size, channels)


def read_mask(path: Path, size: int) -> Bool[np.ndarray, "size size"]:
    """Decode one mask: True where at least half of a cell of the `size` x `size` grid is defect.

    Any value but zero is defect, in any channel but alpha. A defect too small for that is kept
    where it covers most, so that only an empty mask gives an empty one.
    """
    with _open(path) as picture:
        # JPEG rings around edges, so that its zeros are not zero.
        level = 127 if picture.format == "JPEG" else 0
        picture = ImageOps.exif_transpose(picture)
        if picture.mode not in ("1", "L", "F") and not picture.mode.startswith("I"):
            picture = picture.convert("RGB")
        values = np.asarray(picture)
    defect = values > level if values.ndim == 2 else (values > level).any(axis=-1)
    cover = Image.fromarray(defect.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
    cover = np.asarray(cover)
    return (cover > 0) & (cover >= min(0.5, cover.max()) - 1e-6)


def in_threads(work: Callable, items: Sequence, what: str) -> list:
    """`work(item)` for all `items`, in order, with a progress bar where there are many."""
    quiet = len(items) < MANY or None  # None: quiet where stderr is no terminal
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return list(tqdm(pool.map(work, items), what, len(items), disable=quiet, leave=False))


def read_all(
    read: Callable[[Path], Shaped[np.ndarray, "..."]], root: Path, paths: Sequence[str], what: str
) -> list[Shaped[np.ndarray, "..."]]:
    """`read(root / path)` for all `paths`, in order, by several threads, with a progress bar.

    Raises one UserError that names every file that could not be read, with its reason.
    """

    def attempt(path: str):
        try:
            return read(root / path), None
        except Exception as error:  # decoders of broken files raise nearly anything
            return None, f"{path}: {error or type(error).__name__}"

    done = in_threads(attempt, paths, what)
    broken = [reason for _, reason in done if reason]
    if broken:
        listed = "\n".join(f"  {reason}" for reason in broken[:MAX_LISTED])
        more = f"\n  and {len(broken) - MAX_LISTED} more" if len(broken) > MAX_LISTED else ""
        raise UserError(
            f"{len(broken)} of {len(paths)} {what} in {root} cannot be read; mend or remove them:\n"
            f"{listed}{more}"
        )
    return [result for result, _ in done]


def read_images(
    root: Path, paths: Sequence[str], size: int, channels: int
) -> UInt8[np.ndarray, "n size size channels"]:
    """Decode the pictures `root / path` (see `read_image`); errors as in `read_all`."""
    images = read_all(lambda path: read_image(path, size, channels), root, paths, "pictures")
    return np.stack(images) if images else np.zeros((0, size, size, channels), np.uint8)


def read_masks(root: Path, paths: Sequence[str], size: int) -> Bool[np.ndarray, "n size size"]:
    """Decode the masks `root / path` (see `read_mask`); errors as in `read_all`."""
    masks = read_all(lambda path: read_mask(path, size), root, paths, "masks")
    return np.stack(masks) if masks else np.zeros((0, size, size), bool)
