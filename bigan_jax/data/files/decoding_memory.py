"""How much memory the decoder of an image needs, from the image's header.

The figures per pixel are upper limits of what `benchmarks/memory.py` measures.
"""

from math import prod

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

# Pillow's decoders of whole images. WebP: the animation decoder's two canvases, its result and the image, each of 4
# bytes, and a copy of the values if lossless. AVIF: planes of up to 4 bytes, the result, its copy and the image.
WEBP, AVIF = 18, 17
JPEG2000 = 16  # computes with 32 bits
JPEG2000_BLOCKS = 4  # compressed, whatever the size at which it is decoded
MEDICAL = 16  # a slice: stored values, physical ones in float32, and where they are masked
# The low bytes of 16-bit color are decoded apart from the high ones (`pixel_values.DeepColor`).
DEEP_COLOR = 4
_IN_PYTHON = ("ppm", "ppm_plain", "bmp_rle")  # these decoders collect the values before the image gets them
_BITS, _ROWS_PER_STRIP, _SAMPLES, TILE_WIDTH, TILE_LENGTH = 258, 278, 277, 322, 323  # TIFF tags


def pixel_bytes(mode: str) -> int:
    """Returns the bytes that Pillow stores for a pixel."""
    return 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4


def header_bytes(image: Image.Image) -> int:
    """Returns what decoding needs at any reduced size; call this before the size is reduced."""
    n_pixels = image.width * image.height
    if isinstance(image, JpegImageFile):
        # All coefficients of progressive JPEG are in memory, at 2 bytes each. So are those of color in several scans,
        # which the header does not tell.
        factors = [(h, v) for _, h, v, _ in image.layer]
        h_max, v_max = (max(1, *factor) for factor in zip(*factors, strict=True))
        return 2 * n_pixels * sum(map(prod, factors)) // (h_max * v_max)
    return JPEG2000_BLOCKS * n_pixels if image.format == "JPEG2000" else 0


def decoding_bytes(image: Image.Image, window: bool = False) -> int:
    """Returns what decoding needs at the present size; with a `window` at full depth. `header_bytes` come on top."""
    n_pixels = image.width * image.height
    codec = image.tile[0].codec_name if isinstance(image, ImageFile) and image.tile else ""
    if image.format in ("WEBP", "AVIF"):
        return n_pixels * (WEBP if image.format == "WEBP" else AVIF)
    if codec == "jpeg2k":
        return n_pixels * JPEG2000
    n_bytes = n_pixels * pixel_bytes(image.mode)
    if window and image.mode.startswith("RGB"):
        n_bytes += n_pixels * DEEP_COLOR  # in case it has 16 bits
    if codec in _IN_PYTHON:
        n_bytes += 3 * n_pixels * (4 if image.mode == "I" else len(image.getbands()))
    if codec == "libtiff":
        n_bytes += _tiff_block_bytes(image)
    return n_bytes


def _tiff_block_bytes(image):
    """A compressed strip or tile is decoded at once, and often the whole image is one strip."""
    tags = image.tag_v2
    width, height = image.size
    if TILE_WIDTH in tags:
        width, height = tags[TILE_WIDTH], tags.get(TILE_LENGTH, 0)
    elif isinstance(rows := tags.get(_ROWS_PER_STRIP), int) and rows > 0:  # libtiff ignores other values
        height = min(height, rows)
    bits = max(tags.get(_BITS, (1,))) * tags.get(_SAMPLES, 1)
    return width * height * max(4, -(-bits // 8))
