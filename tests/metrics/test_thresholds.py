"""Thresholds and their promises against brute force, closed forms and simulation."""

import dataclasses
import itertools
import tracemalloc
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from bigan_jax.errors import UserError
from bigan_jax.metrics.promise import Promise, percent
from bigan_jax.metrics.thresholds import (
    ThresholdSettings,
    assign_folds,
    choose_threshold,
    conformal_threshold,
    cross_conformal_threshold,
    decide,
    exceeds_promise,
    folds_that_promise,
    manual_threshold,
    pixel_threshold,
)

# No deadline: a busy machine must not fail a test.
few = settings(max_examples=60, deadline=None)
scores = st.lists(st.integers(0, 12), min_size=1, max_size=60).map(lambda s: np.array(s) / 8)
rates = st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9])

N = [5, 10, 19, 20, 50, 200]
RATES = [0.01, 0.05, 0.1, 0.2]
Z = 5.2  # standard errors: a probability of 1e-7 on each side


def require_rate(alarm, promised):
    """Asserts that the frequency of alarms has a chance of at least 1e-7 if the probability is the promised one."""
    assert np.sum(alarm) <= binom.isf(1e-7, np.size(alarm), promised)


def require_mean(samples, upper, lower=0.0):
    """Asserts that the expectation lies in a range, up to Z standard errors of the mean."""
    error = Z * np.std(samples) / np.sqrt(len(samples))
    assert lower - error <= np.mean(samples) <= upper + error


# --- split conformal ---


@few
@given(scores, rates)
def test_conformal_threshold_is_the_smallest_that_keeps_the_rate(calibration, rate):
    threshold = conformal_threshold(calibration, rate)
    n = len(calibration)
    # A new exchangeable score takes any of the n + 1 ranks.
    allowed = int((n + 1) * rate + 1e-9)
    assert decide(calibration, threshold.value).sum() <= max(allowed - 1, 0)
    below = np.nextafter(threshold.value, -np.inf)
    assert decide(calibration, below).sum() >= max(allowed, 1)
    promise = threshold.promise
    assert promise.holds == (rate if allowed else 1 / (n + 1))
    assert promise.kept == (allowed > 0)
    assert (promise.requested, promise.n_images, promise.n_groups, promise.holds_for) == (rate, n, n, "images")


def rank(threshold, n):
    """Returns the k for which a threshold lies just above the k-th of the scores 0, ..., n - 1."""
    return int((np.arange(n) < threshold.value).sum())


@pytest.mark.parametrize("n", N)
@pytest.mark.parametrize("rate", RATES)
def test_conformal_rate_is_its_closed_form_in_simulation(n, rate):
    """Of uniform scores, the false-alarm rate at threshold t is 1 - t."""
    threshold = conformal_threshold(np.arange(float(n)), rate)
    k = rank(threshold, n)
    exact = (n + 1 - k) / (n + 1)
    assert exact <= threshold.promise.holds
    assert exact > threshold.promise.holds - 1 / (n + 1)
    rng = np.random.default_rng(n)
    drawn = 1 - np.partition(rng.random((20_000, n)), k - 1)[:, k - 1]
    require_mean(drawn, upper=exact, lower=exact)
    require_mean(drawn, upper=threshold.promise.holds)
    # One more or one less would be noticed.
    assert 1 / (n + 1) > 3 * Z * np.std(drawn) / np.sqrt(len(drawn))


@pytest.mark.parametrize("n, rate", [(5, 0.05), (19, 0.05), (50, 0.1)])
def test_false_alarms_on_new_images_with_equal_scores_keep_the_promise(n, rate):
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 8, (500, n + 1)).astype(np.float32)
    thresholds = [conformal_threshold(row[:-1], rate) for row in drawn]
    alarm = drawn[:, -1] >= [t.value for t in thresholds]
    require_rate(alarm, thresholds[0].promise.holds)


