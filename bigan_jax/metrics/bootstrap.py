"""Bootstrap confidence intervals of image metrics and curves, resampled by group.

Images of one group (a patient) are alike, so the group is the unit of resampling.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from bigan_jax.metrics.image import IMAGE_METRICS, ImageMetric, ResampledSets
from bigan_jax.metrics.thresholds import decide
from bigan_jax.value_checks import require_finite

Interval = tuple[float, float]
Band = tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"], Float[np.ndarray, "k"]]  # x, low, high
Resampling = tuple[Int[np.ndarray, "n"], Int[np.ndarray, "samples groups"]]
_BLOCK = 1 << 14  # counts that are processed together and fit into a CPU's cache


def bootstrap_intervals(
    score: Float[np.ndarray, "n"],
    label: Bool[np.ndarray, "n"],
    group: Shaped[np.ndarray, "n"],
    threshold: float,
    n_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval] | None:
    """Returns 95 % intervals of all IMAGE_METRICS by name, or None if there is nothing to resample.

    Perfect separation gives (1, 1): a bootstrap cannot show an overlap that the sample lacks. A score that is not
    finite raises ValueError.
    """
    score = require_finite(score, "score")
    resampling = group_resampling(label, group, n_samples, seed)
    if resampling is None:
        return None
    return percentile_intervals(resampled_metrics(IMAGE_METRICS, score, label, threshold, resampling))


def paired_auroc_interval(
    score: Float[np.ndarray, "n"],
    other: Float[np.ndarray, "n"],
    label: Bool[np.ndarray, "n"],
    group: Shaped[np.ndarray, "n"],
    n_samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Returns the 95 % interval of the AUROC of `score` minus that of `other`, or None if nothing can be resampled.

    Both are of the same images, and every bootstrap sample draws the same images for both. A score that is not finite
    raises ValueError.
    """
    resampling = group_resampling(label, group, n_samples, seed)
    if resampling is None:
        return None
    auroc = {"auroc": IMAGE_METRICS["auroc"]}
    values, others = (
        resampled_metrics(auroc, require_finite(x, "score"), label, 0.0, resampling)["auroc"] for x in (score, other)
    )
    low, high = np.quantile(values - others, [0.025, 0.975]).tolist()
    return low, high


def percentile_intervals(samples: Mapping[str, Sequence[float] | Float[np.ndarray, "samples"]]) -> dict[str, Interval]:
    """Returns the 95 % interval of each metric from its values in all bootstrap samples."""
    limits = {name: np.quantile(values, [0.025, 0.975]).tolist() for name, values in samples.items()}
    return {name: (low, high) for name, (low, high) in limits.items()}


def group_resampling(
    label: Bool[np.ndarray, "n"], group: Shaped[np.ndarray, "n"], n_samples: int = 1000, seed: int = 0
) -> Resampling | None:
    """Returns each image's group index, and how often each bootstrap sample draws each group.

    Groups are drawn with replacement within three strata (normal images only, anomalous images only, both), so that
    every sample has both classes. Scores have no part in it: detectors tested on the same images are resampled alike.
    The result is None with one class, and if no stratum of a class has two groups, so that nothing would vary.
    """
    names, group_index = np.unique(group, return_inverse=True)
    has_anomalous = np.bincount(group_index, label, len(names)) > 0
    has_normal = np.bincount(group_index, ~label, len(names)) > 0
    one_class = has_anomalous & ~has_normal, has_normal & ~has_anomalous
    both = has_anomalous & has_normal
    if any(max(stratum.sum(), both.sum()) < 2 for stratum in one_class):
        return None
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_samples, len(names)), np.int64)
    for stratum in (*one_class, both):
        if size := int(stratum.sum()):
            for row in counts:
                row[stratum] = np.bincount(rng.integers(size, size=size), minlength=size)
    return group_index, counts


def resampled_metrics(
    metrics: Mapping[str, ImageMetric],
    score: Float[np.ndarray, "n"],
    label: Bool[np.ndarray, "n"],
    threshold: float,
    resampling: Resampling,
) -> dict[str, Float[np.ndarray, "samples"]]:
    """Returns the value of each metric (an entry of IMAGE_METRICS) in every bootstrap sample."""
    group_index, group_counts = resampling
    order = np.argsort(score, kind="stable")
    score, label, group_index = score[order], label[order], group_index[order]
    first_of_equals = np.flatnonzero(np.diff(score, prepend=-np.inf))
    first_called = int(np.count_nonzero(~decide(score[first_of_equals], threshold)))
    values = {name: [] for name in metrics}
    block = max(1, _BLOCK // len(score))
    for start in range(0, len(group_counts), block):
        counts = group_counts[start : start + block, group_index]
        samples = ResampledSets(
            np.add.reduceat(counts * label, first_of_equals, axis=1),
            np.add.reduceat(counts * ~label, first_of_equals, axis=1),
            first_called,
        )
        for name, metric in metrics.items():
            values[name].append(metric.resampled(samples))
    return {name: np.concatenate(parts) for name, parts in values.items()}


def curve_bands(
    score: Float[np.ndarray, "n"],
    label: Bool[np.ndarray, "n"],
    group: Shaped[np.ndarray, "n"],
    n_samples: int = 500,
    seed: int = 0,
) -> dict[str, Band] | None:
    """Returns pointwise 95 % confidence bands of two curves, or None if there is nothing to resample.

    "roc" is the recall at each false-alarm rate, and "precision_recall" the precision at the highest threshold that
    reaches each recall. A score that is not finite raises ValueError.
    """
    score = require_finite(score, "score")
    resampling = group_resampling(label, group, n_samples, seed)
    if resampling is None:
        return None
    group_index, group_counts = resampling
    order = np.argsort(-score, kind="stable")
    group_index, label = group_index[order], label[order]
    last_of_equals = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    x = np.linspace(0, 1, 101)
    recalls, precisions = np.empty((2, n_samples, len(x)))
    for i, counts in enumerate(group_counts):
        images = counts[group_index]
        true_positives, false_positives = np.zeros((2, len(last_of_equals) + 1))
        true_positives[1:] = np.cumsum(images * label)[last_of_equals]
        false_positives[1:] = np.cumsum(images)[last_of_equals] - true_positives[1:]
        recalls[i] = np.interp(x, false_positives / false_positives[-1], true_positives / true_positives[-1])
        # A product such as 0.29 * 100 may lie just above an integer.
        required = np.maximum(x * true_positives[-1], 1) - 1e-6
        reached = np.searchsorted(true_positives, required)
        called = true_positives[reached] + false_positives[reached]
        precisions[i] = true_positives[reached] / called
    curves = {"roc": recalls, "precision_recall": precisions}
    return {name: (x, *np.quantile(values, [0.025, 0.975], axis=0)) for name, values in curves.items()}
