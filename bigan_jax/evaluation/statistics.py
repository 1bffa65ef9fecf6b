"""Statistics over runs: mean and spread over seeds, and bootstrap differences, paired by the shared test images."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from bigan_jax.errors import UserError
from bigan_jax.evaluation.finished_run import FinishedRun, read_scores
from bigan_jax.metrics.bootstrap import group_resampling, resampled_metrics
from bigan_jax.metrics.image import IMAGE_METRICS


class Spread(NamedTuple):
    """A value over n runs: its mean and, for two runs or more, its standard deviation (n - 1)."""

    mean: float
    std: float | None
    n: int


class Difference(NamedTuple):
    """A difference of two values, or the mean difference over several splits."""

    value: float
    interval: tuple[float, float] | None = None  # 95 %
    std: float | None = None  # over several splits
    splits: int = 1  # the number of splits


class BootstrapSamples(NamedTuple):
    """A run's AUROC in each bootstrap sample of its test images."""

    test: str  # a hash that is equal for equal test sets
    auroc: Float[np.ndarray, "samples"] | None  # None if there is nothing to resample


def bootstrap_samples(runs: Sequence[FinishedRun], score: str) -> dict[Path, BootstrapSamples | str]:
    """Returns the bootstrapped AUROCs of each run's score of this name, by workdir, or the reason why there are none.

    The samples depend on the labels and groups of the test images alone, so runs on the same test set are paired.
    """
    samples = {}
    for run in tqdm(runs, desc="bootstrap", unit="run", leave=False, disable=None):
        try:
            scores = read_scores(run, score)
        except UserError as error:
            samples[run.workdir] = str(error)
            continue
        test = repr([column.tolist() for column in (scores.path, scores.label, scores.group)])
        test_hash = hashlib.sha256(test.encode("utf-8", "surrogatepass")).hexdigest()
        resampling = group_resampling(scores.label, scores.group)
        metrics = {"auroc": IMAGE_METRICS["auroc"]}
        auroc = None
        if resampling:
            values = resampled_metrics(
                metrics, scores.score, scores.label, run.result.scores[score].threshold, resampling
            )
            auroc = values["auroc"]
        samples[run.workdir] = BootstrapSamples(test_hash, auroc)
    return samples


def paired_difference(
    runs: Sequence[FinishedRun],
    others: Sequence[FinishedRun],
    samples: Mapping[Path, BootstrapSamples | str],
    score: str,
) -> Difference | str:
    """Returns the mean AUROC of a score of `runs` minus that of `others`, or a sentence that says why there is none.

    Seeds are averaged within each bootstrap sample, so the interval covers the choice of test images alone. If runs
    have different splits, the differences on each test set are averaged, and their standard deviation takes the place
    of the interval, since the test sets of several splits share images.
    """
    known: dict[Path, BootstrapSamples] = {}
    for run in (*runs, *others):
        sample = samples[run.workdir]
        if isinstance(sample, str):
            return f"{run.workdir}: {sample}"
        known[run.workdir] = sample
    by_test, others_by_test = _by_test(runs, known, score), _by_test(others, known, score)
    if by_test.keys() != others_by_test.keys():
        return "not tested on the same images"
    if any(run.result.scores[score].auroc is None for run in (*runs, *others)):
        return "a test set lacks a class"
    over_tests = spread(float(np.mean(aurocs) - np.mean(others_by_test[test])) for test, aurocs in by_test.items())
    assert over_tests is not None
    if over_tests.n > 1:
        return Difference(over_tests.mean, None, over_tests.std, over_tests.n)
    if known[runs[0].workdir].auroc is None:
        return "a class comes from fewer than two groups: nothing to resample"
    mean, others_mean = (np.array([known[run.workdir].auroc for run in side]).mean(0) for side in (runs, others))
    low, high = np.quantile(mean - others_mean, [0.025, 0.975]).tolist()
    return Difference(over_tests.mean, (low, high))


def _by_test(runs, samples, score):
    """Returns the AUROCs of runs by test set."""
    by_test = defaultdict(list)
    for run in runs:
        by_test[samples[run.workdir].test].append(run.result.scores[score].auroc)
    return by_test


def spread(values: Iterable[float | None]) -> Spread | None:
    """Returns mean and standard deviation of the values that are not None; None if all are."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Spread(float(np.mean(known)), std, len(known))
