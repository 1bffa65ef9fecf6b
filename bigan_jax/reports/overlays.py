"""Error maps and overlays of new images, as PNG files of the images' own sizes."""

import io
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jaxtyping import Float
from PIL import Image

from bigan_jax.data.files.images import map_in_threads, read_full_size
from bigan_jax.data.files.unreadable import UnreadableFile, try_read
from bigan_jax.reports.charts import ERROR_PALETTE, error_levels

MAX_OPACITY = 0.8  # of the highest error on an overlay; an error of 0 is transparent
MAX_NAME_BYTES = 200  # of a file or folder; file systems allow 255


def write_overlays(
    contents: Mapping[str, bytes],
    names: Sequence[str],
    error_maps: Float[np.ndarray, "n h w"],
    limit: float,
    output: Path,
    stretch: bool = False,
) -> list[UnreadableFile]:
    """Writes an `overlay` of each named image to error_maps/ and overlays/ in `output`.

    Args:
      contents: the bytes of the image files, by name.
      names: the images to draw, whose error maps are `error_maps`.
      limit: the error of the brightest color.
      stretch: whether to show images with percentile contrast stretching, as the networks see them.

    Returns:
      The files that could not be read.
    """

    def draw(i: int) -> tuple[Image.Image, Image.Image]:
        return overlay(read_full_size(io.BytesIO(contents[names[i]]), stretch), error_maps[i], limit)

    def write_one(i: int) -> UnreadableFile | None:
        name = names[i]
        images = try_read(name, lambda: draw(i))
        if isinstance(images, UnreadableFile):
            return images
        for folder, image in zip(("error_maps", "overlays"), images, strict=True):
            path = output / folder / output_name(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, compress_level=3)  # more takes longer and saves little
        return None

    return [file for file in map_in_threads(write_one, range(len(names)), "overlays") if file]


def overlay(image: Image.Image, errors: Float[np.ndarray, "h w"], limit: float) -> tuple[Image.Image, Image.Image]:
    """Colors an error map, and blends it with its image: the higher the error, the more opaque.

    Returns the error map in colors and the overlay, both of the image's size.
    """
    levels = Image.fromarray(error_levels(errors, limit))
    if levels.size != image.size:
        levels = levels.resize(image.size, Image.Resampling.BILINEAR)
    colored = levels.copy()
    colored.putpalette(ERROR_PALETTE.tobytes())
    opacity = levels.point([round(MAX_OPACITY * value) for value in range(256)])
    return colored, Image.composite(colored.convert("RGB"), image.convert("RGB"), opacity)


def output_name(path: str) -> str:
    """Returns the path of an image's PNG file below error_maps/ and overlays/.

    `a/b.jpg` becomes `a/b.jpg.png`. Two images never share a name, and no name leads out of the folder: problematic
    characters are percent-encoded (%0A), and an overlong name is cut and ends in a digest of the complete name.
    """
    *folders, file = (_safe_name(name) for name in path.split("/") if name)
    # No folder is called . or .., or as the PNG file of another image may be.
    folders = [re.sub(r"\.(png)?$", r"%2E\1", name, flags=re.IGNORECASE) for name in folders]
    return "/".join([*folders, f"{file}.png"])


def _safe_name(name: str) -> str:
    unsafe = {c for c in name if c in '%<>:"|?*\\' or not c.isprintable()}
    name = "".join(quote(c, safe="", errors="surrogateescape") if c in unsafe else c for c in name)
    if len(name.encode()) > MAX_NAME_BYTES:
        digest = blake2b(name.encode(), digest_size=8).hexdigest()
        name = name.encode()[: MAX_NAME_BYTES - 17].decode(errors="ignore") + "~" + digest
    return name
