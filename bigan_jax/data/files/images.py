"""Decodes image files of any format and mode to uint8 arrays of one size."""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Bool, Num, UInt8
from PIL import Image
from tqdm import tqdm

from bigan_jax.data.files import decoding_memory, jpeg2000, medical
from bigan_jax.data.files.decoding_memory import decoding_bytes, header_bytes, pixel_bytes
from bigan_jax.data.files.fit import pad_image, pad_mask, source_box, target_size
from bigan_jax.data.files.memory_budget import MemoryBudget
from bigan_jax.data.files.pixel_values import PixelValues, image_strips, is_inverted, row_strips
from bigan_jax.data.files.unreadable import Result, UnreadableFile, require_file, try_read
from bigan_jax.errors import UserError

SUFFIXES = medical.SUFFIXES | {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".avif"),
}
# Formats of the content, whatever the suffix. Some of Pillow's are excluded: EPS is a program.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "JPEG2000", "PPM", "TGA", "AVIF")
MAX_PIXELS = 100_000_000  # a larger image is a mistake or an attack, and would fill the memory
MIN_SIDE = 4  # pixels; a smaller image shows nothing
PROGRESS_BAR_MIN_ITEMS = 200
_FORMAT_NAMES = {"WEBP": "WebP", "JPEG2000": "JPEG 2000"}
_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's blocks of memory: more than 32 MiB return to the system when they are freed, less stays with the thread.
Image.core.set_block_size(2**26)  # pyright: ignore[reportAttributeAccessIssue]
MAX_DECODING_BYTES = 5 * 2**28  # 1.25 GiB: an image whose decoder needs more is refused
# Of all images that are decoded at the same time, or of one of them, with its result. The rest of 2 GiB is for the
# process itself and the strips of each thread.
memory_budget = MemoryBudget(3 * 2**29)

# A file or a slice (by its name), an open file in one of FORMATS, or the values of a slice.
Source = Path | BinaryIO | io.BytesIO | Num[np.ndarray, "h w ..."]
Pixels = UInt8[np.ndarray, "size size channels"]  # 0 to 255
Mask = Bool[np.ndarray, "size size"]  # True: defect


class ImageFormat(NamedTuple):
    """The format to which every image is converted before a network sees it."""

    size: int  # height and width in pixels
    channels: int  # 1: gray, 3: RGB
    window: bool = False  # whether intensities get `medical.percentile_stretch`
    fit: str = "stretch"  # how an image that is not square becomes one: one of `fit.FITS`


def image_names(file: Path) -> list[str]:
    """Lists the images in one file: its name, or `scan.nii.gz#000` and so on for its slices."""
    return medical.slice_names(file) if medical.is_medical(file.name) else [file.name]


def read_image(source: Source, size: int, channels: int, window: bool = False, fit: str = "stretch") -> Pixels:
    """Decodes one image to an `ImageFormat`, with its EXIF orientation applied.

    Gray is the luma 0.299 R + 0.587 G + 0.114 B, 16-bit gray is divided by 257, and transparent pixels become white.
    The image is resized with an antialiasing bilinear filter. A `window` is applied at the image's own depth, before
    the conversion to 8 bits; DICOM and NIfTI slices always get it. Threads share a budget of memory.

    Raises:
      UserError: more than MAX_PIXELS or less than MIN_SIDE (checked before anything is decoded), several images in
        one file, or values without a known range. A corrupt file raises the exception of its decoder.
    """
    with _open(source) as image:
        least = header_bytes(image)
        # A large JPEG is decoded at a half, a quarter or an eighth of its size, but at no less than four times `size`:
        # a fifth of the time at 12 megapixels, and within 2 of 255. JPEG 2000 likewise, at half its size and so on.
        image.draft(None, (4 * size, 4 * size))
        jpeg2000.reduce(image, lambda width, height: min(width, height) >= 4 * size)
        return _to_format(image, least, size, channels, window, fit)


def to_format(image: Image.Image, size: int, channels: int, window: bool = False, fit: str = "stretch") -> Pixels:
    """Converts an open image like `read_image`, with the same arguments and errors."""
    _require_size(*image.size)
    return _to_format(image, header_bytes(image), size, channels, window, fit)


