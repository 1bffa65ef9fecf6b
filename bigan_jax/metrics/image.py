"""Image-level metrics: the table IMAGE_METRICS, and metrics by defect type and by condition.

A higher score is more anomalous, a label is True for an anomalous image, and an image is called anomalous if score >=
threshold. A metric that the data do not define is None.

A new metric is an entry of IMAGE_METRICS: evaluation.json, bootstrap intervals, the report and comparisons go over
the entries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from bigan_jax.metrics.thresholds import decide
from bigan_jax.validation import require_finite


class Counts(NamedTuple):
    """A confusion matrix: four integers, or four arrays with one entry per bootstrap sample."""

    true_positives: int | Int[np.ndarray, "samples"]
    false_negatives: int | Int[np.ndarray, "samples"]
    false_positives: int | Int[np.ndarray, "samples"]
    true_negatives: int | Int[np.ndarray, "samples"]

    @property
    def anomalous(self):
        """The number of anomalous images."""
        return self.true_positives + self.false_negatives

    @property
    def normal(self):
        """The number of normal images."""
        return self.false_positives + self.true_negatives

    @property
    def total(self):
        """The number of images."""
        return self.anomalous + self.normal


@dataclass(frozen=True)
class ResampledSets:
    """Bootstrap samples of a test set, as counts instead of repeated images.

    Attributes:
      anomalous: the number of anomalous images at each distinct score, from low to high.
      normal: the same for normal images.
      first_called: the index of the lowest score that reaches the threshold.
    """

    anomalous: Int[np.ndarray, "samples scores"]
    normal: Int[np.ndarray, "samples scores"]
    first_called: int

    @cached_property
    def counts(self) -> Counts:
        """The confusion matrix of each sample."""
        matrix = []
        for images in self.anomalous, self.normal:
            called = images[:, self.first_called :].sum(1)
            matrix.append((called, images.sum(1) - called))
        (true_positives, false_negatives), (false_positives, true_negatives) = matrix
        return Counts(true_positives, false_negatives, false_positives, true_negatives)


class ImageMetric(NamedTuple):
    """A metric of one test set, in [0, 1].

    Attributes:
      title: its name in reports and tables.
      description: its meaning, in a few words.
      value: scores, labels and confusion matrix to the metric, or to None if it is not defined.
      resampled: bootstrap samples to the metric of each.
      uses_threshold: whether it depends on the decisions, and not on the ranking alone.
    """

    title: str
    description: str
    value: Callable[[Float[np.ndarray, "n"], Bool[np.ndarray, "n"], Counts], float | None]
    resampled: Callable[[ResampledSets], Float[np.ndarray, "samples"]]
    uses_threshold: bool


def auroc(score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"]) -> float | None:
    """Returns the probability that an anomalous image outscores a normal one.

    Ties count half. The result is None with one class. The sum of ranks is used because scikit-learn's curve takes
    twenty times as long, and an evaluation calls this dozens of times.

    Raises:
      ValueError: a score is not finite.
    """
    score, label = require_finite(score, "score"), np.asarray(label, bool)
    if label.all() or not label.any():
        return None
    n_anomalous = int(label.sum())
    pairs_won = rankdata(score)[label].sum() - n_anomalous * (n_anomalous + 1) / 2
    return float(pairs_won / (n_anomalous * (len(label) - n_anomalous)))


def _resampled_auroc(samples: ResampledSets) -> Float[np.ndarray, "samples"]:
    anomalous, normal = samples.anomalous, samples.normal
    pairs_won = np.sum(anomalous * (np.cumsum(normal, axis=1) - normal / 2), axis=1)
    return pairs_won / (anomalous.sum(1) * normal.sum(1))


def _average_precision(score, label, counts: Counts) -> float | None:
    both = counts.anomalous and counts.normal
    return float(average_precision_score(label, score)) if both else None


def _resampled_average_precision(samples: ResampledSets) -> Float[np.ndarray, "samples"]:
    anomalous, normal = samples.anomalous[:, ::-1], samples.normal[:, ::-1]
    true_positives = np.cumsum(anomalous, axis=1)
    called = true_positives + np.cumsum(normal, axis=1)
    precision_sum = np.sum(anomalous * true_positives / np.maximum(called, 1), axis=1)
    return precision_sum / anomalous.sum(1)


def _decision_metric(title, description, requires, formula) -> ImageMetric:
    """A metric of the confusion matrix; `requires` names the counts that must not be 0."""

    def value(score, label, counts):
        defined = all(getattr(counts, name) for name in requires)
        return float(formula(counts)) if defined else None

    return ImageMetric(title, description, value, lambda s: formula(s.counts), uses_threshold=True)


def _recall(counts: Counts):
    return counts.true_positives / counts.anomalous


def _specificity(counts: Counts):
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
    """Returns all IMAGE_METRICS of one test set by name, each in [0, 1] or None if undefined.

    Raises:
      ValueError: a score is not finite.
    """
    score, label = require_finite(score, "score"), np.asarray(label, bool)
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
    """Returns one row per defect type; None if there is one type only, which is the result itself.

    Raises:
      ValueError: a score is not finite.
    """
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
    """Returns one row per condition with test images; None if there is one condition only.

    Args:
      score: anomaly scores.
      label: True for anomalous images.
      condition: the index of each image's condition in `names`.
      names: all conditions.
      threshold: the decision threshold of the complete test set.

    Raises:
      ValueError: a score is not finite.
    """
    rows = []
    for index, name in enumerate(names):
        chosen = condition == index
        if chosen.any():
            metrics = image_metrics(score[chosen], label[chosen], threshold)
            rows.append(
                ConditionRow(
                    condition=name,
                    n=int(chosen.sum()),
                    n_normal=int((chosen & ~label).sum()),
                    n_anomalous=int((chosen & label).sum()),
                    **{metric: metrics[metric] for metric in ("auroc", "recall", "specificity")},
                )
            )
    return rows if len(names) > 1 else None
