"""Scores against loops in NumPy, and a new term from the table to the report's values."""

import dm_pix
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bigan_jax.errors import UserError
from bigan_jax.evaluation import anomaly_score
from bigan_jax.evaluation.anomaly_score import ScoreFormula, ScoreSettings, ScoreTerms
from bigan_jax.evaluation.calibrated_score import MapMoments, calibrated_score
from bigan_jax.nn import losses

PAPER = ScoreFormula({"mse": 0.7, "ssim": 0.3})


def image_pair(n=6, size=24, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.random((n, size, size, channels)).astype(np.float32)
    other = np.clip(image + rng.normal(0, 0.1, image.shape) * rng.random((n, 1, 1, 1)), 0, 1)
    return jnp.asarray(image), jnp.asarray(other, jnp.float32)


def random_terms(n=40, seed=0):
    """Terms of n images. As with the margin of SSIM, a value differs from the mean of its map."""
    rng = np.random.default_rng(seed)
    maps = {
        "mse": rng.gamma(1.0, 0.01, (n, 20, 15)).astype(np.float32),
        "ssim": rng.gamma(2.0, 0.2, (n, 20, 15)).astype(np.float32),
    }
    return ScoreTerms({name: m.mean((1, 2)) * np.float32(1.01) for name, m in maps.items()}, maps)


@pytest.mark.parametrize("channels", [1, 3])
def test_paper_score_equals_dm_pix_and_squared_error(channels):
    image, other = image_pair(channels=channels)
    terms = anomaly_score.terms(image, other)
    mse = np.square(np.asarray(image, np.float64) - other).mean((1, 2, 3))
    ssim_error = 1 - np.asarray(dm_pix.ssim(image, other))
    np.testing.assert_allclose(terms.value["mse"], mse, rtol=1e-5)
    np.testing.assert_allclose(terms.value["ssim"], ssim_error, atol=1e-5)
    np.testing.assert_allclose(anomaly_score.paper_score(PAPER, terms), 0.7 * mse + 0.3 * ssim_error, atol=1e-5)
    np.testing.assert_allclose(
        anomaly_score.combined_map(PAPER, terms),
        0.7 * np.square(image - other).mean(-1) + 0.3 * np.asarray(terms.map["ssim"]),
        atol=1e-6,
    )
    assert list(terms.value) == list(terms.map) == ["mse", "ssim"]


@pytest.mark.parametrize("reduction", anomaly_score.REDUCTIONS)
def test_reductions_equal_a_loop(reduction):
    terms = random_terms()
    scores = anomaly_score.paper_score(PAPER._replace(reduction=reduction), terms)
    for i, score in enumerate(scores):
        combined = 0.7 * terms.map["mse"][i] + 0.3 * terms.map["ssim"][i]
        descending = np.sort(combined.ravel())[::-1]
        expected = {
            "mean": 0.7 * terms.value["mse"][i] + 0.3 * terms.value["ssim"][i],
            "max": descending[0],
            "top1": descending[:3].mean(),  # 3 of 300 pixels
        }[reduction]
        assert float(score) == pytest.approx(expected, rel=1e-5)
    on_device = ScoreTerms(*({k: jnp.asarray(v) for k, v in part.items()} for part in terms))
    formula = PAPER._replace(reduction=reduction)
    np.testing.assert_allclose(anomaly_score.paper_score(formula, on_device), scores, rtol=1e-5)


def test_top1_of_few_pixels_is_the_maximum():
    maps = np.random.default_rng(0).random((2, 5, 7)).astype(np.float32)
    np.testing.assert_array_equal(anomaly_score.reduce(maps, "top1"), maps.max((1, 2)))


def test_standardized_terms_have_unit_deviation():
    terms = random_terms()
    deviations = anomaly_score.standard_deviations(terms.value)
    assert deviations["ssim"] == pytest.approx(np.std(terms.value["ssim"]), rel=1e-5)
    for name in deviations:
        alone = ScoreFormula({name: 1.0}).standardized(deviations)
        assert np.std(anomaly_score.paper_score(alone, terms)) == pytest.approx(1, rel=1e-4)
    # The unit of a term does not matter once it is standardized.
    scaled = ScoreTerms(terms.value | {"mse": terms.value["mse"] * 1000}, terms.map | {"mse": terms.map["mse"] * 1000})
    for reduction in anomaly_score.REDUCTIONS:
        formula = PAPER._replace(reduction=reduction)
        np.testing.assert_allclose(
            anomaly_score.paper_score(formula.standardized(deviations), terms),
            anomaly_score.paper_score(formula.standardized(anomaly_score.standard_deviations(scaled.value)), scaled),
            rtol=1e-4,
        )


def test_invalid_formulas():
    with pytest.raises(UserError, match=r"'top2'.*'top1'"):
        anomaly_score.formula({"mse": 1.0, "ssim": 0.0}, "top2")
    with pytest.raises(UserError, match=r"config\.score\.ssim must be .* \(got -1\.0\)"):
        anomaly_score.formula({"mse": 1.0, "ssim": -1.0}, "mean")
    with pytest.raises(UserError, match=r"weight 0: raise one of config\.score\.mse"):
        anomaly_score.formula({"mse": 0.0, "ssim": 0.0}, "mean")
    with pytest.raises(UserError, match=r"standardize .* that of ssim is 0"):
        PAPER.standardized({"mse": 1.0, "ssim": 0.0})
    with pytest.raises(UserError, match=r"config\.score\.name.*'papers'.*Did you mean 'paper'"):
        ScoreSettings(PAPER.weights, "papers")
    assert anomaly_score.formula({"mse": 1.0, "perceptual": 0.0}, "max") == ScoreFormula({"mse": 1.0}, "max")


def map_moments(terms):
    moments = MapMoments(list(terms.map))
    moments.add(terms.map)
    return moments


def test_both_scores_come_from_one_formula():
    terms, train = random_terms(), random_terms(20, seed=1)
    statistics = map_moments(train).statistics(PAPER.weights)
    formula = PAPER._replace(reduction="max")
    scores = anomaly_score.scores(formula, terms, statistics)
    assert list(scores) == ["paper", "calibrated"]
    np.testing.assert_array_equal(scores["paper"], anomaly_score.paper_score(formula, terms))
    maps = anomaly_score.combined_map(PAPER, terms)
    np.testing.assert_array_equal(scores["calibrated"], calibrated_score(maps, statistics))


def test_calibrated_score_finds_a_local_defect_that_the_mean_misses():
    """The error of half the normal images varies everywhere, and one pixel of the anomalous ones is wrong."""
    level = np.where(np.arange(8) % 2, 0.2, 0.1)  # of the error of normal images, alike at all pixels
    maps = np.broadcast_to(level[:, None, None], (8, 16, 16)).astype(np.float32)
    defective = maps.copy()
    defective[:, 5, 9] += 4.0  # 0.0156 in the mean, a third of the deviation of normal images
    values = {"mse": np.concatenate([maps, defective])}
    label = np.arange(16) >= 8
    terms = ScoreTerms({"mse": values["mse"].mean((1, 2))}, values)
    formula = ScoreFormula({"mse": 1.0})
    statistics = map_moments(ScoreTerms({}, {"mse": maps})).statistics(formula.weights)
    # All pixels have mean 0.15 and deviation 0.05, which becomes 0.06: smoothing changes no constant.
    np.testing.assert_allclose(statistics.mean, 0.15, rtol=1e-5)
    np.testing.assert_allclose(statistics.deviation, 0.06, rtol=1e-5)
    scores = anomaly_score.scores(formula, terms, statistics)
    assert roc_auc_score(label, scores["paper"]) == pytest.approx(0.75)  # by chance within the levels of error
    assert roc_auc_score(label, scores["calibrated"]) == 1
    assert scores["calibrated"][:8] == pytest.approx(np.where(np.arange(8) % 2, (0.05 / 0.06) ** 2, 0), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "reduction", "standardize"),
    [("paper", "top1", True), ("calibrated", "top1", True), ("paper", "mean", False)],
)
def test_score_table_has_each_score_once(name, reduction, standardize):
    terms, train = random_terms(600), random_terms(20, seed=1)
    label = np.arange(600) % 3 == 0
    deviations, moments = anomaly_score.standard_deviations(train.value), map_moments(train)
    used = ScoreSettings({"mse": 0.5, "ssim": 0.1}, name, reduction, standardize)
    rows = anomaly_score.score_table(terms, label, deviations, moments, used)
    scores = [(row.score, row.standardize, row.reduction) for row in rows]
    paper, custom = "0.7 mse + 0.3 ssim", "0.5 mse + 0.1 ssim"
    names = [("mse", False), ("ssim", False), *((s, f) for s in (paper, custom) for f in (False, True))]
    reductions = "mean", "max", "top1", "calibrated"
    assert scores == [(*name, reduction) for name in names for reduction in reductions]
    assert [s for s, row in zip(scores, rows, strict=True) if row.paper] == [(paper, False, "mean")]
    used_reduction = "calibrated" if name == "calibrated" else reduction
    assert [s for s, row in zip(scores, rows, strict=True) if row.used] == [(custom, standardize, used_reduction)]

    weights = {"mse": {"mse": 1.0}, "ssim": {"ssim": 1.0}, paper: PAPER.weights, custom: used.weights}
    for row in rows:
        formula = ScoreFormula(weights[row.score])
        if row.standardize:
            formula = formula.standardized(deviations)
        if row.reduction == "calibrated":
            score = anomaly_score.scores(formula, terms, moments.statistics(formula.weights))["calibrated"]
        else:
            score = anomaly_score.paper_score(formula._replace(reduction=row.reduction), terms)
        assert row.auroc == pytest.approx(roc_auc_score(label, np.asarray(score))), row