def _to_format(image, least, size, channels, window, fit):
    width, height = jpeg2000.full_size(image)
    columns, rows = target_size(width, height, size, fit)
    mode = "L" if channels == 1 else "RGB"
    narrow_bytes = _narrow_pixels(image, columns) * pixel_bytes(mode)
    with _hold_memory(image, least, narrow_bytes, window):
        values = PixelValues(image, full_depth=window)
        left, top, right, bottom = jpeg2000.to_reduced(image, source_box(width, height, fit))
        # The same as Pillow's resize of the whole image, which filters rows and then columns.
        narrow, y = Image.new(mode, (columns, image.height)), 0
        for strip in values.eight_bit_strips(window):
            box = left, 0, right, strip.height
            narrow.paste(strip.convert(mode).resize((columns, strip.height), Image.Resampling.BILINEAR, box), (0, y))
            y += strip.height
        small = narrow.resize((columns, rows), Image.Resampling.BILINEAR, (0, top, columns, bottom))
        exif = values.exif
    small = _upright(small, exif)
    return pad_image(np.asarray(small).reshape(small.height, small.width, channels), size)


def read_full_size(source: Source, window: bool = False) -> Image.Image:
    """Decodes one image like `read_image`, but at its own size; its mode is L or RGB.

    A JPEG 2000 image whose decoder needs more than MAX_DECODING_BYTES is decoded at half its size, or a quarter.
    """
    with _open_full_size(source) as (image, least), _hold_memory(image, least, _result_bytes(image), window):
        values, result, y = PixelValues(image, full_depth=window), None, 0
        for strip in values.eight_bit_strips(window):
            # Strips of the same mode replace their own rows, which are not read again. The images of WebP and AVIF
            # would keep their decoders.
            can_replace = image.mode == strip.mode and not values.is_deep and image.format not in ("WEBP", "AVIF")
            result = result or (image if can_replace else Image.new(strip.mode, image.size))
            result.paste(strip, (0, y))
            y += strip.height
        assert result is not None  # an image has a strip
        return _upright(result, values.exif)


def full_size_bytes(source: Source, window: bool = False) -> tuple[int, int]:
    """Returns the pixels of what `read_full_size` returns, and the bytes that it needs, read from the header."""
    with _open_full_size(source) as (image, least):
        return image.width * image.height, least + decoding_bytes(image, window) + _result_bytes(image)


@contextmanager
def _open_full_size(source):
    with _open(source) as image:
        least = header_bytes(image)
        limit = MAX_DECODING_BYTES - least
        jpeg2000.reduce(image, lambda width, height: decoding_memory.JPEG2000 * 4 * width * height > limit)
        yield image, least


def _result_bytes(image):
    return 4 * image.width * image.height  # of an image at its own size, or of masks


def _narrow_pixels(image, columns):
    """The pixels of an image after its rows are resized, which is first. Raises UserError if these are too many."""
    if columns * image.height > MAX_PIXELS:
        raise UserError(f"{image.width}x{image.height} is too long and narrow: cut it into pieces")
    return columns * image.height


@contextmanager
def _hold_memory(image, least, more, window=False):
    """Holds what an image needs: its `header_bytes`, `decoding_bytes` and `more`.

    Raises UserError if decoding needs too many.
    """
    n_pixels, n_bytes = image.width * image.height, least + decoding_bytes(image, window)
    if n_bytes > MAX_DECODING_BYTES:
        raise UserError(
            f"{image.width}x{image.height} is too large for {_FORMAT_NAMES.get(image.format, image.format)}, whose "
            f"decoder needs {n_bytes / n_pixels:.0f} bytes a pixel: save it as PNG or JPEG, or scale it to "
            f"{n_pixels * MAX_DECODING_BYTES // n_bytes // 10**6} megapixels or less"
        )
    with memory_budget.hold(n_bytes + more):
        yield


def _upright(pixels, exif):
    """Applies the EXIF orientation, which Pillow itself has applied to TIFF."""
    transposition = _TRANSPOSITIONS.get(exif.get(_ORIENTATION, 1))
    return pixels if transposition is None else pixels.transpose(transposition)


