"""The chart of a training: losses by epoch."""

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bigan_jax.errors import printable
from bigan_jax.reports.charts import (
    ANOMALOUS,
    CALIBRATION,
    INK,
    LOG_FROM,
    NORMAL,
    QUIET,
    new_figure,
    text_only,
)

COLORS = (NORMAL, ANOMALOUS, CALIBRATION, "#CC79A7", INK)
DASHES = ("-", "--", ":", "-.")
LOG_KEYS = ("epoch", "phase", "step", "seconds", "images_per_second")
PANELS_ACROSS = 2


def training_curves(history: Sequence[dict]) -> Figure:
    """One panel for each objective ("reconstruction/mse" belongs to "reconstruction").

    `history` holds the rows of train.jsonl. A line joins the epochs that log its value; one that
    is not a finite number is a gap. Every second phase is shaded, and a cross on the axis marks
    an epoch in which the health check warned.
    """
    panels = _panels(history)
    across = min(PANELS_ACROSS, max(len(panels), 1))
    down = -(-len(panels) // across) or 1
    size = (4.3 * across if across > 1 else 6.4, 2.6 * down + 0.3)
    figure, frames = new_figure(down * across, size, across, above=0.5, legend=0.9)
    for axes, (panel, keys) in zip(frames, panels.items(), strict=False):
        for number, key in enumerate(keys):
            points = [(row["epoch"], row[key]) for row in history if key in row]
            axes.plot(
                [epoch for epoch, _ in points],
                [value if _is_number(value) else np.nan for _, value in points],
                label=printable(key.partition("/")[2] or key),
                color=COLORS[number % len(COLORS)],
                linestyle=DASHES[number % len(DASHES)],
                linewidth=1.4,
                # What is logged every few epochs only is a line through points.
                marker="." if len(points) < max(2, len(history) / 2) else None,
            )
        shown = [row[key] for row in history for key in keys if _is_number(row.get(key))]
        if min(shown) > 0 and max(shown) > LOG_FROM * min(shown):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        _mark_epochs(axes, history)
        axes.set_title(printable(panel), fontsize=9)
        # Beside the panel: within it there is hardly a place that no line crosses.
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1.05))
    for axes in frames[len(panels) :]:
        axes.axis("off")
    if panels:
        phases = [f"{name} (epochs {first} to {last})" for name, first, last in _phases(history)]
        words = "Phases: " + ", ".join(phases)
        if any(row.get("health") for row in history):
            words += ". Cross: the health check warned"
        figure.suptitle(printable(words), fontsize=8, color=QUIET)
    else:
        text_only(frames[0], "no training log")
    return figure


def _panels(history) -> dict[str, list[str]]:
    """The keys of numbers, by objective, in the order in which they appear."""
    found = (k for row in history for k, v in row.items() if k not in LOG_KEYS and _is_number(v))
    panels = {}
    for key in dict.fromkeys(found):
        panels.setdefault(key.partition("/")[0] if "/" in key else "other", []).append(key)
    return panels


def _phases(history) -> list[tuple[str, int, int]]:
    """Name, first and last epoch of each phase."""
    runs = itertools.groupby(history, key=lambda row: row.get("phase"))
    rows = [(name, list(part)) for name, part in runs]
    return [(str(name), part[0]["epoch"], part[-1]["epoch"]) for name, part in rows]


def _mark_epochs(axes: Axes, history) -> None:
    for _, first, last in _phases(history)[1::2]:
        axes.axvspan(first - 0.5, last + 0.5, color=QUIET, alpha=0.15, linewidth=0)
    if warned := [row["epoch"] for row in history if row.get("health")]:
        # An empty line without clipping has no bounds, and the layout collapses.
        at_the_foot = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot(warned, np.zeros(len(warned)), "x", color=INK, markersize=4, **at_the_foot)
    axes.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", fontsize=8)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
