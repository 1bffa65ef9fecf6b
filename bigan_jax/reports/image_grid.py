"""Grids of test images, drawn pixel by pixel with Pillow: Matplotlib takes ten times as long and blurs images."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image, ImageDraw, ImageFont

from bigan_jax.errors import printable
from bigan_jax.reports.charts import ANOMALOUS_COLOR, MUTED_COLOR, TEXT_COLOR, error_map_rgb

# In pixels: width of an image, gap between images, height of a block's title, a column's heading and a caption.
SIDE, GAP, TITLE, HEADING, CAPTION = 128, 6, 22, 46, 38
EMPTY_GRAY = 235  # where there is no image


class GalleryImage(NamedTuple):
    """A scored test image, as image grids and the report show it."""

    path: str
    label: bool  # True for anomalous
    defect_type: str
    score: float
    decision: bool
    image: UInt8[np.ndarray, "h w c"]
    reconstruction: UInt8[np.ndarray, "h w c"] | None  # None for detectors that do not reconstruct
    error_maps: Mapping[str, Float[np.ndarray, "h w"]]  # "mse", "ssim", "combined"
    mask: Bool[np.ndarray, "h w"] | None = None


class _Column(NamedTuple):
    title: str
    values: Callable[[GalleryImage], np.ndarray | None]
    limit: float  # the value of the brightest color
    unit: str = ""
    to_rgb: Callable[[np.ndarray, float], UInt8[np.ndarray, "h w 3"]] = error_map_rgb


class _Block(NamedTuple):
    title: str
    columns: Sequence[_Column]
    images: Sequence[GalleryImage]


def _gray(values, limit):
    values = np.squeeze(values)
    values = values if values.ndim == 3 else np.stack([values] * 3, -1)
    return np.round(np.clip(values / limit, 0, 1) * 255).astype(np.uint8)


_INPUT = _Column("input", lambda item: item.image / 255, 1.0, "intensity", _gray)
_RECONSTRUCTION = _Column("reconstruction", lambda item: item.reconstruction / 255, 1.0, "intensity", _gray)
_MASK = _Column("true mask", lambda item: item.mask, 1.0, "", _gray)


def error_map_grid(images: Sequence[GalleryImage], limits: Mapping[str, float]) -> "ImageSheet":
    """Draws a row per image: input, reconstruction, error maps and true mask.

    `limits` holds the error of the brightest color for each error map: "combined", and "mse" and "ssim" of detectors
    that reconstruct.
    """
    maps = [
        _Column(title, lambda item, name=name: item.error_maps[name], limits[name], unit)
        for name, title, unit in (("mse", "squared error", "intensity²"), ("ssim", "1 - SSIM", "at most 2"))
        if name in limits
    ]
    columns = *_inputs(images), *maps, _combined_error("combined", limits["combined"]), _MASK
    return _draw([_Block("", columns, images)])


def normal_and_anomalous_grid(
    normal: Sequence[GalleryImage], anomalous: Sequence[GalleryImage], limit: float
) -> "ImageSheet":
    """Draws normal images on the left and anomalous ones on the right: the paper's Figs. 5 and 6.

    Each row shows input, reconstruction and error map, and on the right the true mask. `limit` is the combined error
    of the brightest color on both sides.
    """
    columns = (*_inputs([*normal, *anomalous]), _combined_error("error map", limit))
    return _draw([_Block("Normal", columns, normal), _Block("Anomalous", (*columns, _MASK), anomalous)])


class ImageSheet:
    """A white canvas for images and text. Positions are pixels from the upper left corner."""

    def __init__(self, width: int, height: int):
        self.image = Image.new("RGB", (width, height), "white")
        self.texts: list[str] = []
        self._draw = ImageDraw.Draw(self.image)

    def paste(self, x: int, y: int, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Copies an image onto the sheet, with its upper left corner at (x, y)."""
        self.image.paste(Image.fromarray(image), (x, y))

    def write(
        self,
        x: float | int,
        y: float | int,
        text: str,
        size: int,
        anchor: str = "la",
        color: str = TEXT_COLOR,
        bold: bool = False,
        max_width: float | int = np.inf,
    ) -> None:
        """Writes one line of text, with an anchor of Pillow at (x, y).

        A text wider than `max_width` pixels loses its start: file names differ at their ends.
        """
        font = _font(size, bold)
        if font.getlength(text) > max_width:
            while text and font.getlength(f"…{text}") > max_width:
                text = text[1:]
            text = f"…{text}"
        self.texts.append(text)
        self._draw.text((x, y), text, color, font, anchor)