def read_mask(source: Source, size: int, expected_size: tuple[int, int] | None = None, fit: str = "stretch") -> Mask:
    """Decodes one mask: True where at least half of a cell of the `size` x `size` grid is defect.

    Every value except zero is defect, in any channel. Transparent pixels are not; if all pixels have one color, the
    opaque ones are defect. A defect too small for that rule is kept in the
    cells that it covers most, so that only an empty mask stays empty. Raises UserError if the aspect ratio differs
    from that of the image with the `expected_size` (`image_size`): the mask may be scaled, but not cropped or rotated.
    `fit` is that of the image.
    """
    with _defect(source) as defect:
        height, width = defect.shape
        if expected_size:
            difference = abs(width * expected_size[1] - height * expected_size[0])
            if difference > max(*expected_size, width, height):  # more than rounding of a scaled side
                raise UserError(f"a mask of {width}x{height} for an image of {expected_size[0]}x{expected_size[1]}")
        columns, rows = target_size(*(expected_size or (width, height)), size, fit)
        left, top, right, bottom = source_box(width, height, fit)
        narrow = [  # strips keep the memory small
            Image.fromarray(strip.astype(np.float32)).resize(
                (columns, len(strip)), Image.Resampling.BOX, (left, 0, right, len(strip))
            )
            for strip in row_strips(defect.view(np.uint8))
        ]
        joined = Image.fromarray(np.concatenate([np.asarray(strip) for strip in narrow]))
        cover = np.asarray(joined.resize((columns, rows), Image.Resampling.BOX, (0, top, columns, bottom)))
    return pad_mask((cover > 0) & (cover >= min(0.5, cover.max()) - 1e-6), size)


def read_whole_mask(source: Source) -> Bool[np.ndarray, "h w"]:
    """Decodes a mask like `read_mask`, but at its own size."""
    with _defect(source) as mask:
        return mask


def merge_masks(contents: Mapping[str, bytes]) -> bytes:
    """Returns the union of encoded masks, given by name, as a PNG with 255 for defect.

    Raises UserError with the name of the first that cannot be read, or whose size is another.
    """

    def read(name, work):
        if isinstance(result := try_read(name, lambda: work(io.BytesIO(contents[name]))), UnreadableFile):
            raise UserError(f"{name}: {result.reason}")
        return result

    union = None
    with memory_budget.hold(max(read(name, full_size_bytes)[1] for name in contents)):
        for name in contents:
            mask = read(name, read_whole_mask)
            union = mask if union is None else union
            if mask.shape != union.shape:
                first, second = ("x".join(map(str, shape[::-1])) for shape in (union.shape, mask.shape))
                raise UserError(f"{name}: masks of one image have the sizes {first} and {second}")
            union = union | mask
        assert union is not None  # there are masks
        Image.fromarray(union).save(content := io.BytesIO(), "PNG")
    return content.getvalue()


def _to_defect(values):
    values = np.ma.filled(values, 0)
    return values != 0 if values.ndim == 2 else values.any(axis=-1)


def image_size(source: Path | BinaryIO | io.BytesIO) -> tuple[int, int]:
    """Width and height of an image as displayed, read from its header."""
    if isinstance(source, Path) and medical.is_medical(source.name):
        width, height, _ = medical.volume_shape(Path(medical.split_slice(str(source))[0]))
        return width, height
    with _open(source) as image:
        # Pillow rotates TIFF itself.
        rotated = image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        width, height = image.size
        return (height, width) if rotated else (width, height)


def read_encoded(source: Source, mask: bool = False) -> bytes:
    """Returns the bytes of a file. A slice becomes a PNG: stretched, or if it is a mask with 255 except for zeros."""
    if (values := _slice_values(source)) is None:
        assert isinstance(source, Path)
        return source.read_bytes()
    pixels = np.uint8(255) * (np.ma.filled(values, 0) != 0) if mask else medical.slice_to_uint8(values)
    Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
    return content.getvalue()


def _slice_values(source: Source) -> np.ndarray | None:
    if isinstance(source, Path) and medical.is_medical(source.name):
        file, number = medical.split_slice(str(source))
        return next(_read_slices(Path(file), [number]))
    return source if isinstance(source, np.ndarray) else None


def _read_slices(file, numbers):
    width, height, _ = medical.volume_shape(file)
    _require_size(width, height)
    with memory_budget.hold(decoding_memory.MEDICAL * width * height):
        yield from medical.read_slices(file, numbers)


