"""Figures of pictures side by side: input, reconstruction, where the error is.

They are drawn pixel by pixel by Pillow: Matplotlib takes ten times as long, and blurs them.
"""

import io
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image, ImageDraw, ImageFont

from bigan_jax.errors import printable
from bigan_jax.reports.charts import ANOMALOUS, INK, QUIET, error_map_rgb

# In pixels: a picture's side, the gap to the next, a block's title, a column's head, a caption.
SIDE, GAP, TITLE, HEAD, CAPTION = 128, 6, 22, 46, 38
EMPTY = 235  # the gray where there is no picture


class GalleryRow(NamedTuple):
    """One test picture: images [h w] or [h w 3] in [0, 1], maps [h w] >= 0."""

    path: str
    score: float
    decision: bool
    label: bool
    image: np.ndarray
    reconstruction: np.ndarray
    squared_error: np.ndarray
    ssim_error: np.ndarray
    combined: np.ndarray
    mask: np.ndarray | None = None


class _Column(NamedTuple):
    field: str
    title: str
    limit: float  # what the brightest color stands for
    unit: str = ""
    paint: Callable[[np.ndarray, float], UInt8[np.ndarray, "h w 3"]] = error_map_rgb


class _Block(NamedTuple):
    title: str
    columns: Sequence[_Column]
    rows: Sequence[GalleryRow]


def gallery(rows: Sequence[GalleryRow], vmax: float | Sequence[float]) -> "ImageSheet":
    """Input, reconstruction, squared error, 1 - SSIM, combined error and mask of some pictures.

    `vmax` fixes the colors of the error maps, on every row alike: one number, or one for each
    of squared error, 1 - SSIM and combined, whose sizes differ a hundredfold.
    """
    squared, ssim, combined = (float(limit) for limit in np.broadcast_to(vmax, 3))
    maps = (
        _Column("squared_error", "squared error", squared, "intensity²"),
        _Column("ssim_error", "1 - SSIM", ssim, "at most 2"),
        _Column("combined", "combined", combined, "score"),
    )
    return _sheet([_Block("", (*_PICTURES, *maps, _MASK), rows)])


def healthy_and_anomalous(
    healthy: Sequence[GalleryRow], anomalous: Sequence[GalleryRow], vmax: float
) -> "ImageSheet":
    """The paper's Figs. 5 and 6: input, reconstruction and error map of normal pictures on the
    left, of anomalous ones, with their true mask, on the right. `vmax` is that of the combined
    error: one scale of colors for both."""
    columns = (*_PICTURES, _Column("combined", "error map", vmax, "score"))
    return _sheet(
        [
            _Block("Normal", columns, healthy),
            _Block("Anomalous", (*columns, _MASK), anomalous),
        ]
    )


def _gray(picture, limit):
    picture = np.squeeze(picture)
    picture = picture if picture.ndim == 3 else np.stack([picture] * 3, -1)
    return np.round(np.clip(picture / limit, 0, 1) * 255).astype(np.uint8)


_PICTURES = (
    _Column("image", "input", 1.0, "intensity", _gray),
    _Column("reconstruction", "reconstruction", 1.0, "intensity", _gray),
)
_MASK = _Column("mask", "true mask", 1.0, "", _gray)


