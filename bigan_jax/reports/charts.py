"""The charts of an evaluation as Matplotlib figures, and their conversion to PNG, SVG and colors.

Figures are made without pyplot, so that no global state changes and threads are independent. Normal is blue and
anomalous is vermillion (the color-blind-safe palette of Okabe and Ito). Hatches, dashes and shapes separate them too,
so that a grayscale print stays readable. Figures are at most WIDTH inches wide, so that a phone shows their text at a
readable size.
"""

import io

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bigan_jax.metrics.thresholds import decide

NORMAL_COLOR, ANOMALOUS_COLOR, CALIBRATION_COLOR = "#0072B2", "#D55E00", "#009E73"
TEXT_COLOR, MUTED_COLOR = "#222222", "#6E6E6E"
Band = tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"], Float[np.ndarray, "k"]]  # x, low, high
ERROR_PALETTE = colormaps["magma"](np.arange(256), bytes=True)[:, :3]
WIDTH = 4.4  # inches
FONT_SIZE = 9  # points, of ticks and legends
MIN_BINS, MAX_BINS = 8, 40
LOG_SCALE_RATIO = 30  # values that span more than this factor get a logarithmic axis
MAX_OPAQUE_TICKS = 100  # more calibration ticks than this overlap and are drawn fainter


def to_png(figure: Figure) -> bytes:
    """Encodes a figure as PNG. The bytes are reproducible: they hold no date and no version."""
    stream = io.BytesIO()
    # Stronger compression takes three times as long and saves a tenth of the size.
    pil_kwargs = {"compress_level": 3}
    figure.savefig(stream, format="png", dpi=150, metadata={"Software": None}, pil_kwargs=pil_kwargs)
    return stream.getvalue()


def to_svg(figure: Figure) -> bytes:
    """Encodes a figure as SVG, with text as shapes that look the same without its font.

    The bytes are reproducible: names of elements come from a fixed salt, and there is no date.
    """
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "bigan_jax"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def error_levels(errors: Float[np.ndarray, "h w"], vmax: float) -> UInt8[np.ndarray, "h w"]:
    """Quantizes an error map to 256 levels from 0 to `vmax`, which are indices of ERROR_PALETTE."""
    scaled = np.asarray(errors, np.float64) / max(vmax, np.finfo(np.float64).tiny)
    return np.clip(256 * scaled, 0, 255).astype(np.uint8)


def error_map_rgb(errors: Float[np.ndarray, "h w"], vmax: float) -> UInt8[np.ndarray, "h w 3"]:
    """Colors an error map on a perceptually uniform scale, from black (0) to pale yellow (`vmax`).

    `vmax` is computed from the calibration images, so that a color means the same on every image.
    """
    return ERROR_PALETTE[error_levels(errors, vmax)]


