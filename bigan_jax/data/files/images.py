"""Picture files to uint8 arrays of one size, whatever their format and mode."""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import groupby
from pathlib import Path, PurePath
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Bool, Num, Shaped, UInt8
from PIL import Image, ImageOps
from tqdm import tqdm

from bigan_jax.data.files import medical
from bigan_jax.data.files.unreadable import UnreadableFile, check_file, is_inside, try_read
from bigan_jax.errors import UserError

SUFFIXES = medical.SUFFIXES | {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".avif"),
}
_NOT_READ = {".heic", ".heif", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef"}
# What the content may be, whatever the suffix. Not all that Pillow knows: EPS is a program.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "JPEG2000", "PPM", "TGA", "AVIF")
MAX_PIXELS = 100_000_000  # a larger picture is a mistake or a trap, and would fill the memory
MIN_SIDE = 4  # a smaller one shows nothing
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF
MANY = 200  # files from which on a progress bar is worth its line

# A file (or slice, by its name); in memory, one of a format of Pillow's; a slice's values.
Source = Path | BinaryIO | Num[np.ndarray, "h w ..."]


class ImageFormat(NamedTuple):
    """What a picture is made before a network sees it."""

    size: int  # pixels a side
    channels: int  # 1: gray, 3: RGB
    window: bool = False  # stretched from its own 1st to its 99th percentile (`medical.stretch`)


def list_images(folder: Path) -> list[str]:
    """Every picture below `folder`, as sorted relative paths with forward slashes.

    A file of several slices is listed slice by slice (`bigan_jax.data.medical`). Hidden files and
    folders are passed over. Folders that are links are not entered; one that leads out of `folder`
    is listed itself, so that reading it tells what is wrong.
    """
    found = []
    for parent, folders, files in os.walk(folder, followlinks=False):
        folders[:] = [f for f in folders if not f.startswith(".") and f != "__MACOSX"]
        below = Path(parent).relative_to(folder)
        for f in folders:
            if os.path.islink(Path(parent, f)) and not is_inside(Path(parent, f), folder):
                found.append((below / f).as_posix())
        for f in files:
            if not f.startswith(".") and f.lower().endswith(tuple(SUFFIXES)):
                found += [(below / name).as_posix() for name in names_in(Path(parent, f))]
    return sorted(found)


def unread_kinds(folder: Path) -> Counter[str]:
    """How many files below `folder` are of each kind of picture that is not read, by suffix."""
    suffixes = (PurePath(f).suffix.lower() for *_, files in os.walk(folder) for f in files)
    return Counter(suffix for suffix in suffixes if suffix in _NOT_READ)


def names_in(file: Path) -> list[str]:
    """The names of the pictures in one file: `scan.nii.gz#000` and on for one of several slices."""
    return medical.names(file) if medical.is_medical(file.name) else [file.name]


def read_image(
    source: Source, size: int, channels: int, window: bool = False
) -> UInt8[np.ndarray, "size size channels"]:
    """Decode one picture to a `Form`: EXIF orientation applied, gray or RGB, 0 to 255.

    Gray is the luma 0.299 R + 0.587 G + 0.114 B; 16-bit gray is divided by 257; what is
    transparent shows white. DICOM and NIfTI slices are windowed to their own 1st to 99th
    percentile (`medical.window`), and with `window` so is every picture, before it is made 8-bit.
    The picture is resized with an antialiasing bilinear filter to a square: one that is not square
    is stretched, not cropped.

    Raises UserError for more than MAX_PIXELS or less than MIN_SIDE, before anything is decoded,
    for several pictures in one file and for values without a scale; a broken file raises what its
    decoder does.
    """
    with _open(source) as picture:
        # A large JPEG is decoded to a half, a quarter or an eighth: in a fifth of the time at 12
        # megapixels, and within 2 of 255, as long as four times the size remain.
        picture.draft(None, (4 * size, 4 * size))
        return to_format(picture, size, channels, window)


def to_format(
    picture: Image.Image, size: int, channels: int, window: bool = False
) -> UInt8[np.ndarray, "size size channels"]:
    """`read_image` of a picture that is open already. Raises UserError as that does."""
    _check_size(*picture.size)
    picture = _as_shown(picture, window).convert("L" if channels == 1 else "RGB")
    picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(size, size, channels)


def read_as_shown(source: Source, window: bool = False) -> Image.Image:
    """Decode one picture at its own size, gray (mode L) or RGB, as `read_image` sees it."""
    with _open(source) as picture:
        return _as_shown(picture, window)


def _as_shown(picture, window):
    picture = ImageOps.exif_transpose(picture)
    if not window:
        return _eight_bit(picture)
    # Of few levels among 65,536 nothing would be left in 8 bits, and a window needs no scale.
    deep = picture.mode.startswith(("I", "F"))
    return Image.fromarray(
        medical.percentile_stretch(np.asarray(picture if deep else _eight_bit(picture)))
    )


def read_mask(
    source: Source, size: int, picture: tuple[int, int] | None = None
) -> Bool[np.ndarray, "size size"]:
    """Decode one mask: True where at least half of a cell of the `size` x `size` grid is defect.

    Any value but zero is defect, in any channel but alpha. A defect too small for that is kept
    where it covers most, so that only an empty mask gives an empty one.

    picture: width and height of the picture it belongs to (`picture_size`). Raises UserError for
    a mask of another shape: it may be a scaled one, but not a cropped or turned one.
    """
    if (values := _as_slice(source)) is None:
        values = _mask_values(source)
    height, width = values.shape[:2]
    # The same shape, but for what rounding does to a scaled side.
    if picture and abs(width * picture[1] - height * picture[0]) > max(*picture, width, height):
        raise UserError(f"a mask of {width}x{height} for a picture of {picture[0]}x{picture[1]}")
    defect = values != 0 if values.ndim == 2 else values.any(axis=-1)
    cover = Image.fromarray(defect.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
    cover = np.asarray(cover)
    return (cover > 0) & (cover >= min(0.5, cover.max()) - 1e-6)


def image_size(source: Path | BinaryIO) -> tuple[int, int]:
    """Width and height as the picture is shown, from its header."""
    if isinstance(source, Path) and medical.is_medical(source.name):
        return medical.shape(Path(medical.split_slice(str(source))[0]))[:2]
    with _open(source) as picture:
        # Pillow turns TIFF by itself.
        turned = picture.format != "TIFF" and picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return picture.size[::-1] if turned else picture.size


def encoded(source: Path | Num[np.ndarray, "h w ..."], mask: bool = False) -> bytes:
    """A picture or mask as `read_image` and `read_mask` take it from memory: the bytes of its file,
    or a slice as PNG, windowed or, if it is a mask, with 255 wherever it is not zero."""
    if (values := _as_slice(source)) is None:
        return source.read_bytes()
    shown = np.uint8(255) * (values != 0) if mask else medical.window(values)
    Image.fromarray(shown).save(content := io.BytesIO(), "PNG")
    return content.getvalue()


def _as_slice(source):
    if isinstance(source, Path) and medical.is_medical(source.name):
        file, number = medical.split_slice(str(source))
        return next(_slices(Path(file), [number]))
    return source if isinstance(source, np.ndarray) else None


def _slices(file, numbers):
    width, height, _ = medical.shape(file)
    _check_size(width, height)
    yield from medical.slices(file, numbers)


def _mask_values(source):
    with _open(source) as mask:
        jpeg = mask.format == "JPEG"
        mask = ImageOps.exif_transpose(mask)
        if mask.mode not in ("1", "L", "F") and not mask.mode.startswith("I"):
            mask = mask.convert("RGB")
        values = np.asarray(mask)
    return values > 127 if jpeg else values  # JPEG rings around edges: its zeros are not zero


@contextmanager
def _open(source: Source) -> Iterator[Image.Image]:
    if (values := _as_slice(source)) is not None:
        yield Image.fromarray(medical.window(values))
        return
    # Not by its path: Pillow maps plain TIFF files into memory, and then turns them wrongly.
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        try:
            picture = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise UserError(f"more than {MAX_PIXELS // 10**6} megapixels: scale it down") from error
        _check_size(*picture.size)  # known from the header, before anything is decoded
        if picture.format == "TIFF" and (tile := picture.tag_v2.get(_TILE_WIDTH)):
            _check_size(tile, picture.tag_v2.get(_TILE_LENGTH, 0))  # decoded whole
        if getattr(picture, "is_animated", False) and picture.format != "MPO":
            raise UserError("holds several pictures (pages or frames): save each as its own file")
        yield picture


def _check_size(width, height):
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{width}x{height} is more than {MAX_PIXELS // 10**6} megapixels: scale it down first"
        )
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{width}x{height} is too small to show anything")


# A table: arithmetic would take eight bytes a pixel several times over.
_SIXTEEN_TO_EIGHT_BITS = np.round(np.arange(2**16) / 257).astype(np.uint8)


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Mode L or RGB: 16-bit and float gray rescaled, transparency laid over white."""
    if picture.mode.startswith("I"):  # I;16 and its byte orders, or I: 16 bits in 32
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise UserError("values outside 0 to 65535: save it with 8 or 16 bits")
        return Image.fromarray(_SIXTEEN_TO_EIGHT_BITS[values])
    if picture.mode == "F":
        values = np.asarray(picture)
        if not np.isfinite(values).all():
            raise UserError("holds values that are not numbers (NaN or infinite)")
        if not (values.min() >= 0 and values.max() <= 1):
            raise UserError("a float picture with values outside [0, 1]: save it with 8 or 16 bits")
        return Image.fromarray(np.round(values * 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def map_in_threads(work: Callable, items: Sequence, what: str) -> list:
    """`work(item)` for all `items`, in order, with a progress bar where there are many."""
    quiet = len(items) < MANY or None  # None: quiet where stderr is no terminal
    # Decoders release the lock, but not all the time: on two cores four threads were fastest.
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        return list(tqdm(pool.map(work, items), what, len(items), disable=quiet, leave=False))


def read_all(
    read: Callable[[Source, str], Shaped[np.ndarray, "..."]],
    root: Path,
    paths: Sequence[str],
    what: str,
) -> tuple[list[Shaped[np.ndarray, "..."] | None], list[UnreadableFile]]:
    """`read(source, path)` of all `paths` below `root`, by several threads, with a progress bar.

    Returns the results in order, None for what cannot be read, and these with their reasons. So is
    a file that a link or a path puts outside `root`. Slices of one file that follow one another
    are read in one go.
    """

    def read_file(names: list[str]) -> list:
        file = medical.split_slice(names[0])[0]
        sources = _sources(root, file, names)
        return [try_read(name, lambda name=name: read(next(sources), name)) for name in names]

    files = [list(names) for _, names in groupby(paths, lambda p: medical.split_slice(p)[0])]
    results = [result for part in map_in_threads(read_file, files, what) for result in part]
    broken = [result for result in results if isinstance(result, UnreadableFile)]
    return [None if isinstance(result, UnreadableFile) else result for result in results], broken


def _sources(root, file, names):
    check_file(root / file, root)
    if medical.is_medical(file):
        yield from _slices(root / file, [medical.split_slice(name)[1] for name in names])
    else:
        yield from [root / file] * len(names)
