"""Paired differences between runs: the same test pictures, resampled alike for both."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from bigan_jax.errors import UserError
from bigan_jax.evaluation.results import FinishedRun, read_scores
from bigan_jax.metrics import bootstrap


class Spread(NamedTuple):
    """A figure over n runs: mean and, from two runs on, standard deviation (n - 1)."""

    mean: float
    std: float | None
    n: int


class Difference(NamedTuple):
    """A figure less another's, with its 95 % interval where that could be had; or the mean over
    so many splits, with the standard deviation over them."""

    value: float
    interval: tuple[float, float] | None = None
    std: float | None = None
    splits: int = 1


class Sample(NamedTuple):
    """A run's AUROC under resampled test pictures, and a mark that equal tests share. None where a
    class comes from fewer than two groups: there is nothing to resample."""

    test: str
    auroc: Float[np.ndarray, "draws"] | None


def bootstrap_samples(runs: Sequence[FinishedRun]) -> dict[Path, Sample | str]:
    """By workdir, the bootstrapped AUROCs of each run, or in words why it cannot be paired.

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
        test = repr([column.tolist() for column in (scores.path, scores.label, scores.group)])
        mark = hashlib.sha256(test.encode("utf-8", "surrogatepass")).hexdigest()
        drawn = bootstrap.group_resampling(scores.label, scores.group)
        auroc = drawn and bootstrap.ranking(scores.score, scores.label, *drawn)["auroc"]
        found[run.workdir] = Sample(mark, auroc)
    return found


def paired_difference(
    runs: Sequence[FinishedRun], others: Sequence[FinishedRun], samples: Mapping[Path, Sample | str]
) -> Difference | str:
    """Mean AUROC of some runs less that of others, with the paired bootstrap's 95 % interval.

    Seeds are averaged within each draw, so the interval is that of the test pictures alone. Where
    runs have each their own split, the differences on each test are averaged, and their standard
    deviation takes the interval's place: tests of several splits share pictures.
    Where it cannot be had, or the others were tested on other pictures, a sentence that says so.
    """
    for run in (*runs, *others):
        if isinstance(reason := samples[run.workdir], str):
            return f"{run.workdir}: {reason}"
    ours, theirs = _by_test(runs, samples), _by_test(others, samples)
    if ours.keys() != theirs.keys():
        return "not tested on the same pictures"
    if any(run.evaluation["auroc"] is None for run in (*runs, *others)):
        return "a test lacks a class"
    over = spread(_auroc(ours[test]) - _auroc(theirs[test]) for test in ours)
    if over.n > 1:
        return Difference(over.mean, None, over.std, over.n)
    if samples[runs[0].workdir].auroc is None:
        return "a class comes from fewer than two groups: nothing to resample"
    drawn = _drawn(runs, samples) - _drawn(others, samples)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(over.mean, (float(low), float(high)))


def _by_test(runs, samples):
    found = defaultdict(list)
    for run in runs:
        found[samples[run.workdir].test].append(run)
    return found


def _auroc(runs):
    return np.mean([run.evaluation["auroc"] for run in runs])


def _drawn(runs, samples):
    """Each draw's AUROC, over seeds."""
    return np.mean([samples[run.workdir].auroc for run in runs], axis=0)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and standard deviation of what there is; None where there is nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(float(np.mean(known)), _std(known), len(known))


def _std(values):
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
