"""Rendering of self-contained HTML files that treat all content as text.

A page fetches nothing: images are data: URIs. Its content security policy forbids every script except the page's own,
by hash, and every address except data: URIs.
"""

import base64
import hashlib
import io
import zlib
from collections.abc import Callable, Mapping

import jinja2
import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup
from PIL import Image

from bigan_jax.errors import printable


def render_html(
    template: str, filters: Mapping[str, Callable], tests: Mapping[str, Callable] | None = None, **content: object
) -> str:
    """Renders a template of this package with the variables `content`.

    All text is escaped, including control characters, except `Markup`. Filters and tests are passed by their names in
    the template, which also has the filter `script_hash`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bigan_jax.reports", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_escape_controls,
    )
    environment.filters.update(filters, script_hash=_script_hash)
    environment.tests.update(tests or {})
    return environment.get_template(template).render(content)


def png_bytes(
    array: UInt8[np.ndarray, "h w *c"], longest: int | None = None, palette: UInt8[np.ndarray, "256 3"] | None = None
) -> bytes:
    """Encodes an image as PNG.

    Args:
      array: gray [h w] or [h w 1], RGB [h w 3], or [h w] indices of `palette`. A palette takes half the bytes of RGB.
      longest: the largest side in pixels; a larger image is shrunk in proportion.
      palette: RGB colors.
    """
    if array.dtype != np.uint8:
        raise TypeError(f"png_bytes requires uint8 pixels (got {array.dtype}).")
    image = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
    if longest is not None:
        image.thumbnail((longest, longest))
    if palette is not None:
        image.putpalette(palette.tobytes())
    stream = io.BytesIO()
    # Photographs hardly repeat: run-length matching alone takes half the time for equal size.
    image.save(stream, "PNG", compress_type=zlib.Z_RLE)
    return stream.getvalue()


def data_uri(image: bytes) -> Markup:
    """Returns a data: URI that holds a PNG or SVG file. Base64 needs no escaping."""
    mime_type = "image/png" if image.startswith(b"\x89PNG") else "image/svg+xml"
    return Markup(f"data:{mime_type};base64," + base64.b64encode(image).decode("ascii"))


def _escape_controls(value):
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _script_hash(script: str) -> Markup:
    """The hash by which the content security policy allows a script."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return Markup(f"sha256-{base64.b64encode(digest).decode('ascii')}")
