"""The chart of a training run: losses by epoch."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bigan_jax.errors import printable
from bigan_jax.reports import charts
from bigan_jax.reports.charts import MUTED_COLOR, TEXT_COLOR

COLORS = (charts.NORMAL_COLOR, charts.ANOMALOUS_COLOR, charts.CALIBRATION_COLOR, "#CC79A7", TEXT_COLOR)
DASHES = ("-", "--", ":", "-.")
KEYS_WITHOUT_CURVE = ("epoch", "phase", "step", "seconds", "images_per_second")
MAX_COLUMNS = 2


def training_curves(train_log: Sequence[dict]) -> Figure:
    """Draws the rows of train.jsonl, a panel per objective ("encoder/mse" belongs to "encoder").

    A line joins the epochs that log its value. A value that is not a finite number leaves a gap. Every second phase
    is shaded. A cross on the axis marks an epoch with a health warning.
    """
    panels = _panels(train_log)
    columns = min(MAX_COLUMNS, max(len(panels), 1))
    rows = -(-len(panels) // columns) or 1
    size = (4.3 * columns if columns > 1 else 6.4, 2.6 * rows + 0.3)
    figure, all_axes = charts.new_figure(rows * columns, size, columns, top=0.5, legend=0.9)
    for axes, (panel, keys) in zip(all_axes, panels.items(), strict=False):
        for index, key in enumerate(keys):
            points = [(row["epoch"], row[key]) for row in train_log if key in row]
            axes.plot(
                [epoch for epoch, _ in points],
                [value if _is_number(value) else np.nan for _, value in points],
                label=printable(key.partition("/")[2] or key),
                color=COLORS[index % len(COLORS)],
                linestyle=DASHES[index % len(DASHES)],
                linewidth=1.4,
                # A value that is logged only every few epochs is a line through points.
                marker="." if len(points) < max(2, len(train_log) / 2) else None,
            )
        values = [row[key] for row in train_log for key in keys if _is_number(row.get(key))]
        if min(values) > 0 and max(values) > charts.LOG_SCALE_RATIO * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        _mark_epochs(axes, train_log)
        axes.set_title(printable(panel), fontsize=9)
        # The legend is outside the panel: inside, it would nearly always cover a line.
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1.05))
    for axes in all_axes[len(panels) :]:
        axes.axis("off")
    if panels:
        phases = ", ".join(f"{name} (epochs {first} to {last})" for name, first, last in _phases(train_log))
        legend = ". Cross: health warning" if any(row.get("health") for row in train_log) else ""
        figure.suptitle(printable(f"Phases: {phases}{legend}"), fontsize=8, color=MUTED_COLOR)
    else:
        charts.text_only(all_axes[0], "no training log")
    return figure


def _panels(train_log) -> dict[str, list[str]]:
    """The keys of numbers by objective, in the order of their first appearance."""
    panels = {}
    for key in dict.fromkeys(key for row in train_log for key, value in row.items() if _is_number(value)):
        if key not in KEYS_WITHOUT_CURVE:
            panels.setdefault(key.partition("/")[0] if "/" in key else "other", []).append(key)
    return panels


def _phases(train_log) -> list[tuple[str, int, int]]:
    """Name, first and last epoch of each phase."""
    groups = itertools.groupby(train_log, key=lambda row: row.get("phase"))
    phases = [(str(name), [row["epoch"] for row in rows]) for name, rows in groups]
    return [(name, epochs[0], epochs[-1]) for name, epochs in phases]


def _mark_epochs(axes: Axes, train_log) -> None:
    """Shades every second phase, marks health warnings, and sets the x axis."""
    for _, first, last in _phases(train_log)[1::2]:
        axes.axvspan(first - 0.5, last + 0.5, color=MUTED_COLOR, alpha=0.15, linewidth=0)
    if warned := [row["epoch"] for row in train_log if row.get("health")]:
        # An empty line without clipping has no bounds, and the layout collapses.
        style = {"color": TEXT_COLOR, "markersize": 4, "transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.plot(warned, np.zeros(len(warned)), "x", **style)
    axes.set_xlim(train_log[0]["epoch"] - 0.5, train_log[-1]["epoch"] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", fontsize=8)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
