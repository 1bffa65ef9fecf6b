"""Statistics over runs: mean and spread over seeds, and paired bootstrap differences.

Runs are paired because they are tested on the same images, which are resampled alike for both.
"""

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
    """A difference of two values.

    Attributes:
      value: the difference; over several splits, the mean difference.
      interval: its 95 % interval, if there is one.
      std: the standard deviation over several splits.
      splits: the number of splits.
    """

    value: float
    interval: tuple[float, float] | None = None
    std: float | None = None
    splits: int = 1


class BootstrapSamples(NamedTuple):
    """A run's AUROC in each bootstrap sample of its test images.

    Attributes:
      test: a hash that is equal for equal test sets.
      auroc: None if a class comes from fewer than two groups, so that nothing can be resampled.
    """

    test: str
    auroc: Float[np.ndarray, "samples"] | None


def bootstrap_samples(runs: Sequence[FinishedRun]) -> dict[Path, BootstrapSamples | str]:
    """Returns the bootstrapped AUROCs of each run by workdir, or the reason why there are none.

    The samples depend on the labels and groups of the test images alone. Runs on the same test set are therefore
    resampled alike, which makes their differences paired.
    """
    samples = {}
    for run in tqdm(runs, desc="bootstrap", unit="run", leave=False, disable=not runs):
        try:
            scores = read_scores(run)
        except UserError as error:
            samples[run.workdir] = str(error)
            continue
        test = repr([column.tolist() for column in (scores.path, scores.label, scores.group)])
        test_hash = hashlib.sha256(test.encode("utf-8", "surrogatepass")).hexdigest()
        resampling = group_resampling(scores.label, scores.group)
        metrics = {"auroc": IMAGE_METRICS["auroc"]}
        values = resampling and resampled_metrics(metrics, scores.score, scores.label, run.result.threshold, resampling)
        samples[run.workdir] = BootstrapSamples(test_hash, values and values["auroc"])
    return samples


def paired_difference(
    runs: Sequence[FinishedRun], others: Sequence[FinishedRun], samples: Mapping[Path, BootstrapSamples | str]
) -> Difference | str:
    """Returns the mean AUROC of `runs` minus that of `others`, with its 95 % bootstrap interval.

    Seeds are averaged within each bootstrap sample, so the interval covers the choice of test images alone. If runs
    have different splits, the differences on each test set are averaged, and their standard deviation takes the place
    of the interval, since the test sets of several splits share images.

    Args:
      runs, others: the runs of two detectors.
      samples: of all these runs, by `bootstrap_samples`.

    Returns:
      The difference, or a sentence that says why there is none.
    """
    for run in (*runs, *others):
        if isinstance(reason := samples[run.workdir], str):
            return f"{run.workdir}: {reason}"
    by_test, others_by_test = _by_test(runs, samples), _by_test(others, samples)
    if by_test.keys() != others_by_test.keys():
        return "not tested on the same images"
    if any(run.result.auroc is None for run in (*runs, *others)):
        return "a test set lacks a class"
    over_tests = spread(_mean_auroc(by_test[test]) - _mean_auroc(others_by_test[test]) for test in by_test)
    if over_tests.n > 1:
        return Difference(over_tests.mean, None, over_tests.std, over_tests.n)
    if samples[runs[0].workdir].auroc is None:
        return "a class comes from fewer than two groups: nothing to resample"
    differences = _mean_samples(runs, samples) - _mean_samples(others, samples)
    low, high = np.quantile(differences, [0.025, 0.975])
    return Difference(over_tests.mean, (float(low), float(high)))


def _by_test(runs, samples):
    by_test = defaultdict(list)
    for run in runs:
        by_test[samples[run.workdir].test].append(run)
    return by_test


def _mean_auroc(runs):
    return np.mean([run.result.auroc for run in runs])


def _mean_samples(runs, samples):
    """Returns the AUROC of each bootstrap sample, averaged over seeds."""
    return np.mean([samples[run.workdir].auroc for run in runs], axis=0)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Returns mean and standard deviation of the values that are not None; None if all are."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Spread(float(np.mean(known)), std, len(known))