def score_histogram(
    normal: Float[np.ndarray, "n"],
    anomalous: Float[np.ndarray, "a"],
    calibration: Float[np.ndarray, "c"],
    threshold: float | None,
) -> Figure:
    """Draws the scores of test images by class, those of calibration images, and the threshold.

    Bars are fractions of their class, since the classes differ in size. Calibration scores are ticks below the axis.
    Any of the three arrays may be empty.
    """
    figure, (axes,) = new_figure(1, (WIDTH, 4.0), top=0.95)
    all_scores = np.concatenate([normal, anomalous, calibration]).astype(np.float64)
    if not all_scores.size:
        text_only(axes, "no scores")
        return figure
    bins = _bins(all_scores)
    for name, scores, color, hatch in (
        ("normal", normal, NORMAL_COLOR, None),
        ("anomalous", anomalous, ANOMALOUS_COLOR, "////"),
    ):
        if len(scores):
            axes.hist(
                scores, bins, weights=np.full(len(scores), 1 / len(scores)), label=f"{name} test "
                f"images ({len(scores)})", histtype="stepfilled", facecolor=(color, 0.3),
                edgecolor=color, hatch=hatch,
            )  # fmt: skip
    if len(calibration):
        axes.plot(
            calibration, np.full(len(calibration), -0.03), "|", color=CALIBRATION_COLOR,
            clip_on=False, alpha=max(0.1, min(1, MAX_OPAQUE_TICKS / len(calibration))),
            transform=axes.get_xaxis_transform(), label=f"calibration images ({len(calibration)})",
        )  # fmt: skip
    if threshold is not None:
        axes.axvline(threshold, color=TEXT_COLOR, linestyle="--", label=f"threshold {threshold:.4g}")
    if not np.allclose(np.diff(bins), bins[1] - bins[0]):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", pad=9)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # 17.5 % is too wide
    axes.yaxis.set_major_formatter(lambda fraction, _: f"{100 * fraction:g} %")
    axes.set(xlabel="anomaly score", ylabel="fraction of class")
    axes.legend(frameon=False, fontsize=FONT_SIZE, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def roc_curve(
    score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"], threshold: float | None, band: Band | None = None
) -> Figure:
    """Draws the ROC curve; if a class is missing, an empty frame with the reason.

    `label` is True for anomalous images, `band` the 95 % band of the recall. The threshold's operating point is marked.
    """
    figure, (axes,) = new_figure(1, (WIDTH, 4.2))
    axes.set(xlabel="false positive rate (1 - specificity)", ylabel="recall")
    if _prepare_curve(axes, label):
        axes.plot([0, 1], [0, 1], color=MUTED_COLOR, linestyle=":", label="chance")
        _draw_band(axes, band)
        from sklearn.metrics import roc_curve  # takes a second to import

        false_positive_rate, recall, _ = roc_curve(label, score)
        axes.plot(false_positive_rate, recall, color=NORMAL_COLOR, linewidth=2, label="this model")
        if threshold is not None:
            decision = decide(score, threshold)
            _mark_threshold(axes, decision[~label].mean(), decision[label].mean())
        axes.legend(frameon=False, fontsize=FONT_SIZE, loc="lower right")
    return figure


def precision_recall_curve(
    score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"], threshold: float | None, band: Band | None = None
) -> Figure:
    """Draws precision over recall, with the arguments of `roc_curve`; `band` is of the precision."""
    figure, (axes,) = new_figure(1, (WIDTH, 4.2))
    axes.set(xlabel="recall", ylabel="precision")
    if _prepare_curve(axes, label):
        prevalence = float(np.mean(label))
        axes.axhline(prevalence, color=MUTED_COLOR, linestyle=":", label=f"chance ({prevalence:.2f})")
        _draw_band(axes, band)
        from sklearn.metrics import precision_recall_curve as curve  # takes a second to import

        precision, recall, _ = curve(label, score)
        defined = recall > 0  # at recall 0, precision is 0, or 1 by scikit-learn's convention
        style = {"where": "post", "color": NORMAL_COLOR, "linewidth": 2, "label": "this model"}
        axes.step(recall[defined], precision[defined], **style)
        decision = None if threshold is None else decide(score, threshold)
        if decision is not None and decision.any():
            _mark_threshold(axes, decision[label].mean(), label[decision].mean())
        axes.legend(frameon=False, fontsize=FONT_SIZE, loc="lower left")
    return figure


def new_figure(rows: int, size: tuple[float, float], top: float = 0.15, gap: float = 0.75) -> tuple[Figure, list[Axes]]:
    """Creates a figure with a column of axes, with `top` inches free above and `gap` inches between.

    The space for ticks and titles is fixed: Matplotlib's own layout draws all texts three times.
    """
    width, height = size
    left, right, bottom = 0.7, 0.15, 0.52
    axes_height = (height - top - bottom - (rows - 1) * gap) / rows
    spacing = {"left": left / width, "right": 1 - right / width}
    spacing |= {"bottom": bottom / height, "top": 1 - top / height, "hspace": gap / axes_height}
    figure = Figure(figsize=size, facecolor="white")
    all_axes = list(figure.subplots(rows, squeeze=False, gridspec_kw=spacing).flat)
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=FONT_SIZE)
    return figure, all_axes


def text_only(axes: Axes, text: str) -> None:
    """Writes a text into axes that have nothing to draw."""
    axes.text(0.5, 0.55, text, ha="center", fontsize=9, transform=axes.transAxes)


def _bins(values):
    low, high = values.min(), values.max()
    count = int(np.clip(2 * np.sqrt(len(values)), MIN_BINS, MAX_BINS))
    if low > 0 and high > LOG_SCALE_RATIO * np.median(values):
        return np.geomspace(low, high, count + 1)
    margin = 0 if high > low else 0.1 * abs(low) or 0.5
    return np.linspace(low - margin, high + margin, count + 1)


def _prepare_curve(axes: Axes, label) -> bool:
    """Sets the axes to the unit square. Returns whether both classes are present."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    if label.any() and not label.all():
        return True
    text_only(axes, "requires normal and anomalous\ntest images")
    return False


def _mark_threshold(axes: Axes, x: float, y: float) -> None:
    axes.plot(
        x, y, "o", color=ANOMALOUS_COLOR, markeredgecolor="white", markersize=9, clip_on=False,
        zorder=5, label="at the threshold",
    )  # fmt: skip


def _draw_band(axes: Axes, band: Band | None) -> None:
    if band is not None:
        axes.fill_between(*band, color=NORMAL_COLOR, alpha=0.2, linewidth=0, label="95 % band")