@contextmanager
def _defect(source: Source) -> Iterator[np.ndarray]:
    """Decodes a mask at its own size, upright: [h, w], True for defect. Its memory is held until the context ends."""
    if (values := _slice_values(source)) is not None:
        yield np.asarray(_to_defect(values))
        return
    with _open(source) as mask, _hold_memory(mask, header_bytes(mask), _result_bytes(mask)):
        mask.load()
        defect = np.concatenate(list(_defect_strips(mask)))
        upright = _upright(Image.fromarray(defect.view(np.uint8)), mask.getexif())
        yield np.asarray(upright).view(bool)


def _defect_strips(mask):
    if mask.has_transparency_data:
        first = np.asarray(mask.crop((0, 0, 1, 1)).convert("RGBA"))
        same = [(part == first).all((0, 1)) for part in _rgba_strips(mask)]
        *same_color, same_alpha = np.all(same, axis=0)
        is_one_color = all(same_color) and not same_alpha
        for part in _rgba_strips(mask):
            yield (part[..., 3] > 0) & (is_one_color | part[..., :3].any(-1))
        return
    white = (65535 if mask.mode.startswith("I") else 1) * is_inverted(mask)
    for part in image_strips(mask):
        if part.mode not in ("1", "L", "F") and not part.mode.startswith("I"):
            part = part.convert("RGB")
        values = np.asarray(part)
        values = white - values if white else values
        # JPEG rings around edges: its zeros are not zero
        yield _to_defect(values > 127 if mask.format == "JPEG" else values)


def _rgba_strips(mask):
    return (np.asarray(part.convert("RGBA")) for part in image_strips(mask))


@contextmanager
def _open(source: Source) -> Iterator[Image.Image]:
    if (values := _slice_values(source)) is not None:
        yield Image.fromarray(medical.slice_to_uint8(values))
        return
    assert not isinstance(source, np.ndarray)
    # An open file, not its path: Pillow memory-maps plain TIFF files by path, and then rotates them wrongly.
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise UserError(f"more than {MAX_PIXELS // 10**6} megapixels: scale it down") from error
        _require_size(*image.size)  # known from the header, before anything is decoded
        tags = getattr(image, "tag_v2", {})  # of TIFF
        if decoding_memory.TILE_WIDTH in tags:  # a tile is decoded at once
            tile = tags[decoding_memory.TILE_WIDTH], tags.get(decoding_memory.TILE_LENGTH)
            if not all(isinstance(side, int) for side in tile):  # NaN would pass every comparison
                raise UserError("the size of its tiles is invalid: save it again")
            _require_size(*tile)
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise UserError("has several images (pages or frames): save each as its own file")
        yield image


def _require_size(width, height):
    if width * height > MAX_PIXELS:
        raise UserError(f"{width}x{height} is more than {MAX_PIXELS // 10**6} megapixels: scale it down first")
    if min(width, height) < MIN_SIDE:
        raise UserError(f"{width}x{height} is too small: each side needs {MIN_SIDE} pixels or more")


def map_in_threads(work: Callable, items: Sequence, description: str) -> list:
    """Returns `work(item)` for all `items`, in order; with a progress bar if there are many."""
    disable = len(items) < PROGRESS_BAR_MIN_ITEMS or None  # None: disabled without a terminal
    # Decoders release the GIL, but not all the time: on two cores four threads were fastest.
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        results = pool.map(work, items)
        return list(tqdm(results, description, len(items), disable=disable, leave=False))


def read_files(
    read: Callable[[Source, str], Result], root: Path, paths: Sequence[str], description: str
) -> list[Result | UnreadableFile]:
    """Returns `read(source, path)` for all `paths` below `root`, in order; an `UnreadableFile` where it raised.

    Files are read by several threads, and consecutive slices of one file in one pass. A path or link that leads out
    of `root` is not read.
    """

    def read_file(names: list[str]) -> list:
        file = medical.split_slice(names[0])[0]
        sources = _sources(root, file, names)
        return [try_read(name, lambda name=name: read(next(sources), name)) for name in names]

    files = [list(names) for _, names in groupby(paths, lambda p: medical.split_slice(p)[0])]
    return [result for results in map_in_threads(read_file, files, description) for result in results]


def _sources(root, file, names):
    require_file(root / file, root)
    if medical.is_medical(file):
        yield from _read_slices(root / file, [medical.split_slice(name)[1] for name in names])
    else:
        yield from [root / file] * len(names)
