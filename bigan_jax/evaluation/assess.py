"""TODO docstring."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bigan_jax.data.dataset import Dataset
from bigan_jax.evaluation import anomaly_score, baselines
from bigan_jax.evaluation.anomaly_score import ScoreSettings
from bigan_jax.evaluation.scorer import AnomalyScorer, Scores
from bigan_jax.metrics.bootstrap import bootstrap_intervals
from bigan_jax.metrics.image import (
    auroc,
    by_condition,
    by_defect_type,
    image_metrics,
    oracle_threshold,
    predict_all,
)
from bigan_jax.metrics.pixel import NOTHING, dice, pixel_metrics, region_shares
from bigan_jax.metrics.pixel_bootstrap import pixel_bootstrap_intervals
from bigan_jax.metrics.thresholds import (
    ThresholdSettings,
    choose_threshold,
    pixel_threshold,
)
from bigan_jax.runtime.run_config import package_version


class Assessment(NamedTuple):
    """What evaluation.json holds, and what it was made from."""

    evaluation: dict
    calibration: Scores
    test: Scores


def assess(
    scorer: AnomalyScorer,
    dataset: Dataset,
    score: ScoreSettings,
    threshold: ThresholdSettings,
    identity: Mapping,
) -> Assessment:
    """Scores calibration and test images; thresholds come from the former, metrics from the latter.

    Args:
      scorer: the trained detector.
      dataset: calibration and test images, and the training images for the baselines.
      score: how a score is made; `scorer` has its formula.
      threshold: how the threshold is chosen.
      identity: what names the run in evaluation.json: model, dataset, category, ablations, ...
    """
    test, normals = dataset.test, dataset.calibration
    calibration = scorer.score(normals.image, normals.condition, progress="calibration")
    spread = anomaly_score.spread(calibration.terms)
    if score.standardize:
        scorer.standardize(spread)
        calibration = scorer.rescore(calibration)
    scores = scorer.score(test.image, test.condition, progress="test")

    groups = len(np.unique(normals.group))
    chosen = choose_threshold(threshold, calibration.score, groups)
    pixel_cutoff = pixel_threshold(calibration.error_map, threshold.false_alarm_rate)
    measured = scores.score, test.label
    intervals = bootstrap_intervals(*measured, test.group, chosen.value)
    evaluation = {
        **identity,
        "conditions": dataset.conditions,
        "steps": scorer.steps_trained,
        "n_calibration": len(normals.label),
        "n_calibration_groups": groups,
        "n_normal": int((~test.label).sum()),
        "n_anomalous": int(test.label.sum()),
        **image_metrics(*measured, chosen.value),
        "auroc_ci": intervals and intervals["auroc"],
        "intervals": intervals,
        "threshold": chosen.value,
        "threshold_rule": chosen.rule,
        "threshold_note": chosen.note,
        "oracle": oracle_threshold(*measured)._asdict(),
        "predict_all": predict_all(test.label),
        "native": None
        if scores.native is None
        else {"name": identity["model"], "auroc": auroc(scores.native, test.label)},
        "pixel_threshold": pixel_cutoff,
        **_pixel_results(test, scores, pixel_cutoff),
        "by_defect_type": by_defect_type(*measured, test.defect_type, chosen.value),
        "by_condition": by_condition(*measured, test.condition, dataset.conditions, chosen.value),
        "controls": _baseline_results(scorer, dataset),
        "mse_auroc": auroc(scores.mse, test.label),
        "ssim_auroc": auroc(scores.ssim_error, test.label),
        "score": {**score.as_dict(), "spread": spread},
        "score_table": anomaly_score.score_table(
            scores.terms, test.label, spread, score.formula, score.standardize
        ),
        "score_table_note": anomaly_score.TABLE_NOTE,
        "calibration_scores": calibration.score.tolist(),
        "color_limits": color_limits(calibration),
        "notes": [*dataset.notes, *baselines.fitting_note(dataset.train.image)],
        "warnings": list(scorer.notes),
        "versions": {name: package_version(name) for name in ("bigan_jax", "jax", "flax")},
    }
    return Assessment(evaluation, calibration, scores)


def _pixel_results(test, scores, threshold):
    """Pixel metrics of the error map, and of the picture itself as a map: their control."""
    known = test.has_mask
    if not test.mask[known].any():
        nothing = NOTHING
        return {
            "pixel": {**nothing, "dice": None, "intervals": None},
            "pixel_controls": {"raw_intensity": nothing},
        }
    chosen = slice(None) if known.all() else known  # millions of pixels: no copy without need
    masks, maps = test.mask[chosen], scores.error_map[chosen]
    shares = region_shares(masks)
    channels = np.moveaxis(test.image[chosen], -1, 0)
    raw = sum(channel.astype(np.uint16) for channel in channels)  # as good as the mean
    bright = pixel_metrics(raw, masks, shares=shares)
    if bright["auroc"] < 0.5:  # defects are dark: the better sign, as of other controls
        bright = pixel_metrics(raw.max() - raw, masks, shares=shares)
    return {
        "pixel": {
            **pixel_metrics(maps, masks, shares=shares),
            "dice": dice(maps, masks, threshold),
            "intervals": pixel_bootstrap_intervals(maps, masks, test.group[chosen], shares),
        },
        "pixel_controls": {"raw_intensity": bright},
    }


def _baseline_results(scorer, dataset):
    train = baselines.fitting_images(dataset.train.image)
    found = baselines.baseline_scores(train, dataset.test.image, scorer.rate)
    return baselines.baseline_aurocs(found, dataset.test.label)


_COLOR_QUANTILE = 0.999  # of the calibration normals' pixels: what is above is as bright as it gets


def color_limits(normals: Scores) -> dict[str, float]:
    """The error that is as bright as it gets, in every picture alike: of each term's map and of
    their combination, from pictures that are known to be normal and not tested."""
    maps = {**normals.terms.map, "combined": normals.error_map}
    return {name: float(np.quantile(errors, _COLOR_QUANTILE)) for name, errors in maps.items()}
