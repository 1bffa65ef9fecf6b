"""The charts of a run. Each function returns a Matplotlib Figure; `to_png` turns it to bytes.

Figures are made without pyplot, so nothing global is touched and threads do not meet. Normal is
blue and anomalous vermillion (Okabe and Ito's colour-blind-safe pair), told apart by hatching,
dashes and shape too, so that a grey print stays readable.
"""

import io
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import precision_recall_curve as precision_recall_points
from sklearn.metrics import roc_curve as roc_points

from bigan_jax.errors import printable
from bigan_jax.metrics import decide

NORMAL, ANOMALOUS, CALIBRATION, INK, QUIET = "#0072B2", "#D55E00", "#009E73", "#222222", "#6E6E6E"
COLOURS = (NORMAL, ANOMALOUS, CALIBRATION, "#CC79A7", INK)
DASHES = ("-", "--", ":", "-.")
Band = tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"], Float[np.ndarray, "k"]]  # x, low, high
ERROR_COLOURS = "magma"
LOG_KEYS = ("epoch", "phase", "step", "seconds", "images_per_second")
PANELS_ACROSS = 2
FEWEST_BINS, MOST_BINS = 8, 40
LOG_FROM = 30  # values that span more than this factor get a logarithmic axis
FAINT_FROM = 100  # more calibration ticks than this are drawn fainter, since they overlap


def to_png(figure: Figure) -> bytes:
    """The figure as PNG bytes, the same for the same figure (no date, no version inside)."""
    stream = io.BytesIO()
    # Stronger compression takes three times as long for a tenth less.
    options = {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 3}}
    figure.savefig(stream, format="png", dpi=150, **options)
    return stream.getvalue()


def error_map_rgb(errors: Float[np.ndarray, "h w"], vmax: float) -> UInt8[np.ndarray, "h w 3"]:
    """An error map in perceptually uniform colours: black at 0, pale yellow from `vmax` on.

    `vmax` comes from the calibration normals, so that a colour means one thing on every picture.
    """
    scaled = np.clip(np.asarray(errors, np.float64) / max(vmax, np.finfo(np.float64).tiny), 0, 1)
    return colormaps[ERROR_COLOURS](scaled, bytes=True)[..., :3]


