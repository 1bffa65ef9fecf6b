"""Pictures as the bytes of PNG files, small enough to be many in one page."""

import base64
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def png_bytes(array: UInt8[np.ndarray, "h w *c"], longest: int | None = None) -> bytes:
    """The PNG file of a picture: [h w], [h w 1] (grey) or [h w 3] (RGB), in 0..255.

    One with at most 256 colours, as an error map has, is stored by palette: the same pixels in
    half the bytes. `longest` shrinks a larger picture, a side to at most so many pixels.
    """
    if array.dtype != np.uint8:
        raise TypeError(f"a PNG needs uint8 pixels, not {array.dtype}.")
    image = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
    if longest is not None:
        image.thumbnail((longest, longest))
    if image.mode == "RGB":
        image = _by_palette(image)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def data_uri(png: bytes) -> str:
    """A PNG file as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _by_palette(image: Image.Image) -> Image.Image:
    """The same picture by a palette of its colours, if they are few enough."""
    pixels = np.asarray(image).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colours, index = np.unique(pixels, return_inverse=True)
    if len(colours) > 256:
        return image
    indexed = Image.fromarray(index.reshape(pixels.shape).astype(np.uint8))
    palette = np.stack([colours >> 16, colours >> 8, colours], 1)
    indexed.putpalette(palette.astype(np.uint8).tobytes())
    return indexed
