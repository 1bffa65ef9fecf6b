"""TODO docstring."""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from bigan_jax.data.dataset import Dataset
from bigan_jax.data.loading import image_shape
from bigan_jax.detector import Detector, TrainState
from bigan_jax.errors import UserError, unknown_name
from bigan_jax.evaluation import anomaly_score, baselines
from bigan_jax.evaluation.anomaly_score import formula_from
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
    Threshold,
    conformal_threshold,
    manual_threshold,
    pixel_threshold,
)
from bigan_jax.runtime.run_config import package_version


class Assessment(NamedTuple):
    """What evaluation.json holds, and what it was made from."""

    evaluation: dict
    calibration: Scores
    test: Scores


def assess(
    config: ConfigDict, dataset: Dataset, detector: Detector, state: TrainState
) -> Assessment:
    """Scores calibration and test pictures; thresholds from the former, metrics of the latter."""
    test, normals = dataset.test, dataset.calibration
    scorer = AnomalyScorer(
        detector,
        state,
        formula_from(config.score),
        image_shape(config),
        config.batch_size,
        vgg16_weights=config.vgg16.weights,
        unit_features=config.score.unit_features,
    )
    calibration = scorer.score(normals.image, normals.condition, progress="calibration")
    spread = anomaly_score.spread(calibration.terms)
    if config.score.standardize:
        scorer.standardize(spread)
        calibration = scorer.rescore(calibration)
    scores = scorer.score(test.image, test.condition, progress="test")

    groups = len(np.unique(normals.group))
    threshold = choose_threshold(config.threshold, calibration.score, groups)
    pixel_cutoff = pixel_threshold(calibration.error_map, config.threshold.false_alarm_rate)
    measured = scores.score, test.label
    intervals = bootstrap_intervals(*measured, test.group, threshold.value)
    evaluation = {
        "model": config.name,
        "dataset": config.data.name,
        "category": config.data.category,
        "conditions": dataset.conditions,
        "ablations": config.ablations,
        "quick": config.quick,
        "seed": config.seed,
        "steps": int(state.step),
        "n_calibration": len(normals.label),
        "n_calibration_groups": groups,
        "n_normal": int((~test.label).sum()),
        "n_anomalous": int(test.label.sum()),
        **image_metrics(*measured, threshold.value),
        "auroc_ci": intervals and intervals["auroc"],
        "intervals": intervals,
        "threshold": threshold.value,
        "threshold_rule": threshold.rule,
        "threshold_note": threshold.note,
        "oracle": oracle_threshold(*measured)._asdict(),
        "predict_all": predict_all(test.label),
        "native": None
        if scores.native is None
        else {"name": config.name, "auroc": auroc(scores.native, test.label)},
        "pixel_threshold": pixel_cutoff,
        **_pixel_results(test, scores, pixel_cutoff),
        "by_defect_type": by_defect_type(*measured, test.defect_type, threshold.value),
        "by_condition": by_condition(
            *measured, test.condition, dataset.conditions, threshold.value
        ),
        "controls": _baseline_results(scorer, dataset),
        "mse_auroc": auroc(scores.mse, test.label),
        "ssim_auroc": auroc(scores.ssim_error, test.label),
        "score": {**config.score.to_dict(), "spread": spread},
        "score_table": anomaly_score.score_table(
            scores.terms, test.label, spread, formula_from(config.score), config.score.standardize
        ),
        "score_table_note": anomaly_score.TABLE_NOTE,
        "calibration_scores": calibration.score.tolist(),
        "color_limits": assess.color_limits(calibration),
        "notes": [*dataset.notes, *baselines.fitting_note(dataset.train.image)],
        "warnings": list(detector.notes),
        "versions": {name: package_version(name) for name in ("bigan_jax", "jax", "flax")},
    }
    return Assessment(evaluation, calibration, scores)


def choose_threshold(config: ConfigDict, calibration: np.ndarray, groups: int) -> Threshold:
    """The threshold by the config's rule, from scores of normal pictures that trained nothing.

    groups: how many patients, blocks, ... these pictures come from.
    """
    if config.rule == "conformal" and config.value:
        raise UserError(
            f"config.threshold.value={config.value} is for --config.threshold.rule=manual: say so, "
            "or leave it out"
        )
    if config.rule == "manual" and not config.value > 0:
        raise UserError(
            f"config.threshold.value={config.value}: the rule manual wants a score above 0, from "
            "which on a picture is anomalous"
        )
    if config.rule == "conformal":
        return conformal_threshold(calibration, config.false_alarm_rate, groups)
    if config.rule == "manual":
        return manual_threshold(config.value)
    raise unknown_name("config.threshold.rule", config.rule, ["conformal", "manual"])


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
