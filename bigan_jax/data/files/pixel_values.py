"""The values of a decoded image at its own depth, strip by strip, and their conversion to 8 bits.

Strips keep the memory small: an image needs what its decoder needs, and little more.
"""

import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Num, UInt8, UInt16
from PIL import Image, TiffImagePlugin
from PIL.ImageFile import ImageFile

from bigan_jax.errors import UserError

STRIP_PIXELS = 2**18
SECTIONED_PIXELS = 2**24  # 16-bit color with more pixels is decoded in sections

Values = Num[np.ndarray, "h w"] | Num[np.ndarray, "h w 3"]  # gray or RGB

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags
_SWAPPED_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_COLOR_16 = tuple(f"{bands};16" for bands in ("RGB", "RGBA", "RGBX", "R", "G", "B", "A"))

# libtiff returns the byte order of the machine, which Pillow takes into account for unsigned integers only.
_LIBTIFF_RAWMODES = {"F;32BF": "F;32NF", "I;32BS": "I;32NS", "I;16BS": "I;16NS"}
# Pillow lacks the big-endian form of 16-bit gray with white as zero.
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))


class PixelValues:
    """A decoded image: gray or RGB, with white under transparent pixels and zero as black."""

    def __init__(self, image: Image.Image, full_depth: bool):
        """Decodes the image; with `full_depth` also the low bytes of 16-bit color, which Pillow leaves out."""
        self.image = image
        self._top = 65535  # the value of white in integers of more than 8 bits
        self._white_is_zero = is_inverted(image)
        if getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) == (12,):
            self._top = 4095
        self._deep = None
        if isinstance(image, ImageFile):
            image.tile = [_in_machine_order(tile) for tile in image.tile]
            if full_depth and (tiles := self._deep_color_tiles(image)):
                self._deep = DeepColor(image, *tiles)
        if not self._deep:
            image.load()

    @property
    def is_deep(self) -> bool:
        """Whether the image is 16-bit color at full depth, which is decoded again in each pass."""
        return self._deep is not None

    @property
    def exif(self) -> Image.Exif:
        """The EXIF data, which are complete after the pixels are read: PNG may have them at its end."""
        return self._deep.exif if self._deep else self.image.getexif()

    def _deep_color_tiles(self, image):
        """Returns the tiles from which Pillow decodes the high bytes of 16-bit color, and those for the low bytes."""
        tiles = image.tile
        if tiles and tiles[0].codec_name == "ppm" and image.mode == "RGB" and tiles[0].args[-1] > 255:
            self._top = tiles[0].args[-1]
            tiles = [tiles[0]._replace(codec_name="raw", args=("RGB;16B", 0, 1))]
        rawmodes = [tile.args if isinstance(tile.args, str) else tile.args[0] for tile in tiles]
        if not rawmodes or not all(f"{mode[:-1]}" in _COLOR_16 for mode in rawmodes):
            return None
        swapped = [mode[:-1] + _SWAPPED_ORDER[mode[-1]] for mode in rawmodes]
        return tiles, [
            tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))
            for tile, mode in zip(tiles, swapped, strict=True)
        ]

    def eight_bit_strips(self, window: bool) -> Iterator[Image.Image]:
        """Yields the image from top to bottom in mode L or RGB; with `window` after the percentile stretch.

        Raises UserError for values without a known range, unless they are stretched.
        """
        limits = percentiles(self._strips) if window else None
        if limits is None and not self._deep and not self.image.mode.startswith(("I", "F")):
            yield from map(_to_eight_bit_mode, image_strips(self.image))
            return
        for values in self._strips():
            yield Image.fromarray(self._scale(values) if limits is None else stretch(values, *limits))

    def _strips(self) -> Iterator[Values]:
        if self._deep:
            for values, alpha in self._deep.strips():
                yield values if alpha is None else _over_white(values, alpha, self._top)
        else:
            yield from map(self._values, image_strips(self.image))

    def _values(self, part) -> Values:
        if not part.mode.startswith(("I", "F")):
            return np.asarray(_to_eight_bit_mode(part))
        values = np.asarray(part)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if part.mode == "F":
            require_finite_values(values)
            return 1 - values if self._white_is_zero else values
        return self._top - values if self._white_is_zero else values

    def _scale(self, values):
        """Converts values of a known range to 8 bits."""
        if values.dtype == np.float32:
            if not (values.min() >= 0 and values.max() <= 1):
                raise UserError("a float image with values outside [0, 1]: save it with 8 or 16 bits")
            return np.round(values * 255).astype(np.uint8)
        if values.min() < 0 or values.max() > self._top:
            raise UserError(f"values outside 0 to {self._top}: save it with 8 or 16 bits")
        return np.round(np.arange(self._top + 1) * (255 / self._top)).astype(np.uint8)[values]


