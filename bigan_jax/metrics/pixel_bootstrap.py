"""Bootstrap confidence intervals of pixel metrics: images are resampled by group, with all pixels.

The millions of pixels are counted once per group, in a few thousand bins of error, and a sample adds up counts.
Pixels of one bin are ties, which changes a metric by about 0.0001.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from bigan_jax.metrics.bootstrap import Interval, group_resampling, percentile_intervals
from bigan_jax.metrics.pixel import LEVELS, PIXEL_METRICS, PixelCurve, levels

_CUTS = 1000  # quantiles of the defect pixels' errors that separate bins


def pixel_bootstrap_intervals(
    maps: Num[np.ndarray, "n h w"],
    masks: Bool[np.ndarray, "n h w"],
    group: Shaped[np.ndarray, "n"],
    weights: Float[np.ndarray, "d"],
    n_samples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval] | None:
    """Returns 95 % intervals of all PIXEL_METRICS by name; `weights` are the `region_weights` of the masks.

    The result is None if there is nothing to resample: no defect pixel, or one group only of images with defects or
    without.
    """
    resampling = group_resampling(np.asarray(masks.any((1, 2))), group, n_samples, seed)
    if resampling is None:
        return None
    group_index, group_counts = resampling
    histograms = _group_histograms(maps, masks, group_index, weights)[..., ::-1]  # high to low
    values = {name: [] for name in PIXEL_METRICS}
    for sample in np.stack([group_counts.astype(float) @ counts for counts in histograms], 1):
        normal, defect, overlap = np.cumsum(sample, axis=-1)
        curve = PixelCurve(np.append(0, normal[:-1]), normal, defect, overlap, normal[-1])
        for name, metric in PIXEL_METRICS.items():
            values[name].append(metric.value(curve))
    return percentile_intervals(values)


def _group_histograms(
    maps: Num[np.ndarray, "n h w"],
    masks: Bool[np.ndarray, "n h w"],
    group_index: Int[np.ndarray, "n"],
    weights: Float[np.ndarray, "d"],
) -> Float[np.ndarray, "3 groups bins"]:
    """Returns each group's normal pixels, defect pixels and region weights by bin of error."""
    level_of = levels(maps)
    defect = np.sort(np.concatenate([level_of(m[d]) for m, d in zip(maps, masks, strict=True)]))
    cuts = defect[np.linspace(0, len(defect) - 1, _CUTS).astype(int)]
    # A cut's own level is a bin, so that no normal pixel next to it ties with a lone defect pixel.
    cuts = np.unique(np.concatenate([cuts - 1, cuts]))
    bin_of = np.searchsorted(cuts, np.arange(LEVELS)).astype(np.int32)
    n_bins = len(cuts) + 1
    histograms = np.zeros((3, group_index.max() + 1, n_bins))
    starts = np.cumsum([0, *np.count_nonzero(masks, axis=(1, 2))])
    for i, group in enumerate(group_index):
        bins = bin_of[level_of(maps[i])]
        defect_bins = bins[masks[i]]
        image_weights = weights[starts[i] : starts[i + 1]]
        histograms[0, group] += np.bincount(bins[~masks[i]], minlength=n_bins)
        histograms[1, group] += np.bincount(defect_bins, minlength=n_bins)
        histograms[2, group] += np.bincount(defect_bins, image_weights, minlength=n_bins)
    return histograms
