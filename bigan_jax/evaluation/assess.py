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
from bigan_jax.evaluation.result import EvaluationResult, NativeScore, PixelMetrics, PixelResult, ScoreRecord
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
      scorer: is standardized here if `score.standardize` is set.
      dataset: its training images are for the baselines.
      score: the settings that `scorer` was made with.
      identity: the fields of EvaluationResult that identify the run. `epochs` of the result is 0, and `n_train` the
        current number of training images, since only the run's folder has its history.

    Raises:
      UserError: a score is not finite, or a term to standardize is constant.
    """
    test, normal, train = dataset.test, dataset.calibration, dataset.train.image
    assert isinstance(normal.image, np.ndarray) and isinstance(test.image, np.ndarray)  # only training images are lazy
    calibration = scorer.score(normal.image, normal.condition, progress="calibration")
    deviations = anomaly_score.standard_deviations(calibration.terms)
    if score.standardize:
        scorer.standardize(deviations)
        calibration = scorer.rescore(calibration)
    scores = scorer.score(test.image, test.condition, progress="test")

    groups = len(np.unique(normal.group))
    chosen = choose_threshold(threshold, calibration.score, normal.group)
    promise = chosen.promise
    weakened = promise is not None and (not promise.kept or promise.holds_for == "known groups")
    pixel_cutoff, _ = pixel_threshold(calibration.error_map, threshold.pixel_rate, normal.group)
    measured, values = (scores.score, test.label), scores.terms.value
    baseline_scores = baselines.baseline_scores(
        baselines.fitting_images(train), test.image, scorer.score_reconstructions
    )
    intervals = bootstrap_intervals(*measured, test.group, chosen.value)
    pixel, raw_intensity = _pixel_results(test, scores, pixel_cutoff)
    result = EvaluationResult(
        **identity,
        conditions=list(dataset.conditions),
        epochs=0,
        steps=scorer.steps_trained,
        n_train=len(dataset.train.label),
        n_calibration=len(normal.label),
        n_calibration_groups=groups,
        n_normal=int((~test.label).sum()),
        n_anomalous=int(test.label.sum()),
        **image_metrics(*measured, chosen.value),
        auroc_ci=intervals and intervals["auroc"],
        intervals=intervals,
        threshold=chosen.value,
        threshold_rule=chosen.rule,
        threshold_note=promise.sentence if promise and weakened else None,
        oracle=oracle_threshold(*measured),
        predict_all=predict_all(test.label),
        native=None if scores.native is None else NativeScore(identity["model"], auroc(scores.native, test.label)),
        pixel_threshold=pixel_cutoff,
        pixel=pixel,
        pixel_baselines={"raw_intensity": raw_intensity},
        by_defect_type=by_defect_type(*measured, test.defect_type, chosen.value),
        by_condition=by_condition(*measured, test.condition, dataset.conditions, chosen.value),
        baselines=baselines.baseline_aurocs(baseline_scores, test.label),
        term_aurocs={n: auroc(np.asarray(values[n]), test.label) for n in TERMS if n in values},
        score=ScoreRecord(**dataclasses.asdict(score), standard_deviations=deviations),
        score_table=anomaly_score.score_table(scores.terms, test.label, deviations, score.formula, score.standardize),
        score_table_note=anomaly_score.TABLE_NOTE,
        calibration_scores=calibration.score.tolist(),
        color_limits=color_limits(calibration),
        notes=[*dataset.notes, *baselines.fitting_note(train)],
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
