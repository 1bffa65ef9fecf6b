"""Figures of pictures side by side: input, reconstruction, where the error is.

A whole figure is one image with text over it: an axes for each picture takes many times as long.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from bigan_jax.errors import printable
from bigan_jax.plots import ANOMALOUS, INK, QUIET, error_map_rgb

# In inches: a picture's side, the gap to the next, a block's title, a column's head, a caption.
SIDE, GAP, TITLE, HEAD, CAPTION = 1.35, 0.06, 0.24, 0.48, 0.36
NEAT = 128  # pixels across a picture
EMPTY = 235  # the grey where there is no picture
LONGEST_NAME = 64


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
    limit: float  # what the brightest colour stands for
    unit: str = ""
    paint: Callable[[np.ndarray, float], UInt8[np.ndarray, "h w 3"]] = error_map_rgb


class _Block(NamedTuple):
    title: str
    columns: Sequence[_Column]
    rows: Sequence[GalleryRow]


def gallery(rows: Sequence[GalleryRow], vmax: float | Sequence[float]) -> Figure:
    """Input, reconstruction, squared error, 1 - SSIM, combined error and mask of some pictures.

    `vmax` fixes the colours of the error maps, on every row alike: one number, or one for each
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
) -> Figure:
    """The paper's Figs. 5 and 6: input, reconstruction and error map of normal pictures on the
    left, of anomalous ones, with their true mask, on the right. `vmax` is that of the combined
    error: one scale of colours for both."""
    columns = (*_PICTURES, _Column("combined", "error map", vmax, "score"))
    return _sheet(
        [
            _Block("Normal", columns, healthy),
            _Block("Anomalous", (*columns, _MASK), anomalous),
        ]
    )


def _grey(picture, limit):
    picture = np.squeeze(picture)
    picture = picture if picture.ndim == 3 else np.stack([picture] * 3, -1)
    return np.round(np.clip(picture / limit, 0, 1) * 255).astype(np.uint8)


_PICTURES = (
    _Column("image", "input", 1.0, "intensity", _grey),
    _Column("reconstruction", "reconstruction", 1.0, "intensity", _grey),
)
_MASK = _Column("mask", "true mask", 1.0, "", _grey)


def _sheet(blocks: Sequence[_Block]) -> Figure:
    """The blocks beside each other, each with a head of titles and colour bars over its rows."""
    pictures = [row.image for block in blocks for row in block.rows] or [np.zeros((64, 64))]
    # Small pictures are enlarged pixel by pixel, so that text and bars have room beside them.
    enlarged = max(1, round(NEAT / pictures[0].shape[1]))
    height, width = (enlarged * side for side in pictures[0].shape[:2])
    inch = width / SIDE  # in pixels
    across, down = width + GAP * inch, height + CAPTION * inch
    lefts = np.cumsum([GAP * inch] + [len(b.columns) * across + 3 * GAP * inch for b in blocks])
    most = max(1, *(len(block.rows) for block in blocks), 1)
    above = (TITLE * any(block.title for block in blocks) + HEAD) * inch
    size = above + most * down, lefts[-1] - 3 * GAP * inch
    # With an alpha channel Matplotlib takes the bytes as they are: half the time.
    canvas = np.full((*np.ceil(size).astype(int), 4), 255, np.uint8)
    figure = Figure(figsize=(canvas.shape[1] / inch, canvas.shape[0] / inch), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for block, left in zip(blocks, lefts, strict=False):
        axes.text(left, 0.04 * inch, block.title, fontsize=9, weight="bold", va="top", color=INK)
        for number, column in enumerate(block.columns):
            x = int(left + number * across)
            _head(axes, canvas, x, int(above), inch, column)
            for index, row in enumerate(block.rows):
                y = int(above + index * down)
                shown = getattr(row, column.field)
                cell = canvas[y : y + height, x : x + width, :3]
                cell[:] = EMPTY
                if shown is not None:
                    painted = column.paint(shown, column.limit)
                    cell[:] = painted.repeat(enlarged, 0).repeat(enlarged, 1)
        for index, row in enumerate(block.rows):
            y = above + index * down + height + 0.03 * inch
            _caption(axes, left, y, row)
        if not block.rows:
            axes.text(left, above, "none in the test", fontsize=8, va="top", color=QUIET)
    axes.imshow(canvas, aspect="auto", interpolation="bilinear")
    return figure


def _head(axes: Axes, canvas, x: int, foot: int, inch: float, column: _Column) -> None:
    """A column's title and, where its values have a size, the bar that says what a colour means."""
    width = int(SIDE * inch)
    axes.text(x + width / 2, foot - 0.36 * inch, column.title, fontsize=8, ha="center", color=INK)
    if not column.unit:
        return
    ramp = np.linspace(0, column.limit, width)[None]
    bar = slice(foot - int(0.3 * inch), foot - int(0.22 * inch))
    canvas[bar, x : x + width, :3] = column.paint(ramp, column.limit)
    small = {"y": foot - 0.2 * inch, "fontsize": 6, "va": "top", "color": QUIET}
    beyond = "≥ " if column.paint is error_map_rgb else ""
    axes.text(x, s="0", **small)
    axes.text(x + width, s=f"{beyond}{column.limit:.2g} ({column.unit})", ha="right", **small)


def _caption(axes: Axes, x: float, y: float, row: GalleryRow) -> None:
    right = row.label == row.decision
    truth, call = (("normal", "anomalous")[int(flag)] for flag in (row.label, row.decision))
    verdict = f"{truth}, called {call}" + ("" if right else ": wrong")
    axes.text(
        x, y, f"{_drawable(row.path)}\nscore {row.score:.4g}: {verdict}",
        fontsize=6.5, va="top", color=INK if right else ANOMALOUS,
        weight="normal" if right else "bold", parse_math=False,
    )  # fmt: skip


def _drawable(name: str) -> str:
    """A file name for a caption: harmless, within its width, without what the font lacks."""
    name = printable(name)
    if len(name) > LONGEST_NAME:  # ends tell pictures apart
        name = "…" + name[1 - LONGEST_NAME :]
    font = get_font(findfont(FontProperties()))
    return "".join(c if font.get_char_index(ord(c)) else "□" for c in name)