class ImageSheet:
    """White paper for pictures and words; places are pixels from its upper left corner."""

    def __init__(self, width: int, height: int):
        self.image = Image.new("RGB", (width, height), "white")
        self.words: list[str] = []
        self._pen = ImageDraw.Draw(self.image)

    def paste(self, x: int, y: int, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        self.image.paste(Image.fromarray(picture), (x, y))

    def write(
        self,
        x: float,
        y: float,
        words: str,
        size: int,
        anchor: str = "la",
        color: str = INK,
        bold: bool = False,
        room: float = np.inf,
    ) -> None:
        """Writes one line. anchor: Pillow's. room: its width; what is too long loses its start,
        since ends tell file names apart."""
        font = _font(size, bold)
        if font.getlength(words) > room:
            while words and font.getlength(f"…{words}") > room:
                words = words[1:]
            words = f"…{words}"
        self.words.append(words)
        self._pen.text((x, y), words, color, font, anchor)

    def png(self) -> bytes:
        """The bytes of a PNG file."""
        stream = io.BytesIO()
        self.image.save(stream, "PNG", compress_level=3)
        return stream.getvalue()


def _sheet(blocks: Sequence[_Block]) -> ImageSheet:
    """The blocks beside each other, each with a head of titles and color bars over its rows."""
    pictures = [row.image for block in blocks for row in block.rows] or [np.zeros((64, 64))]
    # Small pictures are enlarged pixel by pixel, so that words and bars have room beside them.
    enlarged = max(1, round(SIDE / pictures[0].shape[1]))
    height, width = (enlarged * side for side in pictures[0].shape[:2])
    lefts = [GAP]
    for block in blocks:
        lefts.append(lefts[-1] + len(block.columns) * (width + GAP) + 3 * GAP)
    above = TITLE * any(block.title for block in blocks) + HEAD
    most = max(1, *(len(block.rows) for block in blocks), 1)
    sheet = ImageSheet(lefts[-1] - 3 * GAP, above + most * (height + CAPTION))
    for block, left in zip(blocks, lefts, strict=False):
        sheet.write(left, 4, block.title, 14, bold=True)
        for number, column in enumerate(block.columns):
            x = left + number * (width + GAP)
            _head(sheet, x, above, width, column)
            for index, row in enumerate(block.rows):
                shown = getattr(row, column.field)
                if shown is None:
                    cell = np.full((height, width, 3), EMPTY, np.uint8)
                else:
                    painted = column.paint(shown, column.limit)
                    cell = painted.repeat(enlarged, 0).repeat(enlarged, 1)
                sheet.paste(x, above + index * (height + CAPTION), cell)
        room = len(block.columns) * (width + GAP) - GAP
        for index, row in enumerate(block.rows):
            _caption(sheet, left, above + index * (height + CAPTION) + height + 3, room, row)
        if not block.rows:
            sheet.write(left, above, "none in the test", 12, color=QUIET)
    return sheet


def _head(sheet: ImageSheet, x: int, foot: int, width: int, column: _Column) -> None:
    """A column's title and, where its values have a size, the bar that says what a color means."""
    sheet.write(x + width / 2, foot - 43, column.title, 13, "ma")
    if not column.unit:
        return
    ramp = np.linspace(0, column.limit, width)[None].repeat(8, 0)
    sheet.paste(x, foot - 26, column.paint(ramp, column.limit))
    beyond = "≥ " if column.paint is error_map_rgb else ""
    most = f"{beyond}{column.limit:.2g} ({column.unit})"
    sheet.write(x, foot - 15, "0", 10, color=QUIET)
    sheet.write(x + width, foot - 15, most, 10, "ra", QUIET)


def _caption(sheet: ImageSheet, x: int, y: int, room: int, row: GalleryRow) -> None:
    right = row.label == row.decision
    truth, call = (("normal", "anomalous")[int(flag)] for flag in (row.label, row.decision))
    verdict = f"{truth}, called {call}" + ("" if right else ": wrong")
    look = {"size": 11, "color": INK if right else ANOMALOUS, "bold": not right, "room": room}
    sheet.write(x, y, _drawable(row.path), **look)
    sheet.write(x, y + 15, f"score {row.score:.4g}: {verdict}", **look)


def _drawable(name: str) -> str:
    """A file name for a caption: harmless, and without what the font lacks."""
    font = get_font(findfont(FontProperties()))
    return "".join(c if font.get_char_index(ord(c)) else "□" for c in printable(name))


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """Matplotlib's own, so that it is there on every machine."""
    file = findfont(FontProperties(weight="bold" if bold else "normal"))
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)
