"""Image-level metrics, also by defect type and by condition. A new metric is an entry of IMAGE_METRICS.

A higher score is more anomalous, a label is True for an anomalous image, and an image is called anomalous if score >=
threshold. A metric that the data do not define is None, and functions of scores raise ValueError unless all are finite.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from bigan_jax.metrics.thresholds import decide
from bigan_jax.value_checks import require_finite


class Counts(NamedTuple):
    """A confusion matrix: four integers, or four arrays with one entry per bootstrap sample."""

    true_positives: int | Int[np.ndarray, "samples"]
    false_negatives: int | Int[np.ndarray, "samples"]
    false_positives: int | Int[np.ndarray, "samples"]
    true_negatives: int | Int[np.ndarray, "samples"]

    @property
    def anomalous(self) -> int | Int[np.ndarray, "samples"]:
        """The number of anomalous images."""
        return self.true_positives + self.false_negatives

    @property
    def normal(self) -> int | Int[np.ndarray, "samples"]:
        """The number of normal images."""
        return self.false_positives + self.true_negatives

    @property
    def total(self) -> int | Int[np.ndarray, "samples"]:
        """The number of images."""
        return self.anomalous + self.normal


@dataclass(frozen=True)
class ResampledSets:
    """Bootstrap samples of a test set, as counts instead of repeated images."""

    anomalous: Int[np.ndarray, "samples scores"]  # anomalous images at each distinct score, from low to high
    normal: Int[np.ndarray, "samples scores"]
    first_called: int  # the index of the lowest score that reaches the threshold

    @cached_property
    def counts(self) -> Counts:
        """The confusion matrix of each sample."""
        called = slice(self.first_called, None), slice(self.first_called)
        return Counts(*(images[:, scores].sum(1) for images in (self.anomalous, self.normal) for scores in called))


class ImageMetric(NamedTuple):
    """A metric of one test set, in [0, 1]."""

    title: str  # its name in reports and tables
    description: str  # its meaning, in a few words
    value: Callable[[Float[np.ndarray, "n"], Bool[np.ndarray, "n"], Counts], float | None]
    resampled: Callable[[ResampledSets], Float[np.ndarray, "samples"]]  # the value in each bootstrap sample
    uses_threshold: bool  # whether it depends on the decisions, and not on the ranking alone


def auroc(score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"]) -> float | None:
    """Returns the probability that an anomalous image outscores a normal one.

    Ties count half. The result is None with one class. scikit-learn's curve would take twenty times as long.
    """
    score = require_finite(score, "score")
    if label.all() or not label.any():
        return None
    from scipy.stats import rankdata  # takes a second to import, which commands without metrics need not wait for

    n_anomalous = int(label.sum())
    pairs_won = rankdata(score)[label].sum() - n_anomalous * (n_anomalous + 1) / 2
    return float(pairs_won / (n_anomalous * (len(label) - n_anomalous)))


def _resampled_auroc(samples):
    anomalous, normal = samples.anomalous, samples.normal
    pairs_won = np.sum(anomalous * (np.cumsum(normal, axis=1) - normal / 2), axis=1)
    return pairs_won / (anomalous.sum(1) * normal.sum(1))


def _average_precision(score, label, counts):
    if not (counts.anomalous and counts.normal):
        return None
    from sklearn.metrics import average_precision_score  # as above

    return float(average_precision_score(label, score))


def _resampled_average_precision(samples):
    anomalous, normal = samples.anomalous[:, ::-1], samples.normal[:, ::-1]
    true_positives = np.cumsum(anomalous, axis=1)
    called = true_positives + np.cumsum(normal, axis=1)
    return np.sum(anomalous * true_positives / np.maximum(called, 1), axis=1) / anomalous.sum(1)


def _decision_metric(title, description, requires, formula) -> ImageMetric:
    """A metric of the confusion matrix; at least one image of each class in `requires` defines it."""

    def value(score, label, counts):
        return float(formula(counts)) if all(getattr(counts, name) for name in requires) else None

    return ImageMetric(title, description, value, lambda s: formula(s.counts), uses_threshold=True)


def _recall(counts):
    return counts.true_positives / counts.anomalous


def _specificity(counts):
    return counts.true_negatives / counts.normal


IMAGE_METRICS = {
    "auroc": ImageMetric(
        "AUROC",
        "probability that an anomalous image outscores a normal one",
        lambda score, label, _: auroc(score, label),
        _resampled_auroc,
        uses_threshold=False,
    ),
    "average_precision": ImageMetric(
        "average precision",
        "mean precision over all recalls",
        _average_precision,
        _resampled_average_precision,
        uses_threshold=False,
    ),
    "accuracy": _decision_metric(
        "accuracy",
        "correct decisions, of all images",
        ["total"],
        lambda c: (c.true_positives + c.true_negatives) / c.total,
    ),
    "precision": _decision_metric(
        "precision",
        "anomalous, of those called anomalous; 0 if none is called",
        ["anomalous"],
        lambda c: c.true_positives / np.maximum(c.true_positives + c.false_positives, 1),
    ),
    "recall": _decision_metric("recall", "called anomalous, of the anomalous", ["anomalous"], _recall),
    "f1": _decision_metric(
        "F1",
        "harmonic mean of precision and recall",
        ["anomalous"],
        lambda c: 2 * c.true_positives / (c.true_positives + c.false_positives + c.anomalous),
    ),
    "specificity": _decision_metric("specificity", "called normal, of the normal", ["normal"], _specificity),
    "balanced_accuracy": _decision_metric(
        "balanced accuracy",
        "mean of recall and specificity",
        ["anomalous", "normal"],
        lambda c: (_recall(c) + _specificity(c)) / 2,
    ),
}


def image_metrics(
    score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"], threshold: float
) -> dict[str, float | None]:
    """Returns all IMAGE_METRICS of one test set by name, each in [0, 1] or None if undefined."""
    score = require_finite(score, "score")
    called = decide(score, threshold)
    pairs = (called & label, ~called & label, called & ~label, ~called & ~label)
    counts = Counts(*(int(np.count_nonzero(chosen)) for chosen in pairs))
    return {name: metric.value(score, label, counts) for name, metric in IMAGE_METRICS.items()}


@dataclass(frozen=True)
class PredictAll:
    """F1 and accuracy of calling every image anomalous: a floor for any detector."""

    f1: float | None
    accuracy: float | None


def predict_all(label: Bool[np.ndarray, "n"]) -> PredictAll:
    """Returns the metrics of calling every image anomalous; None where they are not defined."""
    n_anomalous = int(np.count_nonzero(label))
    return PredictAll(
        f1=2 * n_anomalous / (n_anomalous + len(label)) if n_anomalous else None,
        accuracy=n_anomalous / len(label) if len(label) else None,
    )


@dataclass(frozen=True)
class DefectTypeRow:
    """Metrics of the `n` images of one defect type against all normal images."""

    defect_type: str
    n: int
    auroc: float | None
    recall: float


def by_defect_type(
    score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"], defect_type: Shaped[np.ndarray, "n"], threshold: float
) -> list[DefectTypeRow] | None:
    """Returns one row per defect type; None if there is one type only, which is the result itself."""
    called = decide(score, threshold)
    names = np.unique(defect_type[label]).tolist()
    rows = []
    for name in names:
        is_type = label & (defect_type == name)
        chosen = is_type | ~label
        area = auroc(score[chosen], label[chosen])
        rows.append(DefectTypeRow(name, int(is_type.sum()), area, float(called[is_type].mean())))
    return rows if len(names) > 1 else None


@dataclass(frozen=True)
class ConditionRow:
    """Metrics of the `n` images of one condition (category, species, plane)."""

    condition: str
    n: int
    n_normal: int
    n_anomalous: int
    auroc: float | None
    recall: float | None
    specificity: float | None


def by_condition(
    score: Float[np.ndarray, "n"],
    label: Bool[np.ndarray, "n"],
    condition: Int[np.ndarray, "n"],
    names: Sequence[str],
    threshold: float,
) -> list[ConditionRow] | None:
    """Returns one row per condition (an index into `names`) with test images; None if there is one name only."""
    rows = []
    for index, name in enumerate(names):
        if n := int(np.count_nonzero(chosen := condition == index)):
            metrics = image_metrics(score[chosen], label[chosen], threshold)
            rates = metrics["auroc"], metrics["recall"], metrics["specificity"]
            n_anomalous = int(label[chosen].sum())
            rows.append(ConditionRow(name, n, n - n_anomalous, n_anomalous, *rates))
    return rows if len(names) > 1 else None
