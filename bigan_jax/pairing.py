"""Paired differences between runs: the same test pictures, resampled alike for both."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from bigan_jax import intervals
from bigan_jax.errors import UserError
from bigan_jax.results import Run, read_scores
from bigan_jax.tables import Difference


class Sample(NamedTuple):
    """A run's AUROC under resampled test pictures, and a mark that equal tests share."""

    test: str
    auroc: Float[np.ndarray, "draws"]


def samples(runs: Sequence[Run]) -> dict[Path, Sample | str]:
    """By workdir, the bootstrapped AUROCs of each run, or in words why there are none.

    The draws depend on the pictures' labels and groups alone, so that runs on the same test are
    resampled alike: their differences are paired.
    """
    found = {}
    for run in tqdm(runs, desc="bootstrap", unit="run", leave=False, disable=not runs):
        try:
            scores = read_scores(run)
        except UserError as error:
            found[run.workdir] = str(error)
            continue
        drawn = intervals.resampled(scores.label, scores.group)
        if drawn is None:
            found[run.workdir] = "a class comes from fewer than two groups: nothing to resample"
            continue
        test = repr([column.tolist() for column in (scores.path, scores.label, scores.group)])
        mark = hashlib.sha256(test.encode("utf-8", "surrogatepass")).hexdigest()
        auroc = intervals.ranking(scores.score, scores.label, *drawn)["auroc"]
        found[run.workdir] = Sample(mark, auroc)
    return found


def difference(
    runs: Sequence[Run], others: Sequence[Run], samples: Mapping[Path, Sample | str]
) -> Difference | str:
    """Mean AUROC of some runs less that of others, with the paired bootstrap's 95 % interval.

    Seeds are averaged within each draw, so the interval is that of the test pictures alone. Where
    the runs were not tested on the same pictures, a sentence that says so.
    """
    for run in (*runs, *others):
        if isinstance(reason := samples[run.workdir], str):
            return f"{run.workdir}: {reason}"
    if len({samples[run.workdir].test for run in (*runs, *others)}) > 1:
        return "not tested on the same pictures"
    drawn, value = (
        ours - theirs
        for ours, theirs in zip(_means(runs, samples), _means(others, samples), strict=True)
    )
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(float(value), (float(low), float(high)))


def _means(runs, samples):
    """Over seeds: each draw's AUROC, and the AUROC of the evaluations."""
    drawn = np.mean([samples[run.workdir].auroc for run in runs], axis=0)
    return drawn, np.mean([run.evaluation["auroc"] for run in runs])
