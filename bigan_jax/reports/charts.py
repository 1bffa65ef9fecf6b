"""The charts of an evaluation: functions that return a Matplotlib Figure; `to_png` makes it bytes.

Figures are made without pyplot, so nothing global is touched and threads do not meet. Normal is
blue and anomalous vermillion (Okabe and Ito's color-blind-safe pair), told apart by hatching,
dashes and shape too, so that a gray print stays readable.
"""

import io

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import precision_recall_curve as precision_recall_points
from sklearn.metrics import roc_curve as roc_points

from bigan_jax.metrics.thresholds import decide

NORMAL, ANOMALOUS, CALIBRATION, INK, QUIET = "#0072B2", "#D55E00", "#009E73", "#222222", "#6E6E6E"
Band = tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"], Float[np.ndarray, "k"]]  # x, low, high
ERROR_PALETTE = colormaps["magma"](np.arange(256), bytes=True)[:, :3]
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


def error_levels(errors: Float[np.ndarray, "h w"], vmax: float) -> UInt8[np.ndarray, "h w"]:
    """An error map in 256 steps from 0 to `vmax`, places in ERROR_PALETTE."""
    scaled = np.asarray(errors, np.float64) / max(vmax, np.finfo(np.float64).tiny)
    return np.clip(256 * scaled, 0, 255).astype(np.uint8)


def error_map_rgb(errors: Float[np.ndarray, "h w"], vmax: float) -> UInt8[np.ndarray, "h w 3"]:
    """An error map in perceptually uniform colors: black at 0, pale yellow from `vmax` on.

    `vmax` comes from the calibration normals, so that a color means one thing on every picture.
    """
    return ERROR_PALETTE[error_levels(errors, vmax)]


def score_histogram(
    normal: Float[np.ndarray, "n"],
    anomalous: Float[np.ndarray, "a"],
    calibration: Float[np.ndarray, "c"],
    threshold: float | None,
) -> Figure:
    """Scores of the test pictures by class, the calibration normals as ticks, the threshold.

    Any of the three may be empty. Bars are shares of their class: the classes differ in size.
    """
    figure, (axes,) = new_figure(1, (6.4, 3.6), above=0.5)
    everything = np.concatenate([normal, anomalous, calibration]).astype(np.float64)
    if not everything.size:
        text_only(axes, "no scores")
        return figure
    bins = _bins(everything)
    for name, scores, color, hatch in (
        ("normal", normal, NORMAL, None),
        ("anomalous", anomalous, ANOMALOUS, "////"),
    ):
        if len(scores):
            axes.hist(
                scores, bins, weights=np.full(len(scores), 1 / len(scores)), label=f"{name} test "
                f"pictures ({len(scores)})", histtype="stepfilled", facecolor=(color, 0.3),
                edgecolor=color, hatch=hatch,
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
        axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", pad=9)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # 17.5 % has no room
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
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
    figure, (axes,) = new_figure(1, (4.2, 4.2))
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
    figure, (axes,) = new_figure(1, (4.2, 4.2))
    axes.set(xlabel="recall", ylabel="precision")
    if _frame(axes, label):
        prevalence = float(np.mean(label))
        axes.axhline(prevalence, color=QUIET, linestyle=":", label=f"chance ({prevalence:.2f})")
        _shade(axes, band)
        precision, recall, _ = precision_recall_points(label, score)
        found = recall > 0  # without any, precision is 0, or 1 by scikit-learn's convention
        look = {"where": "post", "color": NORMAL, "linewidth": 2, "label": "this model"}
        axes.step(recall[found], precision[found], **look)
        called = None if threshold is None else decide(score, threshold)
        if called is not None and called.any():
            _mark(axes, called[label].mean(), label[called].mean())
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def _bins(values):
    low, high = values.min(), values.max()
    count = int(np.clip(2 * np.sqrt(len(values)), FEWEST_BINS, MOST_BINS))
    if low > 0 and high > LOG_FROM * np.median(values):
        return np.geomspace(low, high, count + 1)
    around = 0 if high > low else 0.1 * abs(low) or 0.5
    return np.linspace(low - around, high + around, count + 1)


def new_figure(
    count: int,
    size: tuple[float, float],
    across: int = 1,
    above: float = 0.15,
    legend: float = 0.0,
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` axes; `above` is left free over them, `legend` to the right of each, all
    in inches.

    Room for ticks and titles is set aside: Matplotlib's own layout draws all texts three times.
    """
    width, height = size
    down = -(-count // across)
    beside, below, between = 0.7, 0.52, 0.75
    wide = (width - 0.15 - across * (beside + legend)) / across
    high = (height - above - below - (down - 1) * between) / down
    room = {"left": beside / width, "right": 1 - (0.15 + legend) / width}
    room |= {"wspace": (beside + legend) / wide}
    room |= {"bottom": below / height, "top": 1 - above / height, "hspace": between / high}
    figure = Figure(figsize=size, facecolor="white")
    frames = list(figure.subplots(down, across, squeeze=False, gridspec_kw=room).flat)
    for axes in frames:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure, frames


def _frame(axes: Axes, label) -> bool:
    """A unit square; False, with a word to the reader, where there is no curve to draw."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    if label.any() and not label.all():
        return True
    text_only(axes, "needs normal and anomalous\ntest pictures")
    return False


def text_only(axes: Axes, text: str) -> None:
    """Words in an empty frame."""
    axes.text(0.5, 0.55, text, ha="center", fontsize=9, transform=axes.transAxes)


def _mark(axes: Axes, x: float, y: float) -> None:
    axes.plot(
        x, y, "o", color=ANOMALOUS, markeredgecolor="white", markersize=9, clip_on=False,
        zorder=5, label="at the threshold",
    )  # fmt: skip


def _shade(axes: Axes, band: Band | None) -> None:
    if band is not None:
        axes.fill_between(*band, color=NORMAL, alpha=0.2, linewidth=0, label="95 % band")
