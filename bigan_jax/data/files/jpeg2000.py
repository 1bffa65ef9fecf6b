"""Decoding of JPEG 2000 at a half of its size, a quarter and so on, with a fraction of the memory and the time."""

from collections.abc import Callable

from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from bigan_jax.data.files.fit import Box

_SIZE = b"\xff\x4f\xff\x51"  # start of the codestream, and the marker of its size
_CODING, _COMPONENT_CODING, _TILE = b"\xff\x52", b"\xff\x53", b"\xff\x90"  # markers
_REDUCED = "bigan_jax_reduced"  # of an image's `info`
_HEADER_BYTES = 2**20  # of a file, in which the codestream begins


def reduce(image: Image.Image, accepts: Callable[[int, int], bool]) -> None:
    """Lets a JPEG 2000 image that is not decoded yet be decoded at the smallest size that is acceptable.

    Args:
      image: any image; others than JPEG 2000 stay as they are.
      accepts: whether a reduced width and height is acceptable.
    """
    if not isinstance(image, Jpeg2KImageFile) or not image.tile:
        return
    factor, size = 0, image.size
    for k in range(1, _decompositions(image) + 1):
        # Not Pillow's `reduce`, which rounds the size in another way than the codec, and then fails.
        width, height = (-(-side // 2**k) for side in image.size)
        if accepts(width, height):
            factor, size = k, (width, height)
    tile = image.tile[0]
    assert isinstance(tile.args, tuple)
    codec, _, *rest = tile.args
    if factor:
        image.info[_REDUCED] = factor, image.size
    image._size = size
    image.tile = [tile._replace(extents=(0, 0, *size), args=(codec, factor, *rest))]


def full_size(image: Image.Image) -> tuple[int, int]:
    """Returns the width and height that an image has without `reduce`."""
    return image.info.get(_REDUCED, (0, image.size))[1]


def to_reduced(image: Image.Image, box: Box) -> Box:
    """Converts a box of an image at its full size to pixels of the image as it is decoded.

    The samples that remain lie where the first of two, four and so on were, not between these. The right and lower
    edges may therefore be beyond the last sample, by less than half of one, which is left out.
    """
    scale = 2 ** image.info.get(_REDUCED, (0,))[0]
    shift = (1 - 1 / scale) / 2
    left, top, right, bottom = (side / scale + shift for side in box)
    return left, top, min(right, image.width), min(bottom, image.height)


def _decompositions(image) -> int:
    """Returns how often the image can be halved, from the header of its codestream; 0 if that is not certain."""
    position = image.fp.tell()
    image.fp.seek(0)
    header = image.fp.read(_HEADER_BYTES)
    image.fp.seek(position)
    at = header.find(_SIZE)
    if at < 0 or any(header[at + 16 : at + 24]):  # an offset of the image in its grid
        return 0
    at, levels = at + 2, 0
    while (marker := header[at : at + 2]) not in (_COMPONENT_CODING, _TILE, b""):
        if marker == _CODING:
            levels = int.from_bytes(header[at + 9 : at + 10])
        at += 2 + int.from_bytes(header[at + 2 : at + 4], "big")
    return levels if marker == _TILE else 0