def _inputs(images):
    """The columns of input and reconstruction; without the latter for detectors that do not reconstruct."""
    return (_INPUT,) if any(item.reconstruction is None for item in images) else (_INPUT, _RECONSTRUCTION)


def _combined_error(title: str, limit: float) -> _Column:
    return _Column(title, lambda item: item.error_maps["combined"], limit, "score")


def _draw(blocks: Sequence[_Block]) -> ImageSheet:
    """Draws blocks next to each other, each with a row of headings above its images."""
    shapes = [item.image.shape for block in blocks for item in block.images] or [(64, 64)]
    # Small images are enlarged by a whole factor, to leave room for text and color bars.
    scale = max(1, round(SIDE / shapes[0][1]))
    height, width = (scale * side for side in shapes[0][:2])
    row_height, column_width = height + CAPTION, width + GAP
    block_widths = (len(block.columns) * column_width + 3 * GAP for block in blocks)
    lefts = list(itertools.accumulate(block_widths, initial=GAP))
    top = TITLE * any(block.title for block in blocks) + HEADING
    n_rows = max(1, *(len(block.images) for block in blocks), 1)
    sheet = ImageSheet(lefts[-1] - 3 * GAP, top + n_rows * row_height)
    for block, left in zip(blocks, lefts, strict=False):
        sheet.write(left, 4, block.title, 14, bold=True)
        for index, column in enumerate(block.columns):
            x = left + index * column_width
            _draw_heading(sheet, x, top, width, column)
            for row, item in enumerate(block.images):
                values = column.values(item)
                cell = np.full((height, width, 3), EMPTY_GRAY, np.uint8)
                if values is not None:
                    cell = column.to_rgb(values, column.limit).repeat(scale, 0).repeat(scale, 1)
                sheet.paste(x, top + row * row_height, cell)
        caption_width = len(block.columns) * column_width - GAP
        for row, item in enumerate(block.images):
            _draw_caption(sheet, left, top + row * row_height + height + 3, caption_width, item)
        if not block.images:
            sheet.write(left, top, "none in the test set", 12, color=MUTED_COLOR)
    return sheet


def _draw_heading(sheet: ImageSheet, x: int, bottom: int, width: int, column: _Column) -> None:
    """Draws a column's title and, if its values have a unit, a color bar."""
    sheet.write(x + width / 2, bottom - 43, column.title, 13, "ma")
    if not column.unit:
        return
    ramp = np.linspace(0, column.limit, width)[None].repeat(8, 0)
    sheet.paste(x, bottom - 26, column.to_rgb(ramp, column.limit))
    prefix = "≥ " if column.to_rgb is error_map_rgb else ""
    sheet.write(x, bottom - 15, "0", 10, color=MUTED_COLOR)
    sheet.write(x + width, bottom - 15, f"{prefix}{column.limit:.2g} ({column.unit})", 10, "ra", MUTED_COLOR)


def _draw_caption(sheet: ImageSheet, x: int, y: int, width: int, item: GalleryImage) -> None:
    correct = item.label == item.decision
    result = "anomalous" if item.label else "normal"
    result += ", at or above the threshold" if item.decision else ", below the threshold"
    color = TEXT_COLOR if correct else ANOMALOUS_COLOR
    for top, text in ((y, _drawable(item.path)), (y + 15, f"score {item.score:.4g}: {result}")):
        sheet.write(x, top, text, 11, color=color, bold=not correct, max_width=width)


def _drawable(name: str) -> str:
    """A file name without control characters and characters that the font lacks."""
    font = get_font(findfont(FontProperties()))
    return "".join(c if font.get_char_index(ord(c)) else "□" for c in printable(name))


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """A font of Matplotlib, which is present on every machine."""
    file = findfont(FontProperties(weight="bold" if bold else "normal"))
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)