def image_strips(image: Image.Image) -> Iterator[Image.Image]:
    """Yields copies of an image's rows from top to bottom, of about STRIP_PIXELS each."""
    width, height = image.size
    for top, bottom in _row_ranges(width, 0, height):
        yield image.crop((0, top, width, bottom))


class DeepColor:
    """Color of 16 bits, of which Pillow decodes 8 bits at a time: first the high bytes and then the low bytes.

    Each decoding takes 4 bytes a pixel. A large image is decoded in sections, of which only the high bytes are kept
    while the low bytes are decoded: twice as often as there are sections, and again in each pass.
    """

    def __init__(self, image: ImageFile, high_tiles: list, low_tiles: list):
        self._image, self._tiles = image, (high_tiles, low_tiles)
        width, height = image.size
        # Two, or three with alpha: 1.5 bytes a pixel for the high bytes.
        n_sections = -(-2 * len(image.getbands()) // 3) if width * height > SECTIONED_PIXELS else 1
        rows = -(-height // n_sections)
        self._sections = [(top, min(top + rows, height)) for top in range(0, height, rows)]
        self._kept = None  # the only section
        self.exif = Image.Exif()

    def strips(self) -> Iterator[tuple[UInt16[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 1"] | None]]:
        """Yields colors and alpha (None without) from top to bottom."""
        width = self._image.width
        for start, end in self._sections:
            high, low = self._kept or (self._high_bytes(start, end), self._decode(self._tiles[1]))
            if len(self._sections) == 1:
                self._kept = high, low
            for top, bottom in _row_ranges(width, start, end):
                part = high[top - start : bottom - start]
                low_bytes = np.asarray(low.crop((0, top, width, bottom)))[..., :3]
                yield (part[..., :3].astype(np.uint16) << 8) + low_bytes, part[..., 3:] if part.shape[2] > 3 else None
            del high, low, part  # before the next section is decoded

    def _high_bytes(self, start, end):
        decoded = self._decode(self._tiles[0])
        self.exif = decoded.getexif()
        high = np.empty((end - start, decoded.width, len(decoded.getbands())), np.uint8)
        for top, bottom in _row_ranges(decoded.width, start, end):
            high[top - start : bottom - start] = np.asarray(decoded.crop((0, top, decoded.width, bottom)))
        return high

    def _decode(self, tiles):
        file = self._image.fp
        assert file is not None
        file.seek(0)
        image = Image.open(file, formats=[str(self._image.format)])
        assert isinstance(image, ImageFile)
        image.tile = tiles
        image.load()
        return image


def _row_ranges(width, start, end):
    """Returns the first row of each strip, and the row after its last."""
    rows = max(1, STRIP_PIXELS // width)
    return [(top, min(top + rows, end)) for top in range(start, end, rows)]


def is_inverted(image: Image.Image) -> bool:
    """Whether zero is white in an image, as TIFF allows. With 8 bits or fewer Pillow inverts it."""
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0 and image.mode.startswith(("I", "F"))


def _in_machine_order(tile):
    if tile.codec_name != "libtiff" or tile.args[0] not in _LIBTIFF_RAWMODES:
        return tile
    return tile._replace(args=(_LIBTIFF_RAWMODES[tile.args[0]], *tile.args[1:]))


def _to_eight_bit_mode(image):
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _over_white(values, alpha, top):
    opacity = alpha.astype(np.float32) / 255
    return (values * opacity + top * (1 - opacity)).round().astype(np.uint16)


def require_finite_values(values: Num[np.ndarray, "..."]) -> None:
    """Raises a UserError if a value is NaN or infinite."""
    if not np.isfinite(values).all():
        raise UserError("has values that are not finite (NaN or infinite)")


def stretch(values: Num[np.ndarray, "h w *c"], low: float, high: float) -> UInt8[np.ndarray, "h w *c"]:
    """Map `low` to 0 and `high` to 255, and values beyond them too; if both are equal, everything to 0."""
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    if values.dtype in (np.uint8, np.uint16):  # by a table
        every_value = np.arange(np.iinfo(values.dtype).max + 1)[None]
        return stretch(every_value, low, high)[0][values]
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return scaled.clip(0, 255).round().astype(np.uint8)


def row_strips(values: Num[np.ndarray, "h w *c"]) -> Iterator[Num[np.ndarray, "rows w *c"]]:
    """Yields views of an array from top to bottom, of about STRIP_PIXELS each."""
    rows = max(1, STRIP_PIXELS // max(1, values.shape[1]))
    for top in range(0, len(values), rows):
        yield values[top : top + rows]


def countable(values: Num[np.ndarray, "..."]) -> Num[np.ndarray, "..."]:
    """Converts values to a type that `percentiles` counts: uint8, uint16, int32 or float32."""
    if values.dtype in (np.uint8, np.uint16, np.int32, np.float32) and values.dtype.isnative:
        return values
    return values.astype(np.int32 if values.dtype.kind == "i" and values.dtype.itemsize < 4 else np.float32)


def percentiles(strips: Callable[[], Iterable[Num[np.ndarray, "..."]]]) -> tuple[float, float]:
    """Returns the 1st and 99th percentile of all values in `strips()`, as `numpy.percentile` does.

    The values are counted in place of sorted, so no copy of the image is needed. They must be finite, and all of one
    type that is `countable`. `strips` is called several times. Without values both are 0.
    """
    counts, dtype = np.zeros(2**16, np.int64), np.dtype(np.uint8)
    for values in strips():
        dtype = values.dtype
        counts += np.bincount(_high_halves(_sortable(values)).ravel(), minlength=2**16)
    cumulative = counts.cumsum()
    if not cumulative[-1]:
        return 0.0, 0.0
    results = []
    for fraction in (0.01, 0.99):
        position = fraction * (cumulative[-1] - 1)
        ranks = [int(position), min(int(position) + 1, int(cumulative[-1]) - 1)]
        below, above = (_order_statistic(strips, dtype, cumulative, rank) for rank in ranks)
        results.append(below + (above - below) * (position - ranks[0]))
    return results[0], results[1]


def _order_statistic(strips, dtype, cumulative, rank) -> float:
    """The value at `rank` of the sorted values: the high half of its bits is counted, and so is the low half."""
    half = int(np.searchsorted(cumulative, rank, side="right"))
    if dtype.itemsize < 4:
        return float(half)
    keys = np.zeros(2**16, np.int64)
    for values in strips():
        key = _sortable(values)
        chosen = key[_high_halves(key) == half]
        keys += np.bincount(chosen & 0xFFFF, minlength=2**16)
    before = cumulative[half - 1] if half else 0
    low = int(np.searchsorted(keys.cumsum(), rank - before, side="right"))
    return _unsorted(np.array([half << 16 | low], np.uint32), dtype)


def _high_halves(keys):
    return keys >> 16 if keys.dtype == np.uint32 else keys


def _sortable(values):
    """Returns unsigned integers in the same order."""
    if values.dtype.itemsize < 4:
        return values
    bits = values.view(np.uint32)
    sign = bits >> 31
    if values.dtype == np.float32:  # a negative number has its magnitude in the other bits
        return bits ^ np.where(sign, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    return bits ^ np.uint32(0x80000000)


def _unsorted(key, dtype) -> float:
    if dtype == np.float32:
        key = key ^ np.where(key >> 31, np.uint32(0x80000000), np.uint32(0xFFFFFFFF))
    else:
        key = key ^ np.uint32(0x80000000)
    return float(key.view(dtype)[0])