def test_score_table_with_one_term_in_use():
    terms = random_terms(10)
    label = np.arange(10) < 5
    statistics = anomaly_score.standard_deviations(terms.value), map_moments(terms)
    for name, reduction in ("paper", "max"), ("calibrated", "calibrated"):
        used = ScoreSettings({"mse": 3.0, "ssim": 0.0}, name, "max", standardize=True)
        rows = anomaly_score.score_table(terms, label, *statistics, used)
        assert [(row.score, row.reduction) for row in rows if row.used] == [("mse", reduction)]
    constant = {"mse": 0.0, "ssim": 1.0}  # mse cannot be standardized
    settings = ScoreSettings(PAPER.weights, "paper")
    rows = anomaly_score.score_table(terms, label & False, constant, statistics[1], settings)
    assert {(row.standardize, row.auroc) for row in rows} == {(False, None)}


def test_perceptual_map_is_the_feature_difference_at_image_size():
    image, other = image_pair(n=2, size=32)
    rng = np.random.default_rng(1)
    features, others = (
        [jnp.asarray(rng.random((2, n, n, c), np.float32)) for n, c in ((8, 5), (16, 3))] for _ in range(2)
    )
    terms = anomaly_score.terms(image, other, (features, others))
    np.testing.assert_allclose(terms.value["perceptual"], losses.perceptual(features, others))
    maps = np.asarray(terms.map["perceptual"])
    assert maps.shape == (2, 32, 32)
    np.testing.assert_allclose(maps.mean((1, 2)), terms.value["perceptual"], rtol=1e-5)
    # A difference at one position of the features appears at that position of the image.
    changed = [features[0].at[:, 1, 6].add(1), features[1]]
    spot = np.asarray(anomaly_score.terms(image, other, (features, changed)).map["perceptual"][0])
    row, column = np.unravel_index(spot.argmax(), spot.shape)
    assert 4 <= row < 8 and 24 <= column < 28 and spot[12:].max() == 0
    score = anomaly_score.paper_score(ScoreFormula({"mse": 1.0, "perceptual": 0.1}), terms)
    np.testing.assert_allclose(score, terms.value["mse"] + 0.1 * jnp.asarray(terms.value["perceptual"]), rtol=1e-6)
