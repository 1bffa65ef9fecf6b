"""Assesses a trained detector: thresholds from calibration images, metrics from test images.

Nothing that decides uses a test label, and no image affects the score, decision or colors of another one.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bigan_jax.data.dataset import Dataset, Images
from bigan_jax.evaluation import anomaly_score, baselines
from bigan_jax.evaluation.anomaly_score import TERMS, ScoreSettings
from bigan_jax.evaluation.result import (
    SCORE_NAMES,
    EvaluationResult,
    NativeScore,
    PixelMetrics,
    PixelResult,
    ScoreRecord,
    ScoreResult,
)
from bigan_jax.evaluation.scorer import AnomalyScorer, Scores
from bigan_jax.metrics.bootstrap import bootstrap_intervals
from bigan_jax.metrics.image import auroc, by_condition, by_defect_type, image_metrics, predict_all
from bigan_jax.metrics.pixel import PIXEL_METRICS, dice, pixel_metrics, region_weights
from bigan_jax.metrics.pixel_bootstrap import pixel_bootstrap_intervals
from bigan_jax.metrics.thresholds import ThresholdSettings, choose_threshold, oracle_threshold, pixel_threshold
from bigan_jax.runtime.run_config import package_version

_COLOR_QUANTILE = 0.999  # of the calibration pixels: errors above share the brightest color


class Assessment(NamedTuple):
    """The result of an evaluation, and the scores it comes from."""

    result: EvaluationResult
    calibration: Scores
    test: Scores


def assess(
    scorer: AnomalyScorer, dataset: Dataset, score: ScoreSettings, threshold: ThresholdSettings, identity: Mapping
) -> Assessment:
    """Scores calibration and test images, and measures the scores.

    Args:
      scorer: is fitted here, on training images.
      score: the settings that `scorer` was made with.
      identity: the fields of EvaluationResult that identify the run. `epochs` of the result is 0, and `n_train` the
        current number of training images, since only the run's folder has its history.

    Raises:
      UserError: a score is not finite, or a term to standardize is constant.
    """
    test, normal, train = dataset.test, dataset.calibration, dataset.train
    assert isinstance(normal.image, np.ndarray) and isinstance(test.image, np.ndarray)  # only training images are lazy
    deviations, moments = scorer.fit(train.image, train.condition, score.standardize)
    calibration = scorer.score(normal.image, normal.condition, progress="calibration")
    scores = scorer.score(test.image, test.condition, progress="test")
    baseline_scores = baselines.baseline_scores(
        baselines.fitting_images(train.image), test.image, scorer.compute_terms, scorer.formula
    )

    def score_result(name: str) -> ScoreResult:
        normal_scores, measured = calibration.by_name[name], (scores.by_name[name], test.label)
        # A manual threshold is one of the score that decides.
        settings = threshold if name == score.name else dataclasses.replace(threshold, rule="conformal", value=0.0)
        chosen = choose_threshold(settings, normal_scores, normal.group)
        intervals = bootstrap_intervals(*measured, test.group, chosen.value)
        return ScoreResult(
            **image_metrics(*measured, chosen.value),
            auroc_ci=intervals and intervals["auroc"],
            intervals=intervals,
            threshold=chosen.value,
            threshold_rule=chosen.rule,
            promise=chosen.promise,
            oracle=oracle_threshold(*measured),
            by_defect_type=by_defect_type(*measured, test.defect_type, chosen.value),
            by_condition=by_condition(*measured, test.condition, dataset.conditions, chosen.value),
            baselines=baselines.baseline_aurocs(baseline_scores[name], test.label),
            calibration_scores=normal_scores.tolist(),
        )

    pixel_cutoff = pixel_threshold(calibration.error_map, threshold.pixel_rate, normal.group)
    pixel, raw_intensity = _pixel_results(test, scores, pixel_cutoff.value)
    values = scores.terms.value
    result = EvaluationResult(
        **identity,
        conditions=list(dataset.conditions),
        epochs=0,
        steps=scorer.steps_trained,
        n_train=len(train.label),
        n_calibration=len(normal.label),
        n_calibration_groups=len(np.unique(normal.group)),
        n_normal=int((~test.label).sum()),
        n_anomalous=int(test.label.sum()),
        score_name=score.name,
        scores={name: score_result(name) for name in SCORE_NAMES},
        predict_all=predict_all(test.label),
        native=None if scores.native is None else NativeScore(identity["model"], auroc(scores.native, test.label)),
        pixel_threshold=pixel_cutoff.value,
        pixel_promise=pixel_cutoff.promise,
        pixel=pixel,
        pixel_baselines={"raw_intensity": raw_intensity},
        term_aurocs={n: auroc(np.asarray(values[n]), test.label) for n in TERMS if n in values},
        score=ScoreRecord(**dataclasses.asdict(score), standard_deviations=deviations),
        score_table=anomaly_score.score_table(scores.terms, test.label, deviations, moments, score),
        score_table_note=anomaly_score.TABLE_NOTE,
        color_limits=color_limits(calibration),
        notes=[*dataset.notes, *baselines.fitting_note(train.image)],
        warnings=list(scorer.notes),
        versions={name: package_version(name) for name in ("bigan_jax", "jax", "flax")},
    )
    return Assessment(result, calibration, scores)


def _pixel_results(test: Images, scores: Scores, threshold: float) -> tuple[PixelResult, PixelMetrics]:
    """Returns the metrics of the error maps, and those of the images' intensity as a baseline."""
    chosen = test.has_mask
    if not test.mask[chosen].any():
        undefined = dict.fromkeys(PIXEL_METRICS)
        return PixelResult(**undefined, dice=None, intervals=None), PixelMetrics(**undefined)
    if chosen.all():
        chosen = slice(None)  # avoids a copy of millions of pixels
    masks, maps = test.mask[chosen], scores.error_map[chosen]
    weights = region_weights(masks)
    channels = np.moveaxis(test.image[chosen], -1, 0)
    # The sum ranks as the mean does.
    intensity = functools.reduce(np.add, (channel.astype(np.uint16) for channel in channels))
    baseline = pixel_metrics(intensity, masks, weights=weights)
    if (baseline["auroc"] or 0) < 0.5:  # defects are dark: take the better sign, as other baselines do
        baseline = pixel_metrics(intensity.max() - intensity, masks, weights=weights)
    pixel = PixelResult(
        **pixel_metrics(maps, masks, weights=weights),
        dice=dice(maps, masks, threshold),
        intervals=pixel_bootstrap_intervals(maps, masks, test.group[chosen], weights),
    )
    return pixel, PixelMetrics(**baseline)


def color_limits(normal: Scores) -> dict[str, float]:
    """Returns the error shown in the brightest color, by score term and for the "combined" map."""
    maps = {**normal.terms.map, "combined": normal.error_map}
    return {name: float(np.quantile(np.asarray(errors), _COLOR_QUANTILE)) for name, errors in maps.items()}
