"""Statistics over runs: mean and spread over seeds, and bootstrap differences, paired by the shared test images."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from bigan_jax.errors import UserError
from bigan_jax.evaluation.finished_run import FinishedRun, read_baseline_scores, read_scores
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
    """The AUROC of a run or of a baseline, on its test images and on bootstrap samples of them."""

    test: str  # a hash that is equal for equal test sets
    auroc: float | None  # None if the test set lacks a class
    samples: Float[np.ndarray, "samples"] | None  # None if there is nothing to resample


def bootstrap_samples(
    runs: Sequence[FinishedRun], score: str, baseline: str | None = None
) -> dict[Path, BootstrapSamples | str]:
    """Returns the bootstrapped AUROCs of each run's score of this name, or of its baseline.

    The samples depend on the labels and groups of the test images alone, so runs on the same test set, and their
    baselines, are paired. In place of samples, a sentence says why there are none.
    """
    samples: dict[Path, BootstrapSamples | str] = {}
    for run in tqdm(runs, desc="bootstrap", unit="run", leave=False, disable=None):
        try:
            scores = read_scores(run, score) if baseline is None else read_baseline_scores(run, score, baseline)
        except UserError as error:
            samples[run.workdir] = f"{run.workdir}: {error}"
            continue
        test = repr([column.tolist() for column in (scores.path, scores.label, scores.group)])
        test_hash = hashlib.sha256(test.encode("utf-8", "surrogatepass")).hexdigest()
        resampling = group_resampling(scores.label, scores.group)
        result = run.result.by_score(score)
        values = None
        if resampling:
            metrics = {"auroc": IMAGE_METRICS["auroc"]}
            values = resampled_metrics(metrics, scores.score, scores.label, 0.0, resampling)["auroc"]
        area = result.auroc if baseline is None else result.baselines[baseline]
        samples[run.workdir] = BootstrapSamples(test_hash, area, values)
    return samples


def paired_difference(
    first: Sequence[BootstrapSamples | str], second: Sequence[BootstrapSamples | str]
) -> Difference | str:
    """Returns the mean AUROC of the `first` minus that of the `second`, or a sentence that says why there is none.

    Seeds are averaged within each bootstrap sample, so the interval covers the choice of test images alone. If runs
    have different splits, the differences on each test set are averaged, and their standard deviation takes the place
    of the interval, since the test sets of several splits share images.
    """
    known: list[list[BootstrapSamples]] = []
    for side in (first, second):
        if reason := next((sample for sample in side if isinstance(sample, str)), None):
            return reason
        known.append([sample for sample in side if not isinstance(sample, str)])
    by_test, others_by_test = map(_by_test, known)
    if by_test.keys() != others_by_test.keys():
        return "not tested on the same images"
    if any(sample.auroc is None for side in known for sample in side):
        return "a test set lacks a class"
    over_tests = spread(float(np.mean(aurocs) - np.mean(others_by_test[test])) for test, aurocs in by_test.items())
    assert over_tests is not None
    if over_tests.n > 1:
        return Difference(over_tests.mean, None, over_tests.std, over_tests.n)
    if known[0][0].samples is None:
        return "a class comes from fewer than two groups: nothing to resample"
    mean, others_mean = (np.array([sample.samples for sample in side]).mean(0) for side in known)
    low, high = np.quantile(mean - others_mean, [0.025, 0.975]).tolist()
    return Difference(over_tests.mean, (low, high))


def _by_test(samples):
    """Returns the AUROCs by test set."""
    by_test = defaultdict(list)
    for sample in samples:
        by_test[sample.test].append(sample.auroc)
    return by_test


def spread(values: Iterable[float | None]) -> Spread | None:
    """Returns mean and standard deviation of the values that are not None; None if all are."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Spread(float(np.mean(known)), std, len(known))
