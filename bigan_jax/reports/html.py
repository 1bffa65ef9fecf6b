"""HTML files that stand alone: nothing is fetched, and whatever comes from outside is text.

A page's own policy forbids the rest: any script but the one it names, any address but data: ones.
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
    template: str,
    filters: Mapping[str, Callable],
    tests: Mapping[str, Callable] | None = None,
    **content: object,
) -> str:
    """The page that a template of this package makes of its content.

    All text is escaped, its control characters too, but for what is `Markup`.
    filters, tests: what the template calls by these names, beside `script_hash`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bigan_jax.reports", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_harmless,
    )
    environment.filters.update(filters, script_hash=_script_hash)
    environment.tests.update(tests or {})
    return environment.get_template(template).render(content)


def _harmless(value):
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _script_hash(script: str) -> Markup:
    """The name by which the content security policy allows one script and no other."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return Markup(f"sha256-{base64.b64encode(digest).decode('ascii')}")


def png_bytes(
    array: UInt8[np.ndarray, "h w *c"],
    longest: int | None = None,
    palette: UInt8[np.ndarray, "256 3"] | None = None,
) -> bytes:
    """The PNG file of a picture: [h w], [h w 1] (gray) or [h w 3] (RGB), in 0..255, or [h w],
    places in a palette, which takes half the bytes of as many colors.

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
