"""Error maps and overlays of new pictures, as PNG files of the pictures' own sizes."""

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

OPACITY = 0.8  # of the brightest error on an overlay; where there is no error, none
LONGEST_NAME = 200  # bytes of a file's or folder's name; file systems take 255


def write_overlays(
    contents: Mapping[str, bytes],
    names: Sequence[str],
    maps: Float[np.ndarray, "n h w"],
    limit: float,
    output: Path,
    window: bool = False,
) -> list[UnreadableFile]:
    """Writes an error map and an overlay of each picture, as `paint` makes them, to error_maps/ and
    overlays/ of `output`; those that cannot be drawn come back.

    contents: the files' bytes, by name. window: whether pictures are shown stretched, as the
      networks see them.
    """

    def draw_one(i: int) -> UnreadableFile | None:
        name = names[i]
        made = try_read(
            name,
            lambda: overlay(read_full_size(io.BytesIO(contents[name]), window), maps[i], limit),
        )
        if isinstance(made, UnreadableFile):
            return made
        for kind, picture in zip(("error_maps", "overlays"), made, strict=True):
            path = output / kind / output_name(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, compress_level=3)  # more takes longer for little
        return None

    return [broken for broken in map_in_threads(draw_one, range(len(names)), "drawings") if broken]


def overlay(
    picture: Image.Image, errors: Float[np.ndarray, "h w"], limit: float
) -> tuple[Image.Image, Image.Image]:
    """An error map in colors, and the same laid over the picture, both of the picture's size.

    limit: the error that is as bright as it gets; as in every figure, that of the calibration
    normals. The higher the error, the less of the picture is left to be seen.
    """
    level = Image.fromarray(error_levels(errors, limit))
    if level.size != picture.size:
        level = level.resize(picture.size, Image.Resampling.BILINEAR)
    colored = level.copy()
    colored.putpalette(ERROR_PALETTE.tobytes())
    opacity = level.point([round(OPACITY * value) for value in range(256)])
    return colored, Image.composite(colored.convert("RGB"), picture.convert("RGB"), opacity)


def output_name(path: str) -> str:
    """Where below error_maps/ and overlays/ the PNG of a picture lies: `a/b.jpg` in `a/b.jpg.png`.

    No two pictures share a name, and none leads out: what file systems or terminals may take amiss
    is written as in a web address (%0A), and an overlong name ends in a digest of its own.
    """
    *folders, file = (_harmless(part) for part in path.split("/") if part)
    # A folder is neither . nor .., nor called as the PNG of another picture may be.
    folders = [re.sub(r"\.(png)?$", r"%2E\1", part, flags=re.IGNORECASE) for part in folders]
    return "/".join([*folders, f"{file}.png"])


def _harmless(part: str) -> str:
    name = "".join(
        quote(c, safe="", errors="surrogateescape")
        if c in '%<>:"|?*\\' or not c.isprintable()
        else c
        for c in part
    )
    if len(name.encode()) > LONGEST_NAME:
        digest = blake2b(name.encode(), digest_size=8).hexdigest()
        name = name.encode()[: LONGEST_NAME - 17].decode(errors="ignore") + "~" + digest
    return name
