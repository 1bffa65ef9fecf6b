"""How good a detector is: thresholds without labels, and metrics of its scores and decisions.

A score is higher where a picture is more anomalous, a label is True for an anomalous picture, and
"score >= threshold" is the decision. A figure that the data do not define is None, no stand-in.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from bigan_jax.metrics.thresholds import decide
from bigan_jax.validation import require_finite


class Oracle(NamedTuple):
    """The best that any threshold could do on the test labels: a bound, not a result."""

    threshold: float | None
    f1: float | None
    accuracy: float | None


def oracle_threshold(score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"]) -> Oracle:
    """The threshold with the best F1 on the test labels, the highest of equals.

    It has seen the labels, so it only ever stands beside a result. All None with one class.
    """
    score, label = require_finite(score, "score"), np.asarray(label, bool)
    if not _both_classes(label):
        return Oracle(None, None, None)
    value, true, false = _operating_points(score, label)
    f1 = 2 * true / (true + false + label.sum())
    best = int(np.argmax(f1))
    accuracy = (true[best] + (~label).sum() - false[best]) / len(label)
    return Oracle(float(value[best]), float(f1[best]), float(accuracy))


def image_metrics(
    score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"], threshold: float
) -> dict[str, float | None]:
    """Ranking and decision metrics of one test set, each in [0, 1] or None where undefined.

    AUROC, average precision and balanced accuracy need both classes; precision, recall and F1
    an anomalous picture; specificity a normal one. Precision is 0 where nothing is called
    anomalous although something is.

    Raises:
      ValueError: a score that is not finite.
    """
    score, label = require_finite(score, "score"), np.asarray(label, bool)
    called = decide(score, threshold)
    positive, negative = int(label.sum()), int((~label).sum())
    hit, alarm = int((called & label).sum()), int((called & ~label).sum())
    recall, specificity = _ratio(hit, positive), _ratio(negative - alarm, negative)
    both = positive > 0 and negative > 0
    return {
        "auroc": auroc(score, label),
        "average_precision": float(average_precision_score(label, score)) if both else None,
        "accuracy": _ratio(hit + negative - alarm, len(label)),
        "precision": hit / max(hit + alarm, 1) if positive else None,
        "recall": recall,
        "f1": 2 * hit / (hit + alarm + positive) if positive else None,
        "specificity": specificity,
        "balanced_accuracy": (recall + specificity) / 2 if both else None,
    }


def auroc(score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"]) -> float | None:
    """The probability that an anomalous picture outscores a normal one; None with one class."""
    score, label = require_finite(score, "score"), np.asarray(label, bool)
    if not _both_classes(label):
        return None
    # By the sum of ranks, ties shared: scikit-learn's curve takes twenty times as long, and an
    # evaluation asks for dozens.
    positive = int(label.sum())
    won = rankdata(score)[label].sum() - positive * (positive + 1) / 2
    return float(won / (positive * (len(label) - positive)))


def predict_all(label: Bool[np.ndarray, "n"]) -> dict[str, float | None]:
    """F1 and accuracy of calling every picture anomalous: the floor for any detector."""
    label = np.asarray(label, bool)
    positive = int(label.sum())
    return {
        "f1": 2 * positive / (positive + len(label)) if positive else None,
        "accuracy": _ratio(positive, len(label)),
    }


def by_defect_type(
    score: Float[np.ndarray, "n"],
    label: Bool[np.ndarray, "n"],
    defect_type: Shaped[np.ndarray, "n"],
    threshold: float,
) -> list[dict] | None:
    """Each defect type against all normal images: count, AUROC, recall at the threshold.

    None where there is one type only: that is the result itself.
    """
    called = decide(score, threshold)
    defect_types = np.unique(defect_type[label]).tolist()
    rows = []
    for name in defect_types:
        own = label & (defect_type == name)
        chosen = own | ~label
        rows.append(
            {
                "defect_type": name,
                "n": int(own.sum()),
                "auroc": auroc(score[chosen], label[chosen]),
                "recall": float(called[own].mean()),
            }
        )
    return rows if len(defect_types) > 1 else None


def by_condition(
    score: Float[np.ndarray, "n"],
    label: Bool[np.ndarray, "n"],
    condition: Int[np.ndarray, "n"],
    names: Sequence[str],
    threshold: float,
) -> list[dict] | None:
    """The pictures of each known condition (category, species, plane) on their own.

    condition: index of each picture's name. None where there is one condition only. A condition
    without test pictures has no row.
    """
    rows = []
    for index, name in enumerate(names):
        own = condition == index
        if own.any():
            found = image_metrics(score[own], label[own], threshold)
            rows.append(
                {
                    "condition": name,
                    "n": int(own.sum()),
                    "n_normal": int((own & ~label).sum()),
                    "n_anomalous": int((own & label).sum()),
                    **{metric: found[metric] for metric in ("auroc", "recall", "specificity")},
                }
            )
    return rows if len(names) > 1 else None


def _operating_points(score, label):
    """Distinct scores from high to low; at or above each: how many positives, negatives."""
    order = np.argsort(-score, kind="stable")
    score = score[order]
    last_of_equals = np.flatnonzero(np.append(score[1:] != score[:-1], True))
    true = np.cumsum(label[order])[last_of_equals]
    return score[last_of_equals], true, last_of_equals + 1 - true


def _both_classes(label) -> bool:
    return bool(label.any() and not label.all())


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
