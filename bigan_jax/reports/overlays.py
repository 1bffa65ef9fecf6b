"""Error maps, overlays and masks of new images, as PNG files of the images' own sizes; thumbnails of the overlays."""

import io
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jaxtyping import Float
from PIL import Image

from bigan_jax.data.files.fit import source_box, unpad
from bigan_jax.data.files.images import ImageFormat, full_size_bytes, map_in_threads, memory_budget, read_full_size
from bigan_jax.data.files.pixel_values import STRIP_PIXELS
from bigan_jax.data.files.unreadable import UnreadableFile, try_read
from bigan_jax.metrics.thresholds import decide
from bigan_jax.reports.charts import ERROR_PALETTE, error_levels

MAX_OPACITY = 0.8  # of the highest error on an overlay; an error of 0 is transparent
OVERLAY_BYTES = 12  # a pixel: the image and its overlay in color, and three of 1 byte
THUMBNAIL_SIDE = 400  # pixels of the longer side, at most
MAX_NAME_BYTES = 200  # of a file or folder; file systems allow 255


def write_overlays(
    contents: Mapping[str, bytes],
    names: Sequence[str],
    error_maps: Float[np.ndarray, "n h w"],
    limit: float,
    pixel_threshold: float,
    output: Path,
    image_format: ImageFormat,
) -> list[UnreadableFile]:
    """Writes an `overlay` and a `marked` mask of each named image to error_maps/, overlays/ and masks/ in `output`.

    The overlay is also written to thumbnails/, smaller and as JPEG.

    Args:
      contents: the bytes of the image files, by name.
      names: the images to draw, whose error maps are `error_maps`.
      limit: the error of the brightest color.
      pixel_threshold: the error from which on a pixel is marked.
      image_format: what the networks see: contrast is shown as they see it, and the maps are fitted to the images.

    Returns:
      The files that could not be read.
    """

    def write_one(i: int) -> UnreadableFile | None:
        name = names[i]
        content = io.BytesIO(contents[name])
        needed = try_read(name, lambda: full_size_bytes(content, image_format.window))
        if isinstance(needed, UnreadableFile):
            return needed
        n_pixels, n_bytes = needed
        with memory_budget.hold(max(n_bytes, OVERLAY_BYTES * n_pixels)):
            image = try_read(name, lambda: read_full_size(content, image_format.window))
            if isinstance(image, UnreadableFile):
                return image
            errors, fit = error_maps[i], image_format.fit
            images = *overlay(image, errors, limit, fit), marked(errors, pixel_threshold, image.size, fit)
            for folder, drawn in zip(("error_maps", "overlays", "masks"), images, strict=True):
                path = output / folder / output_name(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                drawn.save(path, compress_level=1)  # 3 takes half as long again, and saves a tenth
            thumbnail = output / thumbnail_name(name)
            thumbnail.parent.mkdir(exist_ok=True)
            # Reduced by a whole factor first, which takes a third of the time.
            images[1].thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR, reducing_gap=1.0)
            images[1].save(thumbnail, quality=80)
        return None

    return [file for file in map_in_threads(write_one, range(len(names)), "overlays") if file]


def overlay(
    image: Image.Image, errors: Float[np.ndarray, "h w"], limit: float, fit: str = "stretch"
) -> tuple[Image.Image, Image.Image]:
    """Colors an error map, and blends it with its image: the higher the error, the more opaque.

    Returns the error map in colors and the overlay, both of the image's size. With the `fit` "pad" the map's padding
    is left out; with "crop" the map covers the central square, and there is no error outside.
    """
    levels = _place(Image.fromarray(unpad(error_levels(errors, limit), *image.size, fit)), image.size, fit)
    colored = levels.copy()
    colored.putpalette(ERROR_PALETTE.tobytes())
    opacity = [round(MAX_OPACITY * value) for value in range(256)]
    blended = image.convert("RGB")
    for top in range(0, image.height, rows := max(1, STRIP_PIXELS // image.width)):  # strips keep the memory small
        box = 0, top, image.width, min(top + rows, image.height)
        blended.paste(colored.crop(box).convert("RGB"), box, levels.crop(box).point(opacity))
    return colored, blended


def marked(errors: Float[np.ndarray, "h w"], threshold: float, size: tuple[int, int], fit: str) -> Image.Image:
    """Returns the mask of an image of (width, height) `size`: 255 where the error reaches the threshold, else 0.

    Whole pixels of the map are marked, without interpolation, since the threshold's promise is about these.
    """
    levels = decide(errors, threshold).astype(np.uint8) * 255
    return _place(Image.fromarray(unpad(levels, *size, fit)), size, fit, Image.Resampling.NEAREST)


def _place(levels, size, fit, resampling=Image.Resampling.BILINEAR):
    """Enlarges an error map to the part of the image that it shows."""
    if fit != "crop":
        return levels if levels.size == size else levels.resize(size, resampling)
    left, top, right, bottom = (int(side) for side in source_box(size[0], size[1], fit))
    placed = Image.new("L", size)
    placed.paste(levels.resize((right - left, bottom - top), resampling), (left, top))
    return placed


def output_name(path: str) -> str:
    """Returns the path of an image's PNG file below error_maps/, overlays/ and masks/.

    `a/b.jpg` becomes `a/b.jpg.png`. Two images never share a name, and no name leads out of the folder: problematic
    characters are percent-encoded (%0A), and an overlong name is cut and ends in a digest of the complete name.
    """
    *folders, file = (_safe_name(name) for name in path.split("/") if name)
    # No folder is called . or .., or as the PNG file of another image may be.
    folders = [re.sub(r"\.(png)?$", r"%2E\1", name, flags=re.IGNORECASE) for name in folders]
    return "/".join([*folders, f"{file}.png"])


def thumbnail_name(path: str) -> str:
    """Returns the path of an image's thumbnail below the output folder: no name of a folder or image is in it."""
    return f"thumbnails/{blake2b(path.encode('utf-8', 'surrogateescape'), digest_size=8).hexdigest()}.jpg"


def _safe_name(name: str) -> str:
    unsafe = {c for c in name if c in '%<>:"|?*\\' or not c.isprintable()}
    name = "".join(quote(c, safe="", errors="surrogateescape") if c in unsafe else c for c in name)
    if len(name.encode()) > MAX_NAME_BYTES:
        digest = blake2b(name.encode(), digest_size=8).hexdigest()
        name = name.encode()[: MAX_NAME_BYTES - 17].decode(errors="ignore") + "~" + digest
    return name
