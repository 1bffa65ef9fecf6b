"""The chart of a training run: losses by epoch."""

import itertools
import math
import textwrap
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
POINTS_PER_INCH = 72
_LEGEND_COLUMNS, _LEGEND_ROW = 2, 0.17  # inches
KEYS_WITHOUT_CURVE = ("epoch", "phase", "step", "seconds", "images_per_second")


def training_curves(train_log: Sequence[dict]) -> Figure:
    """Draws the rows of train.jsonl, a panel per objective ("encoder/mse" belongs to "encoder").

    A line joins the epochs that log its value. A value that is not a finite number leaves a gap. Every second phase
    is shaded. A cross on the axis marks an epoch with a health warning.
    """
    panels = _panels(train_log)
    rows = len(panels) or 1
    legend_height = _LEGEND_ROW * max([-(-len(keys) // _LEGEND_COLUMNS) for keys in panels.values()], default=0)
    top, gap = 0.65 + legend_height, 0.8 + legend_height
    size = charts.WIDTH, rows * (1.7 + gap) + top
    figure, all_axes = charts.new_figure(rows, size, top, gap)
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
        axes.set_title(printable(panel), fontsize=10, loc="left", pad=POINTS_PER_INCH * (legend_height + 0.06))
        # The legend is above the panel: inside, it would nearly always cover a line.
        axes.legend(
            frameon=False, fontsize=8, ncols=_LEGEND_COLUMNS, loc="lower left", bbox_to_anchor=(-0.02, 0.98),
            borderpad=0.2, handlelength=1.6, columnspacing=1,
        )  # fmt: skip
    if panels:
        phases = ", ".join(f"{name} (epochs {first} to {last})" for name, first, last in _phases(train_log))
        marks = ". Cross: health warning" if any(row.get("health") for row in train_log) else ""
        text = textwrap.fill(printable(f"Phases: {phases}{marks}"), 64, max_lines=2, placeholder=" …")
        figure.suptitle(text, fontsize=8, color=MUTED_COLOR)
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
