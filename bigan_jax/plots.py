"""The figures of a run. Each function returns a Matplotlib Figure; `to_png` turns it to bytes.

Figures are made without pyplot, so nothing global is touched and threads do not meet. Normal is
blue and anomalous vermillion (Okabe and Ito's colour-blind-safe pair), told apart by shape too,
so that a grey print stays readable. Error maps use magma on a scale that the caller fixes.
"""

import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve as precision_recall_points
from sklearn.metrics import roc_curve as roc_points

from bigan_jax.metrics import decide

NORMAL, ANOMALOUS, CALIBRATION, INK, QUIET = "#0072B2", "#D55E00", "#009E73", "#222222", "#8A8A8A"
ERROR_COLOURS = "magma"
LOG_KEYS = ("epoch", "phase", "step", "seconds", "images_per_second")
PANELS_ACROSS = 2
LOG_FROM = 30  # a panel whose values span more than this factor gets a logarithmic axis


class GalleryRow(NamedTuple):
    """One picture of `gallery`: images [h w] or [h w 3] in [0, 1], maps [h w] >= 0."""

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


def to_png(figure: Figure) -> bytes:
    """The figure as PNG bytes, the same for the same figure (no date, no version inside)."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
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

    Any of the three may be empty. Bars are densities: the classes differ in size.
    """
    figure, (axes,) = _figure(1, (6.4, 3.6))
    everything = np.concatenate([normal, anomalous, calibration]).astype(np.float64)
    if not everything.size:
        _say(axes, "no scores")
        return figure
    bins = np.histogram_bin_edges(everything, bins=40)
    for name, scores, colour, hatch in (
        ("normal", normal, NORMAL, None),
        ("anomalous", anomalous, ANOMALOUS, "////"),
    ):
        if len(scores):
            axes.hist(
                scores, bins, density=True, histtype="stepfilled", facecolor=(colour, 0.35),
                edgecolor=colour, hatch=hatch, label=f"{name} ({len(scores)})",
            )  # fmt: skip
    if len(calibration):
        axes.plot(
            calibration, np.full(len(calibration), -0.03), "|", color=CALIBRATION, clip_on=False,
            transform=axes.get_xaxis_transform(), label=f"calibration normals ({len(calibration)})",
        )  # fmt: skip
    if threshold is not None:
        axes.axvline(threshold, color=INK, linestyle="--", label=f"threshold {threshold:.4g}")
    axes.tick_params(axis="x", pad=9)
    axes.set(xlabel="anomaly score", ylabel="density")
    axes.legend(frameon=False, fontsize=8)
    return figure


