"""Bootstrap intervals: how far a figure would wander with other pictures of the same kind."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from bigan_jax.metrics.thresholds import decide
from bigan_jax.validation import require_finite

Interval = tuple[float, float]
Band = tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"], Float[np.ndarray, "k"]]  # x, low, high
_IN_CACHE = 1 << 14  # weights of draws that are worked on together
Resampling = tuple[Int[np.ndarray, "n"], Int[np.ndarray, "draws groups"]]


def bootstrap_intervals(
    score: Float[np.ndarray, "n"],
    label: Bool[np.ndarray, "n"],
    group: Shaped[np.ndarray, "n"],
    threshold: float,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Interval] | None:
    """95 % intervals of all image metrics by `resampled` groups; the threshold stays.

    None where there is nothing to resample. Perfect separation gives (1, 1): a bootstrap cannot
    see an overlap that the sample does not have.
    """
    score, label = require_finite(score, "score"), np.asarray(label, bool)
    resampling = group_resampling(label, group, draws, seed)
    if resampling is None:
        return None
    member, times = resampling
    called = decide(score, threshold)

    def drawn(which):
        return times @ np.bincount(member, which, times.shape[1])

    hit, missed, alarm, passed = map(
        drawn, (label & called, label & ~called, ~label & called, ~label & ~called)
    )
    recall, specificity = hit / (hit + missed), passed / (passed + alarm)
    samples = {
        **ranking(score, label, member, times),
        "accuracy": (hit + passed) / (hit + missed + alarm + passed),
        "precision": hit / np.maximum(hit + alarm, 1),
        "recall": recall,
        "f1": 2 * hit / (2 * hit + missed + alarm),
        "specificity": specificity,
        "balanced_accuracy": (recall + specificity) / 2,
    }
    return percentile_intervals(samples)


def percentile_intervals(samples: Mapping[str, Sequence[float]]) -> dict[str, Interval]:
    """The 95 % interval of each figure, from its values in all draws."""
    found = {name: np.quantile(values, [0.025, 0.975]) for name, values in samples.items()}
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def group_resampling(
    label: Bool[np.ndarray, "n"],
    group: Shaped[np.ndarray, "n"],
    draws: int = 1000,
    seed: int = 0,
) -> Resampling | None:
    """Each picture's group by number, and how many times each draw takes each group.

    Pictures of one group (a patient) are alike, so the group is the unit; a picture without one
    is its own. Groups are drawn with replacement within three strata (groups with normals only,
    with anomalous ones only, with both), so that every draw holds both classes. Scores have no
    part in it: detectors tested on the same pictures are resampled alike.

    None with one class, and where no stratum of a class has two groups: there is then nothing to
    vary, and an interval would only look certain.
    """
    names, member = np.unique(np.asarray(group), return_inverse=True)
    positive = np.bincount(member, label, len(names)) > 0
    negative = np.bincount(member, ~label, len(names)) > 0
    alone, both = (positive & ~negative, negative & ~positive), positive & negative
    if any(max(stratum.sum(), both.sum()) < 2 for stratum in alone):
        return None
    rng = np.random.default_rng(seed)
    times = np.zeros((draws, len(names)), np.int64)
    for stratum in (*alone, both):
        if size := int(stratum.sum()):
            for row in times:
                row[stratum] = np.bincount(rng.integers(size, size=size), minlength=size)
    return member, times


def ranking(
    score: Float[np.ndarray, "n"],
    label: Bool[np.ndarray, "n"],
    member: Int[np.ndarray, "n"],
    times: Int[np.ndarray, "draws groups"],
) -> dict[str, Float[np.ndarray, "draws"]]:
    """AUROC and average precision of each draw, by weights instead of repeated pictures."""
    order = np.argsort(score, kind="stable")
    member, label = member[order], label[order]
    ties = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    auroc, average_precision = np.empty((2, len(times)))
    many = max(1, _IN_CACHE // len(score))
    for start in range(0, len(times), many):
        part = slice(start, start + many)
        weight = times[part, member]
        above = np.add.reduceat(weight * label, ties, axis=1)
        below = np.add.reduceat(weight * ~label, ties, axis=1)
        positive, negative = above.sum(1), below.sum(1)
        won = np.sum(above * (np.cumsum(below, axis=1) - below / 2), axis=1)
        auroc[part] = won / (positive * negative)
        above, below = above[:, ::-1], below[:, ::-1]
        found = np.cumsum(above, axis=1)
        called = found + np.cumsum(below, axis=1)
        average_precision[part] = np.sum(above * found / np.maximum(called, 1), axis=1) / positive
    return {"auroc": auroc, "average_precision": average_precision}


def curve_bands(
    score: Float[np.ndarray, "n"],
    label: Bool[np.ndarray, "n"],
    group: Shaped[np.ndarray, "n"],
    draws: int = 500,
    seed: int = 0,
) -> dict[str, Band] | None:
    """Pointwise 95 % bands of two curves, by `resampled` groups; None where there are none.

    "roc": recall at each false-alarm rate. "precision_recall": precision at the highest threshold
    that reaches each recall.
    """
    score, label = require_finite(score, "score"), np.asarray(label, bool)
    resampling = group_resampling(label, group, draws, seed)
    if resampling is None:
        return None
    member, times = resampling
    order = np.argsort(-score, kind="stable")
    member, label = member[order], label[order]
    last_of_equals = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    x = np.linspace(0, 1, 101)
    recalls, precisions = np.empty((2, draws, len(x)))
    for i, count in enumerate(times):
        weight = count[member]
        hits, alarms = np.zeros((2, len(last_of_equals) + 1))
        hits[1:] = np.cumsum(weight * label)[last_of_equals]
        alarms[1:] = np.cumsum(weight)[last_of_equals] - hits[1:]
        recalls[i] = np.interp(x, alarms / alarms[-1], hits / hits[-1])
        # A product such as 0.29 * 100 may lie just above a whole number of hits.
        reached = np.searchsorted(hits, np.maximum(x * hits[-1], 1) - 1e-6)
        precisions[i] = hits[reached] / (hits[reached] + alarms[reached])
    return {
        name: (x, *np.quantile(values, [0.025, 0.975], axis=0))
        for name, values in (("roc", recalls), ("precision_recall", precisions))
    }