def test_required_number_of_images():
    promise = conformal_threshold(np.arange(18.0), 0.05).promise
    assert (promise.required, promise.holds) == (19, 1 / 19)
    assert conformal_threshold(np.arange(19.0), 0.05).promise.kept
    # In floats, 10 * (1 - 0.3) and the like may miss the integer.
    for rate in (0.1, 0.3, 0.7, 0.01, 0.07):
        required = int(np.ceil(1 / rate - 1e-9)) - 1
        promise = conformal_threshold(np.arange(float(required)), rate).promise
        assert promise.kept and promise.required == required
        if required > 1:
            assert not conformal_threshold(np.arange(required - 1.0), rate).promise.kept


def test_float32_scores_at_the_quantile_are_not_alarms():
    calibration = np.full(40, 0.1, np.float32)
    for groups in (None, np.arange(40) // 2):
        threshold = conformal_threshold(calibration, 0.05, groups).value
        assert not decide(calibration, threshold).any()
        assert not (calibration >= threshold).any()
        assert decide(np.nextafter(calibration, np.float32(1)), threshold).all()


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_rate_out_of_range(rate):
    fold = np.arange(9) % 3
    for threshold in (conformal_threshold, lambda s, rate: cross_conformal_threshold(s, fold, rate)):
        with pytest.raises(UserError, match="false_alarm_rate"):
            threshold(np.arange(9.0), rate)
    with pytest.raises(UserError, match="pixel_rate"):
        pixel_threshold(np.zeros((9, 2, 2)), rate)


def test_invalid_input():
    with pytest.raises(UserError, match="requires calibration images"):
        conformal_threshold(np.array([]), 0.05)
    with pytest.raises(UserError, match="requires calibration images"):
        pixel_threshold(np.zeros((0, 2, 2)), 0.05)
    with pytest.raises(ValueError, match="1 of 2 values of the calibration score"):
        conformal_threshold(np.array([1.0, np.nan]), 0.05)
    with pytest.raises(ValueError, match="1 of 4 values of the error map"):
        pixel_threshold(np.array([[[1.0, np.inf], [0, 0]]]), 0.05)
    with pytest.raises(UserError, match=r"threshold\.value"):
        manual_threshold(float("inf"))
    assert manual_threshold(1.0) == (1.0, "manual", None)


# --- groups ---


def hierarchical_by_definition(score, groups, rate):
    """Returns the smallest score at which the cumulative weight reaches 1 - rate; 1 / (G + 1) lies at infinity."""
    names, counts = np.unique(groups, return_counts=True)
    size = dict(zip(names, counts, strict=True))
    weight, reached = Fraction(0), 1 - Fraction(str(rate))
    for index in np.argsort(score, kind="stable"):
        weight += Fraction(1, int(size[groups[index]]) * (len(names) + 1))
        if weight >= reached:
            return score[index]
    raise AssertionError("too few groups")


@few
@given(st.data(), rates)
def test_hierarchical_threshold_is_that_of_its_definition(data, rate):
    required = int(np.ceil(1 / rate - 1e-9)) - 1
    sizes = data.draw(st.lists(st.integers(1, 7), min_size=required, max_size=required + 5))
    groups = np.repeat(np.arange(len(sizes)), sizes).astype(str)
    score = np.array(data.draw(st.lists(st.integers(-9, 9), min_size=len(groups), max_size=len(groups)))) / 8
    threshold, promise = conformal_threshold(score, rate, groups)[::2]
    expected = hierarchical_by_definition(score, groups, rate)
    assert threshold == np.nextafter(expected, np.inf)
    assert promise.holds_for == ("images" if max(sizes) == 1 else "groups")
    assert (promise.holds, promise.n_groups) == (rate, len(sizes))


@few
@given(scores, rates)
def test_one_image_per_group_is_no_group(calibration, rate):
    names = np.arange(len(calibration)).astype(str)
    assert conformal_threshold(calibration, rate, names) == conformal_threshold(calibration, rate)


@few
@given(scores, rates)
def test_too_few_groups_are_calibrated_by_images_and_promise_less(calibration, rate):
    n_groups = min(int(np.ceil(1 / rate - 1e-9)) - 2, len(calibration) - 1)
    if n_groups < 1:
        return
    by_image = conformal_threshold(calibration, rate)
    by_group = conformal_threshold(calibration, rate, np.arange(len(calibration)) % n_groups)
    assert by_group.value == by_image.value
    assert by_group.promise == dataclasses.replace(by_image.promise, holds_for="known groups", n_groups=n_groups)


def correlated(rng, groups, correlation):
    """Returns scores that are N(0, 1) each, with a correlation within groups."""
    effects = rng.normal(size=groups.max() + 1)[groups]
    return np.sqrt(correlation) * effects + np.sqrt(1 - correlation) * rng.normal(size=len(groups))


@pytest.mark.parametrize("rate, n_groups, correlation", [(0.05, 39, 0.99), (0.05, 19, 0.5), (0.2, 10, 0.9)])
def test_new_groups_keep_the_rate_and_pooling_would_not(rate, n_groups, correlation):
    """A few groups have many images. New groups are drawn as the old ones are, so a new score is N(0, 1)."""
    rng = np.random.default_rng(2)
    by_group, pooled = [], []
    for _ in range(300):
        groups = np.repeat(np.arange(n_groups), rng.choice([1, 30], n_groups, p=[0.75, 0.25]))
        score = correlated(rng, groups, correlation)
        threshold = conformal_threshold(score, rate, groups)
        assert threshold.promise.holds == rate
        by_group.append(norm.sf(threshold.value))
        pooled.append(norm.sf(conformal_threshold(score, rate).value))
    require_mean(by_group, upper=rate)
    assert np.mean(pooled) - Z * np.std(pooled) / np.sqrt(300) > rate


def test_rate_of_groups_is_its_closed_form():
    """Images of a group have one score, or groups are no groups at all: in both cases the rank decides."""
    rng = np.random.default_rng(3)
    for rate, n_groups, size in [(0.1, 29, 4), (0.2, 14, 3)]:
        groups = np.repeat(np.arange(n_groups), size)
        alike = [1 - conformal_threshold(rng.random(n_groups)[groups], rate, groups).value for _ in range(400)]
        exact = int(rate * (n_groups + 1) + 1e-9) / (n_groups + 1)
        require_mean(alike, upper=exact, lower=exact)
        unrelated = [1 - conformal_threshold(rng.random(len(groups)), rate, groups).value for _ in range(400)]
        above = int(size * (rate * (n_groups + 1) - 1) + 1e-9)  # images above the chosen one
        exact = (above + 1) / (len(groups) + 1)
        require_mean(unrelated, upper=exact, lower=exact)
        assert exact <= rate


def test_images_of_four_groups_promise_nothing_for_a_fifth():
    rng = np.random.default_rng(6)
    groups = np.repeat(np.arange(5), 20)
    known, new = [], []
    for _ in range(500):
        score = correlated(rng, groups, 0.9)
        chosen = rng.permutation(80)
        threshold = conformal_threshold(score[chosen[1:]], 0.05, groups[chosen[1:]])
        known.append(score[chosen[0]] >= threshold.value)
        new.append((score[80:] >= threshold.value).mean())
    assert threshold.promise.holds_for == "known groups"
    require_rate(known, 0.05)
    assert np.mean(new) > 0.1


# --- cross-conformal ---


def cross_rank(n, m, n_folds, rate):
    """Returns the lowest k for which one of the two bounds keeps the rate, and the rate that is promised."""
    rate = Fraction(str(rate))
    for k in range(n + 1):
        bounds = Fraction(n - k + m, n + m), Fraction(2 * (n - k) + n_folds, n + n_folds)
        if min(bounds) <= rate:
            return k, float(rate)
    return n, 1 / (1 + max(n_folds, m))


FOLDS = [(5, 5), (10, 2), (10, 5), (10, 10), (20, 2), (20, 5), (20, 20), (40, 2), (100, 5), (200, 2), (200, 5)]
FOLDS += [(50, 50), (200, 200)]


@pytest.mark.parametrize("n, n_folds", FOLDS)
@pytest.mark.parametrize("rate", [*RATES, 0.5, 0.9])
def test_cross_conformal_rank_and_promise(n, n_folds, rate):
    fold = np.random.default_rng(0).permutation(np.arange(n) % n_folds)
    threshold = cross_conformal_threshold(np.arange(float(n)), fold, rate)
    k, holds = cross_rank(n, n // n_folds, n_folds, rate)
    assert rank(threshold, n) == k
    assert threshold.promise.holds == pytest.approx(holds, rel=1e-15)
    assert (threshold.promise.folds, threshold.promise.n_images) == (n_folds, n)
    # A detector that needs no training is split conformal: the rate has a closed form.
    assert (n + 1 - k) / (n + 1) <= threshold.promise.holds
    assert threshold.promise.kept == (max(n_folds, n // n_folds) >= threshold.promise.required)


def test_folds_of_one_image_are_the_jackknife_minmax():
    """Then nothing is lost: k is that of split conformal calibration with all images."""
    for n, rate in itertools.product(N, RATES):
        threshold = cross_conformal_threshold(np.arange(float(n)), np.arange(n), rate)
        assert threshold.value == conformal_threshold(np.arange(float(n)), rate).value


def nearest(train, x):
    """The distance to the nearest training vector."""
    return np.linalg.norm(x[:, :, None] - train[:, None], axis=-1).min(-1)


def standardized(train, x):
    """The distance to the mean, in standard deviations. Few images make it vary much."""
    return (np.abs(x - train.mean(1, keepdims=True)) / train.std(1, keepdims=True)).max(-1)


def unstable(train, x):
    """Another scale and direction with each training image: a hash of their sum decides."""
    digits = 1e4 * train.sum((1, 2))
    angle = 2 * np.pi * (digits % 1)[:, None]
    return np.exp(9 * (digits * 0.7 % 1))[:, None] * np.exp(np.cos(angle) * x[..., 0] + np.sin(angle) * x[..., 1])


def by_modulus(train, x):
    """Images are integers; alarm at images that are the mean of the training images, modulo n + 1."""
    n_train = train.shape[1]
    modulus = 2 * n_train + 1
    return ((n_train * x - train.sum(1, keepdims=True)) % modulus == 0)[..., 0] * 1.0


def cross_alarms(detector, images, fold, k):
    """Returns, for each trial, whether its last image reaches the threshold above the k-th out-of-fold score.

    `images` has shape (trials, images, 2); images in fold -1 train all detectors.
    """
    known, new = images[:, :-1], images[:, -1:]
    out_of_fold, of_new = np.empty(known.shape[:2]), []
    for left_out in range(fold.max() + 1):
        train = known[:, fold != left_out]
        out_of_fold[:, fold == left_out] = detector(train, known[:, fold == left_out])
        of_new.append(detector(train, new)[:, 0])
    highest = np.partition(out_of_fold[:, fold >= 0], k - 1)[:, k - 1]
    return np.min(of_new, axis=0) > highest


@pytest.mark.parametrize("detector", [nearest, standardized, unstable])
@pytest.mark.parametrize("n, n_folds", [(5, 5), (8, 2), (23, 5), (19, 19), (40, 2), (100, 5), (200, 2), (60, 60)])
def test_refitted_detectors_keep_the_promise(detector, n, n_folds):
    """Also with images left over, where n is no multiple of the folds."""
    m = n // n_folds
    fold = np.repeat([*range(n_folds), -1], [*[m] * n_folds, n % n_folds])
    rng = np.random.default_rng(n)
    images = rng.normal(size=(150_000 // (n * n_folds) + 100, n + 1, 2)) * rng.choice([1, 4], (1, 1, 2))
    for rate in (0.05, 0.2):
        threshold = cross_conformal_threshold(np.arange(float(m * n_folds)), fold[fold >= 0], rate)
        alarm = cross_alarms(detector, images, fold, rank(threshold, m * n_folds))
        require_rate(alarm, threshold.promise.holds)


def test_cross_conformal_promise_is_exact_for_some_detector():
    """All orders of 5 images, the last one new: (c + 1) / (n + 1), as of split conformal scores, would be wrong."""
    images = np.array(list(itertools.permutations(range(5))))[..., None]
    fold = np.array([0, 0, 1, 1])
    threshold = cross_conformal_threshold(np.arange(4.0), fold, 0.05)
    alarm = cross_alarms(by_modulus, images, fold, rank(threshold, 4))
    assert alarm.mean() == threshold.promise.holds == 1 / 3


@pytest.mark.parametrize("n_folds", [2, 10, 20])
def test_cross_conformal_promise_holds_for_new_groups(n_folds):
    """Images of a group are alike, and divided groups would have their images among the training images."""
    rng = np.random.default_rng(4)
    alarms = []
    for _ in range(200):
        sizes = rng.choice([1, 9], 21)
        groups = np.repeat(np.arange(21), sizes)  # the last one is new
        images = (rng.normal(size=(21, 2))[groups] + 0.1 * rng.normal(size=(len(groups), 2)))[None]
        known = groups < 20
        fold = assign_folds(groups[known], n_folds)
        out_of_fold, of_new = np.empty(known.sum()), []
        for left_out in range(n_folds):
            train = (
                images[:, :-1][:, fold[: len(groups) - 1] != left_out]
                if False
                else images[:, known][:, fold != left_out]
            )
            out_of_fold[fold == left_out] = nearest(train, images[:, known][:, fold == left_out])[0]
            of_new.append(nearest(train, images[:, ~known])[0])
        threshold = cross_conformal_threshold(out_of_fold, fold, 0.1, groups[known])
        alarms.append((np.min(of_new, axis=0) >= threshold.value).mean())
    assert threshold.promise.holds_for == "groups"
    assert threshold.promise.holds == pytest.approx(max(0.1, 1 / (1 + max(n_folds, 20 // n_folds))))
    require_mean(alarms, upper=threshold.promise.holds)


@few
@given(st.data(), rates)
def test_groups_in_folds_count_as_fractions(data, rate):
    n_folds, m = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 12))
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=n_folds * m, max_size=n_folds * m))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    score = np.array(data.draw(st.lists(st.integers(0, 20), min_size=len(groups), max_size=len(groups)))) / 8
    threshold = cross_conformal_threshold(score, assign_folds(groups, n_folds), rate, groups)
    n, exact = len(sizes), Fraction(str(rate))

    def bound(level):
        above = sum(Fraction(int((score[groups == g] > level).sum()), size) for g, size in enumerate(sizes))
        return min((above + m) / (n + m), (2 * above + n_folds) / (n + n_folds))

    kept = [level for level in np.unique(score) if bound(level) <= exact]
    assert threshold.value == np.nextafter(min(kept, default=score.max()), np.inf)
    assert threshold.promise.holds == float(max(exact, bound(score.max())))


def test_folds_that_are_not_equal_have_the_second_bound():
    fold = np.repeat([0, 1, 2], [30, 40, 20])
    threshold = cross_conformal_threshold(np.arange(90.0), fold, 0.05)
    # 2 c + 3 <= 0.05 * 93 = 4.65
    assert rank(threshold, 90) == 90 and threshold.promise.kept
    assert rank(cross_conformal_threshold(np.arange(90.0), fold, 0.1), 90) == 87  # 2 c + 3 <= 9.3
    assert cross_conformal_threshold(np.arange(90.0), fold, 0.01).promise.holds == 3 / 93


def test_invalid_folds():
    with pytest.raises(ValueError, match="divide groups"):
        cross_conformal_threshold(np.arange(4.0), np.array([0, 0, 1, 1]), 0.1, np.array(["a", "b", "b", "c"]))
    for fold in ([0, 0, 0], [-1, 0, 1]):
        with pytest.raises(ValueError, match="at least 2 folds"):
            cross_conformal_threshold(np.arange(3.0), np.array(fold), 0.1)


def test_folds_are_equal_and_depend_on_names_alone():
    names = np.array([f"{i % 23:03}.png" for i in range(60)])
    fold = assign_folds(names, 5)
    by_name = dict(zip(names, fold, strict=True))
    assert [by_name[name] for name in names] == fold.tolist()  # no group is divided
    assert sorted(by_name.values()) == sorted([-1] * 3 + list(range(5)) * 4)
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_array_equal(assign_folds(names[order], 5), fold[order])
    assert assign_folds(names.tolist(), 5).tolist() == fold.tolist()
    assert sorted(assign_folds(names[:23], 23)) == list(range(23))
    assert assign_folds(["a", "b\udcff"], 2).tolist() in ([0, 1], [1, 0])  # a name that is not valid UTF-8
    with pytest.raises(UserError, match="folds=24 requires at least 24 groups"):
        assign_folds(names, 24)


# --- pixels ---


def pixel_bound(maps, level, groups):
    """Returns the bound of conformal risk control: the mean over groups of images' fractions, with one at 1."""
    share = [Fraction(int((errors > level).sum()), errors.size) for errors in maps]
    names = np.unique(groups)
    means = [
        sum(s for s, g in zip(share, groups, strict=True) if g == name) / int((groups == name).sum()) for name in names
    ]
    return (sum(means) + 1) / (len(names) + 1)


@few
@given(st.integers(0, 99), rates, st.sampled_from([1, 2, 5]))
def test_pixel_threshold_is_that_of_its_definition(seed, rate, size):
    rng = np.random.default_rng(seed)
    n_groups = int(np.ceil(1 / rate - 1e-9)) - 1 + rng.integers(0, 4)
    groups = np.repeat(np.arange(n_groups), rng.integers(1, size + 1, n_groups))
    maps = rng.integers(-5, 6, (len(groups), 2, 3)).astype(np.float32) * rng.integers(1, 5, (len(groups), 1, 1))
    value, promise = pixel_threshold(maps, rate, groups)
    kept = [level for level in np.unique(maps) if pixel_bound(maps, level, groups) <= Fraction(str(rate))]
    assert value == np.nextafter(min(kept), np.float32(np.inf))
    assert (promise.holds, promise.share_of, promise.kept) == (rate, "pixels", True)


def test_too_few_images_mark_no_calibration_pixel():
    maps = np.random.default_rng(0).random((5, 8, 8)).astype(np.float32)
    value, promise = pixel_threshold(maps, 0.05)
    assert value == np.nextafter(maps.max(), np.float32(np.inf))
    assert promise.holds == 1 / 6 and not promise.kept


def correlated_maps(rng, n, shape=(8, 8)):
    """Maps whose level and neighboring pixels are alike, so that pixels are not exchangeable."""
    noise = rng.gamma(0.5, size=(n, *shape))
    smooth = noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2)
    return rng.gamma(1.0, size=(n, 1, 1)) ** 2 * smooth


@pytest.mark.parametrize("n, rate", [(5, 0.05), (5, 0.2), (19, 0.05), (20, 0.1), (50, 0.05), (200, 0.01)])
def test_pixel_rate_holds_for_new_images(n, rate):
    rng = np.random.default_rng(n)
    shares, means = [], []
    for _ in range(400):
        maps = correlated_maps(rng, n + 1)
        value, promise = pixel_threshold(maps[:n], rate)
        shares.append((maps[n] >= value).mean())
        means.append((maps[:n] >= value).mean())
    require_mean(shares, upper=promise.holds)
    # No pixel more would be allowed.
    assert np.allclose(means, max((n + 1) * rate - 1, 0) / n, atol=1 / (64 * n))


def test_pixel_rate_holds_for_new_groups_and_pooling_would_not():
    """Large groups have low errors here, so that most images are alike."""
    rng = np.random.default_rng(9)
    by_group, pooled = [], []
    for _ in range(400):
        sizes = rng.choice([1, 20], 40, p=[0.75, 0.25])
        levels = rng.gamma(1.0, size=40) ** 2
        levels[sizes > 1] *= 0.1
        groups = np.repeat(np.arange(40), sizes)
        maps = levels[groups][:, None, None] * rng.gamma(2.0, size=(len(groups), 4, 4))
        known = groups < 39
        for shares, names in ((by_group, groups[known]), (pooled, None)):
            value, promise = pixel_threshold(maps[known], 0.05, names)
            shares.append((maps[~known] >= value).mean())
            assert promise.holds == 0.05
    require_mean(by_group, upper=0.05)
    assert np.mean(pooled) - Z * np.std(pooled) / 20 > 0.05


def test_pixels_of_folds_have_the_bounds_of_cross_conformal_scores():
    maps = np.random.default_rng(1).random((40, 3, 3))
    value, promise = pixel_threshold(maps, 0.05, fold=np.arange(40) % 2)
    above = (maps >= value).mean((1, 2)).sum()
    assert (2 * above + 2) / 42 <= 0.05 < (2 * (above + 1 / 9) + 2) / 42
    assert (promise.holds, promise.folds) == (0.05, 2)
    assert pixel_threshold(maps[:, :1, :1], 0.05, fold=np.arange(40) % 2)[0] == cross_conformal_threshold(
        maps[:, 0, 0], np.arange(40) % 2, 0.05
    ).value  # fmt: skip


def test_pixel_threshold_takes_no_float64_copy():
    maps = np.random.default_rng(0).random((64, 128, 128), dtype=np.float32)
    tracemalloc.start()
    pixel_threshold(maps, 0.05, np.arange(64) // 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.7 * maps.nbytes


# --- promises and settings ---

IMAGES = Promise("images", 0.05, 0.05, 100, 100, "images", 19)
SENTENCES = [
    ({}, "On average at most 5 % of new normal images score at or above the threshold (100 calibration images)."),
    (
        {"holds": 1 / 13, "n_images": 12, "n_groups": 12},
        "On average at most 7.7 % of new normal images score at or above the threshold: 12 calibration images cannot "
        "promise the requested 5 %, which requires 19.",
    ),
    (
        {"holds_for": "groups", "n_groups": 20},
        "On average at most 5 % of normal images of new groups score at or above the threshold (100 calibration images "
        "of 20 groups).",
    ),
    (
        {"holds_for": "known groups", "n_groups": 4},
        "On average at most 5 % of new normal images of the same 4 groups score at or above the threshold (100 "
        "calibration images); a promise for new groups requires 19 groups.",
    ),
    (
        {"holds_for": "known groups", "n_images": 2, "n_groups": 1, "holds": 1 / 3},
        "On average at most 33.4 % of new normal images of the same 1 group score at or above the threshold: 2 "
        "calibration images cannot promise the requested 5 %, which requires 19; a promise for new groups requires 19 "
        "groups.",
    ),
    (
        {"folds": 5},
        "On average at most 5 % of new normal images score at or above the threshold (100 normal images in 5 folds).",
    ),
    (
        {"folds": 5, "n_images": 30, "n_groups": 30, "holds": 1 / 7},
        "On average at most 14.3 % of new normal images score at or above the threshold: 30 normal images in 5 folds "
        "cannot promise the requested 5 %, which requires 19 folds or 19 images per fold.",
    ),
    (
        {"folds": 5, "n_images": 1234, "n_groups": 30, "holds": 1 / 7, "holds_for": "groups"},
        "On average at most 14.3 % of normal images of new groups score at or above the threshold: 1,234 normal images "
        "of 30 groups in 5 folds cannot promise the requested 5 %, which requires 19 folds or 19 groups per fold.",
    ),
    (
        {"share_of": "pixels"},
        "On average at most 5 % of the pixels of new normal images are marked (100 calibration images).",
    ),
]


@pytest.mark.parametrize("fields, sentence", SENTENCES)
def test_sentence(fields, sentence):
    promise = dataclasses.replace(IMAGES, **fields)
    assert promise.sentence == sentence
    assert msgspec.json.decode(msgspec.json.encode(promise), type=Promise) == promise


def test_percentages_are_rounded_up():
    written = [percent(rate) for rate in (0.05, 0.5, 0.125, 1 / 6, 1 / 14, 0.999, 0.9999, 0.00012345, 1.0)]
    assert written == ["5 %", "50 %", "12.5 %", "16.7 %", "7.15 %", "99.9 %", "100 %", "0.0124 %", "100 %"]


def test_rule_states_the_rate_that_holds():
    rule = ThresholdSettings()
    assert choose_threshold(rule, np.arange(19.0)).rule == "conformal, at most 5 % false alarms"
    assert choose_threshold(rule, np.arange(9.0)).rule == "conformal, at most 10 % false alarms"
    folds = choose_threshold(rule, np.arange(9.0), fold=np.arange(9) % 3)
    assert folds.rule == "cross-conformal, 3 folds, at most 25 % false alarms"
    assert choose_threshold(ThresholdSettings("manual", value=0.3), np.arange(9.0)) == (0.3, "manual", None)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"pixel_rate": 0.0}, r"pixel_rate must lie strictly between 0 and 1 \(got 0.0\)"),
        ({"false_alarm_rate": 1.0}, "false_alarm_rate must lie"),
        ({"rule": "manual", "value": 1.0, "pixel_rate": 2.0}, "pixel_rate must lie"),
        ({"folds": 1}, "folds must be 0"),
        ({"folds": -2}, "folds must be an integer of at least 0"),
        ({"folds": True}, "folds must be an integer of at least 0"),
        ({"rule": "manual", "value": 1.0, "folds": 5}, "folds=5 is for the conformal rule"),
        ({"rule": "manual", "value": float("inf")}, "must be a finite number"),
    ],
)
def test_invalid_settings(fields, message):
    with pytest.raises(UserError, match=message):
        ThresholdSettings(**fields)


@pytest.mark.parametrize(("n", "rate"), [(30, 0.05), (40, 0.05), (57, 0.05), (48, 0.1), (12, 0.05), (19, 0.05)])
def test_number_of_folds_is_the_smallest_that_promises(n, rate):
    def promised(folds):
        size = n // folds
        fold = np.repeat(np.arange(folds), size)
        return cross_conformal_threshold(np.arange(len(fold), dtype=float), fold, rate).promise.holds

    expected = next((folds for folds in range(2, n + 1) if promised(folds) <= rate), 0)
    assert folds_that_promise(n, rate) == expected


def test_probability_of_false_alarms_is_that_of_shuffled_scores():
    rng = np.random.default_rng(0)
    n, m = 20, 15
    draws = rng.normal(size=(20_000, n + m))
    calibration, normal = draws[:, :n], draws[:, n:]
    threshold = np.nextafter(np.sort(calibration)[:, -2], np.inf)  # one calibration score reaches it
    alarms = (normal >= threshold[:, None]).sum(1)
    for least in (1, 4, 8):
        example = normal[np.flatnonzero(alarms == least)[0]], calibration[np.flatnonzero(alarms == least)[0]]
        value = exceeds_promise(example[1], example[0], np.nextafter(np.sort(example[1])[-2], np.inf))
        share = (alarms >= least).mean()
        assert value == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 20_000) + 1e-4)