def roc_curve(
    score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"], threshold: float | None
) -> Figure:
    """The ROC curve with the threshold's point; an empty frame that says why with one class."""
    figure, (axes,) = _figure(1, (4.2, 4.2))
    axes.plot([0, 1], [0, 1], color=QUIET, linestyle=":", label="chance")
    axes.set(xlabel="false-alarm rate (1 - specificity)", ylabel="recall")
    if _frame(axes, label):
        alarms, recall, _ = roc_points(label, score)
        axes.plot(alarms, recall, color=NORMAL, linewidth=2)
        if threshold is not None:
            called = decide(score, threshold)
            _mark(axes, called[~label].mean(), called[label].mean())
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def precision_recall_curve(
    score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"], threshold: float | None
) -> Figure:
    """Precision over recall with the threshold's point and the prevalence, which is chance."""
    figure, (axes,) = _figure(1, (4.2, 4.2))
    axes.set(xlabel="recall", ylabel="precision")
    if _frame(axes, label):
        prevalence = float(np.mean(label))
        axes.axhline(prevalence, color=QUIET, linestyle=":", label=f"chance ({prevalence:.2f})")
        precision, recall, _ = precision_recall_points(label, score)
        axes.step(recall, precision, where="post", color=NORMAL, linewidth=2)
        called = None if threshold is None else decide(score, threshold)
        if called is not None and called.any():
            _mark(axes, called[label].mean(), label[called].mean())
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def training_curves(history: list[dict]) -> Figure:
    """One panel for each objective ("reconstruction/mse" belongs to "reconstruction").

    `history` holds the rows of train.jsonl. A value that a row lacks, or that is not a number
    there, is a gap in its line; phases after the first are shaded.
    """
    panels: dict[str, list[str]] = {}
    for row in history:
        for key, value in row.items():
            if key not in LOG_KEYS and _is_number(value):
                keys = panels.setdefault(key.partition("/")[0] if "/" in key else "other", [])
                if key not in keys:
                    keys.append(key)
    across = min(PANELS_ACROSS, max(len(panels), 1))
    down = -(-len(panels) // across) or 1
    figure, frames = _figure(down * across, (3.4 * across, 2.6 * down), across)
    epochs = [row.get("epoch", index) for index, row in enumerate(history)]
    for axes, (panel, keys) in zip(frames, panels.items(), strict=False):
        for key, line in zip(keys, _lines(), strict=False):
            values = [row.get(key) for row in history]
            values = [value if _is_number(value) else np.nan for value in values]
            marker = "." if np.isfinite(values).sum() < 2 else None
            axes.plot(epochs, values, label=key.partition("/")[2] or key, marker=marker, **line)
        shown = [row[key] for row in history for key in keys if _is_number(row.get(key))]
        if min(shown) > 0 and max(shown) > LOG_FROM * min(shown):
            axes.set_yscale("log")
        _shade_phases(axes, epochs, [row.get("phase") for row in history])
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.set_title(panel, fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.legend(frameon=False, fontsize=7)
    for axes in frames[len(panels) :]:
        axes.axis("off")
    if not panels:
        _say(frames[0], "no training log")
    return figure


def gallery(rows: Sequence[GalleryRow], vmax: float | Sequence[float]) -> Figure:
    """Input, reconstruction, squared error, 1 - SSIM, combined error and mask of some pictures.

    `vmax` fixes the colours of the error maps, on every row alike: one number, or one for each
    of squared error, 1 - SSIM and combined, whose sizes differ a hundredfold.
    """
    titles = ("input", "reconstruction", "squared error", "1 - SSIM", "combined", "mask")
    count = max(len(rows), 1)
    # Captions run on under their neighbours: a layout that made room would widen the column.
    figure, frames = _figure(count * 6, (8.4, 1.75 * count + 0.3), 6, layout=None)
    figure.subplots_adjust(0.01, 0.2 / count, 0.99, 1 - 0.17 / count, wspace=0.04, hspace=0.35)
    limits = np.broadcast_to(vmax, 3)
    for axes in frames:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, title in zip(frames, titles, strict=False):
        axes.set_title(title, fontsize=8)
    for index, row in enumerate(rows):
        line = frames[6 * index : 6 * index + 6]
        for axes, image in zip(line, (row.image, row.reconstruction), strict=False):
            axes.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=1)
        maps = (row.squared_error, row.ssim_error, row.combined)
        for axes, errors, limit in zip(line[2:], maps, limits, strict=False):
            axes.imshow(error_map_rgb(errors, float(limit)))
        if row.mask is not None:
            line[5].imshow(np.squeeze(row.mask), cmap="gray", vmin=0, vmax=1)
        truth, call = (("normal", "anomalous")[int(flag)] for flag in (row.label, row.decision))
        right = row.label == row.decision
        # A dollar sign in a file name would start TeX.
        caption = f"{row.path}\nscore {row.score:.4g}: {truth}, called {call}".replace("$", r"\$")
        line[0].text(
            0, -0.05, caption, fontsize=6.5, va="top", transform=line[0].transAxes,
            color=INK if right else ANOMALOUS, weight="normal" if right else "bold",
        )  # fmt: skip
    return figure


def _figure(
    count: int, size: tuple[float, float], across: int = 1, layout: str | None = "constrained"
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout=layout, facecolor="white")
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
    axes.plot(x, y, "o", color=ANOMALOUS, markersize=8, label="at the threshold", clip_on=False)


def _lines() -> Iterable[dict]:
    for style in ("-", "--", ":", "-."):
        for colour in (NORMAL, ANOMALOUS, CALIBRATION, "#CC79A7", INK):
            yield {"color": colour, "linestyle": style, "linewidth": 1.4}


def _shade_phases(axes: Axes, epochs: list, phases: list) -> None:
    starts = [i for i in range(len(phases)) if i == 0 or phases[i] != phases[i - 1]]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(phases) - 1], strict=True)):
        if number % 2:
            axes.axvspan(epochs[start], epochs[end], color=QUIET, alpha=0.15, linewidth=0)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
