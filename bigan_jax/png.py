"""Pictures as the bytes of PNG files, small enough to be many in one page."""

import base64
import io
import zlib

import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup
from PIL import Image


def png_bytes(
    array: UInt8[np.ndarray, "h w *c"],
    longest: int | None = None,
    palette: UInt8[np.ndarray, "256 3"] | None = None,
) -> bytes:
    """The PNG file of a picture: [h w], [h w 1] (grey) or [h w 3] (RGB), in 0..255, or [h w],
    places in a palette, which takes half the bytes of as many colours.

    `longest` shrinks a larger picture, a side to at most so many pixels.
    """
    if array.dtype != np.uint8:
        raise TypeError(f"a PNG needs uint8 pixels, not {array.dtype}.")
    image = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
    if longest is not None:
        image.thumbnail((longest, longest))
    if palette is not None:
        image.putpalette(palette.tobytes())
    stream = io.BytesIO()
    # Photographs hardly repeat: to look for runs only takes half the time, for as many bytes.
    image.save(stream, "PNG", compress_type=zlib.Z_RLE)
    return stream.getvalue()


def data_uri(png: bytes) -> Markup:
    """A PNG file as an address that holds it; base64 needs no escaping."""
    return Markup("data:image/png;base64," + base64.b64encode(png).decode("ascii"))
