"""Bootstrap intervals of what error maps are told by: pictures are drawn, with all their pixels.

A draw of a thousand pictures has millions of pixels. Here each group's pixels are counted once, in
a few thousand bins of error, and a draw adds counts. A bin's pixels are ties, which moves a figure
by some 0.0001.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from bigan_jax.metrics.bootstrap import Interval, group_resampling, percentile_intervals
from bigan_jax.metrics.pixel import LEVELS, curve_areas, levels

_CUTS = 1000  # between bins: so many quantiles of the defect pixels' errors


def pixel_bootstrap_intervals(
    maps: Num[np.ndarray, "n h w"],
    masks: Bool[np.ndarray, "n h w"],
    group: Shaped[np.ndarray, "n"],
    shares: Float[np.ndarray, "d"],
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Interval] | None:
    """95 % intervals of pixel AUROC, pixel average precision and AUPRO, by `resampled` groups.

    shares: what `pixels.region_shares` made of the masks. None where there is nothing to resample:
    no defect pixel, or one group of pictures with or without any.
    """
    resampling = group_resampling(masks.any((1, 2)), group, draws, seed)
    if resampling is None:
        return None
    member, times = resampling
    counted = _counted(maps, masks, member, shares)[..., ::-1]  # from high errors to low
    samples = []
    for drawn in np.stack([times.astype(float) @ counts for counts in counted], 1):
        normal, found, overlap = np.cumsum(drawn, axis=-1)
        before = np.append(0, normal[:-1])
        samples.append(curve_areas(before, normal, found, overlap, normal[-1]))
    return percentile_intervals(
        {name: [figures[name] for figures in samples] for name in samples[0]}
    )


def _counted(
    maps: Num[np.ndarray, "n h w"],
    masks: Bool[np.ndarray, "n h w"],
    member: Int[np.ndarray, "n"],
    shares: Float[np.ndarray, "d"],
) -> Float[np.ndarray, "3 groups bins"]:
    """Each group's normal pixels, defect pixels and shares of regions by bin of error."""
    level_of = levels(maps)
    defect = np.sort(np.concatenate([level_of(m[d]) for m, d in zip(maps, masks, strict=True)]))
    cuts = defect[np.linspace(0, len(defect) - 1, _CUTS).astype(int)]
    # A cut's own level is a bin, so that no normal pixel beside it ties with a lone defect pixel.
    cuts = np.unique(np.concatenate([cuts - 1, cuts]))
    bin_of = np.searchsorted(cuts, np.arange(LEVELS)).astype(np.int32)
    size = len(cuts) + 1
    counted = np.zeros((3, member.max() + 1, size))
    begins = np.cumsum([0, *np.count_nonzero(masks, axis=(1, 2))])
    for i, of in enumerate(member):
        pixel = bin_of[level_of(maps[i])]
        found = pixel[masks[i]]
        own = shares[begins[i] : begins[i + 1]]
        counted[0, of] += np.bincount(pixel[~masks[i]], minlength=size)
        counted[1, of] += np.bincount(found, minlength=size)
        counted[2, of] += np.bincount(found, own, minlength=size)
    return counted