def score_histogram(
    normal: Float[np.ndarray, "n"],
    anomalous: Float[np.ndarray, "a"],
    calibration: Float[np.ndarray, "c"],
    threshold: float | None,
) -> Figure:
    """Scores of the test pictures by class, the calibration normals as ticks, the threshold.

    Any of the three may be empty. Bars are shares of their class: the classes differ in size.
    """
    figure, (axes,) = _figure(1, (6.4, 3.6))
    everything = np.concatenate([normal, anomalous, calibration]).astype(np.float64)
    if not everything.size:
        _say(axes, "no scores")
        return figure
    bins = _bins(everything)
    for name, scores, colour, hatch in (
        ("normal", normal, NORMAL, None),
        ("anomalous", anomalous, ANOMALOUS, "////"),
    ):
        if len(scores):
            axes.hist(
                scores, bins, weights=np.full(len(scores), 1 / len(scores)), label=f"{name} test "
                f"pictures ({len(scores)})", histtype="stepfilled", facecolor=(colour, 0.3),
                edgecolor=colour, hatch=hatch,
            )  # fmt: skip
    if len(calibration):
        axes.plot(
            calibration, np.full(len(calibration), -0.03), "|", color=CALIBRATION, clip_on=False,
            alpha=max(0.1, min(1, FAINT_FROM / len(calibration))),
            transform=axes.get_xaxis_transform(), label=f"calibration normals ({len(calibration)})",
        )  # fmt: skip
    if threshold is not None:
        axes.axvline(threshold, color=INK, linestyle="--", label=f"threshold {threshold:.4g}")
    if not np.allclose(np.diff(bins), bins[1] - bins[0]):
        axes.set_xscale("log")
    axes.tick_params(axis="x", which="both", pad=9)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.set(xlabel="anomaly score", ylabel="share of the class")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def roc_curve(
    score: Float[np.ndarray, "n"],
    label: Bool[np.ndarray, "n"],
    threshold: float | None,
    band: Band | None = None,
) -> Figure:
    """The ROC curve with the threshold's point and a 95 % band of recall over false-alarm rates;
    an empty frame that says why with one class."""
    figure, (axes,) = _figure(1, (4.2, 4.2))
    axes.set(xlabel="false-alarm rate (1 - specificity)", ylabel="recall")
    if _frame(axes, label):
        axes.plot([0, 1], [0, 1], color=QUIET, linestyle=":", label="chance")
        _shade(axes, band)
        alarms, recall, _ = roc_points(label, score)
        axes.plot(alarms, recall, color=NORMAL, linewidth=2, label="this model")
        if threshold is not None:
            called = decide(score, threshold)
            _mark(axes, called[~label].mean(), called[label].mean())
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def precision_recall_curve(
    score: Float[np.ndarray, "n"],
    label: Bool[np.ndarray, "n"],
    threshold: float | None,
    band: Band | None = None,
) -> Figure:
    """Precision over recall with the threshold's point, a 95 % band of precision over recalls,
    and the prevalence, which is chance."""
    figure, (axes,) = _figure(1, (4.2, 4.2))
    axes.set(xlabel="recall", ylabel="precision")
    if _frame(axes, label):
        prevalence = float(np.mean(label))
        axes.axhline(prevalence, color=QUIET, linestyle=":", label=f"chance ({prevalence:.2f})")
        _shade(axes, band)
        precision, recall, _ = precision_recall_points(label, score)
        axes.step(recall, precision, where="post", color=NORMAL, linewidth=2, label="this model")
        called = None if threshold is None else decide(score, threshold)
        if called is not None and called.any():
            _mark(axes, called[label].mean(), label[called].mean())
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def training_curves(history: Sequence[dict]) -> Figure:
    """One panel for each objective ("reconstruction/mse" belongs to "reconstruction").

    `history` holds the rows of train.jsonl. A line joins the epochs that log its value; one that
    is not a finite number is a gap. Every second phase is shaded, and a cross on the axis marks
    an epoch in which the health check warned.
    """
    panels = _panels(history)
    across = min(PANELS_ACROSS, max(len(panels), 1))
    down = -(-len(panels) // across) or 1
    figure, frames = _figure(down * across, (3.4 * across, 2.6 * down + 0.2), across)
    for axes, (panel, keys) in zip(frames, panels.items(), strict=False):
        for number, key in enumerate(keys):
            points = [(row["epoch"], row[key]) for row in history if key in row]
            axes.plot(
                [epoch for epoch, _ in points],
                [value if _is_number(value) else np.nan for _, value in points],
                label=printable(key.partition("/")[2] or key),
                color=COLOURS[number % len(COLOURS)],
                linestyle=DASHES[number % len(DASHES)],
                linewidth=1.4,
                # What is logged every few epochs only is a line through points.
                marker="." if len(points) < max(2, len(history) / 2) else None,
            )
        shown = [row[key] for row in history for key in keys if _is_number(row.get(key))]
        if min(shown) > 0 and max(shown) > LOG_FROM * min(shown):
            axes.set_yscale("log")
        _mark_epochs(axes, history)
        axes.set_title(printable(panel), fontsize=9)
        axes.legend(frameon=False, fontsize=7)
    for axes in frames[len(panels) :]:
        axes.axis("off")
    if panels:
        phases = [f"{name} (epochs {first} to {last})" for name, first, last in _phases(history)]
        words = "Phases: " + ", ".join(phases)
        if any(row.get("health") for row in history):
            words += ". Cross: the health check warned"
        figure.suptitle(printable(words), fontsize=8, color=QUIET)
    else:
        _say(frames[0], "no training log")
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
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("epoch", fontsize=8)


def _bins(values):
    low, high = values.min(), values.max()
    count = int(np.clip(2 * np.sqrt(len(values)), FEWEST_BINS, MOST_BINS))
    if low > 0 and high > LOG_FROM * np.median(values):
        return np.geomspace(low, high, count + 1)
    around = 0 if high > low else 0.1 * abs(low) or 0.5
    return np.linspace(low - around, high + around, count + 1)


def _figure(count: int, size: tuple[float, float], across: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    frames = list(figure.subplots(-(-count // across), across, squeeze=False).flat)
    for axes in frames:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure, frames


def _frame(axes: Axes, label) -> bool:
    """A unit square; False, with a word to the reader, where there is no curve to draw."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    if label.any() and not label.all():
        return True
    _say(axes, "needs normal and anomalous\ntest pictures")
    return False


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.55, text, ha="center", fontsize=9, transform=axes.transAxes)


def _mark(axes: Axes, x: float, y: float) -> None:
    axes.plot(
        x, y, "o", color=ANOMALOUS, markeredgecolor="white", markersize=9, clip_on=False,
        zorder=5, label="at the threshold",
    )  # fmt: skip


def _shade(axes: Axes, band: Band | None) -> None:
    if band is not None:
        axes.fill_between(*band, color=NORMAL, alpha=0.2, linewidth=0, label="95 % band")


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
