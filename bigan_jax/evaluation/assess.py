"""Assesses a trained detector: thresholds from calibration images, metrics from test images.

Nothing that decides uses a test label, and no image affects the score, decision or colors of another one.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from bigan_jax.data.dataset import Dataset, Images
from bigan_jax.data.files.medical import split_slice
from bigan_jax.evaluation import anomaly_score, baselines, symmetry
from bigan_jax.evaluation.anomaly_score import TERMS, ScoreSettings
from bigan_jax.evaluation.baselines import BaselineScores
from bigan_jax.evaluation.result import (
    CALIBRATED,
    NATIVE,
    SCORE_NAMES,
    BaselineDifference,
    EvaluationResult,
    NativeScore,
    PixelMetrics,
    PixelResult,
    ScoreRecord,
    ScoreResult,
    ScoreTableRow,
    SymmetryResult,
    VolumeResult,
)
from bigan_jax.evaluation.scorer import AnomalyScorer, Refits, Scores
from bigan_jax.evaluation.verdict import strongest
from bigan_jax.metrics.bootstrap import bootstrap_intervals, paired_auroc_interval
from bigan_jax.metrics.image import auroc, by_condition, by_defect_type, image_metrics, predict_all
from bigan_jax.metrics.pixel import PIXEL_METRICS, dice, pixel_metrics, region_weights
from bigan_jax.metrics.pixel_bootstrap import pixel_bootstrap_intervals
from bigan_jax.metrics.thresholds import (
    ThresholdSettings,
    choose_threshold,
    exceeds_promise,
    folds_that_promise,
    oracle_threshold,
    pixel_threshold,
)
from bigan_jax.metrics.volumes import TOP_SLICES, volume_scores
from bigan_jax.nn.pixel_statistics import Roi
from bigan_jax.runtime.run_config import package_version

_SURPRISING = 0.001  # probability of as many false alarms
_CONSTANT = 0.05  # of the images' spread; small healthy runs have 0.13 or more
_COLOR_QUANTILE = 0.999  # of the calibration pixels: errors above share the brightest color


class Assessment(NamedTuple):
    """The result of an evaluation, and the scores it comes from."""

    result: EvaluationResult
    calibration: Scores
    test: Scores
    baselines: dict[str, BaselineScores]  # of the test images, by SCORE_NAMES and baseline


class CalibrationImages(NamedTuple):
    """The scores of the normal images that thresholds come from."""

    scores: Scores
    group: Shaped[np.ndarray, "c"]
    fold: Int[np.ndarray, "c"] | None = None  # with folds, each image is scored by a detector that did not see its own


def assess(
    scorer: AnomalyScorer,
    dataset: Dataset,
    score: ScoreSettings,
    threshold: ThresholdSettings,
    identity: Mapping,
    refits: Refits | None = None,
) -> Assessment:
    """Scores calibration and test images, and measures the scores. Without test images all metrics are None.

    Args:
      scorer: is fitted here, on training images.
      score: the settings that `scorer` was made with.
      identity: the fields of EvaluationResult that identify the run. `epochs` of the result is 0, and `n_train` the
        current number of training images, since only the run's folder has its history.
      refits: as in `AnomalyScorer.fit`.

    Raises:
      UserError: a score is not finite, or a term to standardize is constant.
    """
    normal = dataset.calibration
    train = dataset.train
    # Mirror images of a region of interest would be compared with what is outside.
    ratio = None if scorer.formula.roi is not None else symmetry.symmetry_ratio(train.image, train.group)
    symmetric = symmetry.is_symmetric(ratio, len(train.image))
    use_asymmetry = score.symmetry == "on" or (score.symmetry == "auto" and symmetric)
    deviations, moments = scorer.fit(train.image, train.condition, score.standardize, refits, use_asymmetry)
    tested = SymmetryResult(ratio, symmetric, used=scorer.asymmetry is not None)
    calibration = scorer.score(_in_memory(normal), normal.condition, progress="calibration")
    has_test = len(dataset.test.label) > 0
    if has_test:
        scores = scorer.score(_in_memory(dataset.test), dataset.test.condition, progress="test")
    else:
        scores = calibration.select(slice(0))
    table, warnings = [], []
    if calibration.reconstruction is not None and has_test:
        table = anomaly_score.score_table(
            scores.terms, dataset.test.label, deviations, moments, score, scores.asymmetry
        )
    if calibration.reconstruction is not None and not refits:  # a mean image is meant to be the same for every image
        warnings += _reconstruction_warnings(_in_memory(normal), calibration.reconstruction)
    calibrated_on = CalibrationImages(calibration, normal.group)
    assessment = measure(scorer, dataset, calibrated_on, scores, score, threshold, identity, tested, deviations, table)
    warnings = [*assessment.result.warnings, *warnings]
    return assessment._replace(result=assessment.result.replace(warnings=warnings))


def measure(
    scorer: AnomalyScorer,
    dataset: Dataset,
    calibrated_on: CalibrationImages,
    scores: Scores,
    score: ScoreSettings,
    threshold: ThresholdSettings,
    identity: Mapping,
    tested: SymmetryResult,
    deviations: Mapping[str, float] | None = None,
    table: Sequence[ScoreTableRow] = (),
) -> Assessment:
    """Measures the scores of test images, with thresholds from those of normal images.

    Args:
      scorer: scores the reconstructions of the baselines.
      dataset: its training images are for the baselines.
      scores: of the dataset's test images.
      score, threshold, identity: as in `assess`.
      tested: whether the training images are symmetric.
      deviations: the terms' standard deviations over training images, for the record.
      table: other scores of the same reconstructions, for the record.
    """
    test, train = dataset.test, dataset.train
    calibration, groups, fold = calibrated_on
    baseline_scores = {name: {} for name in scores.by_name}
    if len(test.label):
        fitted_on = baselines.fitting_images(train.image), _in_memory(test)
        by_score = baselines.baseline_scores(*fitted_on, scorer.compute_terms, scorer.formula, scores.asymmetry)
        # Baselines reconstruct: a detector's own score is compared with their default one.
        by_score |= {NATIVE: by_score[CALIBRATED]}
        baseline_scores = {name: baselines.with_better_sign(by_score[name], test.label) for name in scores.by_name}

    def score_result(name: str) -> ScoreResult:
        normal_scores, measured = calibration.by_name[name], (scores.by_name[name], test.label)
        # A manual threshold is one of the score that decides.
        settings = threshold if name == score.name else dataclasses.replace(threshold, rule="conformal", value=0.0)
        chosen = choose_threshold(settings, normal_scores, groups, fold)
        intervals = bootstrap_intervals(*measured, test.group, chosen.value)
        aurocs = baselines.baseline_aurocs(baseline_scores[name], test.label)
        metrics = image_metrics(*measured, chosen.value)
        return ScoreResult(
            **metrics,
            auroc_ci=intervals and intervals["auroc"],
            intervals=intervals,
            threshold=chosen.value,
            threshold_rule=chosen.rule,
            promise=chosen.promise,
            oracle=oracle_threshold(*measured),
            by_defect_type=by_defect_type(*measured, test.defect_type, chosen.value),
            by_condition=by_condition(*measured, test.condition, dataset.conditions, chosen.value),
            volumes=_volume_result(measured[0], test),
            baselines=aurocs,
            over_baseline=_over_baseline(metrics["auroc"], aurocs, *measured, baseline_scores[name], test.group),
            calibration_scores=normal_scores.tolist(),
        )

    roi = scorer.formula.roi
    normal_maps = _pixels_inside(calibration.error_map, roi)
    pixel_cutoff, pixel_promise = pixel_threshold(normal_maps, threshold.pixel_rate, groups, fold)
    pixel, raw_intensity = _pixel_results(test, scores, pixel_cutoff, roi)
    values = scores.terms.value
    results = {name: score_result(name) for name in SCORE_NAMES if name in scores.by_name}
    main = results[score.name], scores.by_name[score.name]
    result = EvaluationResult(
        **identity,
        conditions=list(dataset.conditions),
        epochs=0,
        steps=scorer.steps_trained,
        n_train=len(train.label),
        n_calibration=len(groups),
        n_calibration_groups=len(np.unique(groups)),
        n_normal=int((~test.label).sum()),
        n_anomalous=int(test.label.sum()),
        score_name=score.name,
        scores=results,
        predict_all=predict_all(test.label),
        native=None if scores.native is None else NativeScore(identity["model"], auroc(scores.native, test.label)),
        pixel_threshold=pixel_cutoff,
        pixel_promise=pixel_promise,
        pixel=pixel,
        pixel_baselines={"raw_intensity": raw_intensity},
        term_aurocs={n: auroc(np.asarray(values[n]), test.label) for n in TERMS if n in values},
        score=ScoreRecord(**dataclasses.asdict(score), standard_deviations=dict(deviations or {})),
        score_table=list(table),
        score_table_note=anomaly_score.TABLE_NOTE if table else "",
        symmetry=tested,
        color_limits=color_limits(calibration, roi),
        notes=[*dataset.notes, *baselines.fitting_note(train.image), *symmetry.notes(tested)],
        warnings=[
            *scorer.notes,
            *_few_images_warning(len(dataset.train.label), scorer.enough_images),
            *_promise_warnings(main, test, dataset, calibrated_on, threshold),
        ],
        versions={name: package_version(name) for name in ("bigan_jax", "jax", "flax")},
    )
    return Assessment(result, calibration, scores, baseline_scores)


def _over_baseline(area, aurocs, score, label, baseline_scores, group) -> BaselineDifference | None:
    """Compares with the strongest baseline of the complete test set: no bootstrap sample chooses another one."""
    best = strongest(aurocs)
    if area is None or best is None:
        return None
    interval = paired_auroc_interval(score, baseline_scores[best[0]], label, group)
    return BaselineDifference(best[0], area - best[1], interval)


def _reconstruction_warnings(images: UInt8[np.ndarray, "n h w c"], reconstructions: UInt8[np.ndarray, "n h w c"]):
    """Warns of reconstructions that do not depend on the image, which training losses with noise may not show."""
    of_images, of_reconstructions = (float(x.std(0, dtype=np.float32).mean()) for x in (images, reconstructions))
    if of_reconstructions < _CONSTANT * of_images:
        yield (
            "The reconstructions are nearly the same for every image (they vary "
            f"{of_reconstructions / of_images:.1%} as much as the images), so scores measure the distance from one "
            "image. Train longer or at a lower learning rate; a VAE also with a lower config.model.beta."
        )


def _few_images_warning(n_train: int, enough: int):
    if n_train < enough:
        yield (
            f"{n_train} training images are few for this detector, which estimates a Gaussian at each position and "
            f"wants about {enough}. feature_pca and memory_bank need fewer: compare with them."
        )


def _promise_warnings(main, test: Images, dataset: Dataset, calibrated_on: CalibrationImages, settings):
    """Warns of a promise that more folds would keep, and of test images that break it."""
    result, scores = main
    promise = result.promise
    if promise is None:
        return
    calibration, groups, fold = calibrated_on
    n = len(dataset.train.label) + len(groups)
    single = len(np.unique(groups)) == len(groups)
    few = fold is None and single and not promise.kept
    if few and (folds := folds_that_promise(n, settings.false_alarm_rate)):
        yield (
            f"There are too few calibration images for the requested rate. --config.threshold.folds={folds} keeps it: "
            f"it fits {folds} detectors, each without a part of the {n} normal images, and all of them calibrate."
        )
    normal = scores[~test.label]
    if fold is None and len(normal):
        probability = exceeds_promise(calibration.by_name[calibration.name], normal, result.threshold)
        if probability < _SURPRISING:
            alarms = int((normal >= result.threshold).sum())
            yield (
                f"{alarms} of {len(normal)} normal test images are called anomalous, more than the promise allows (p = "
                f"{probability:.2g} if they were like the calibration images). They differ from the images that the "
                "detector was trained and calibrated on: add such images to both, or calibrate by group."
            )


def _in_memory(images: Images) -> UInt8[np.ndarray, "n h w c"]:
    assert isinstance(images.image, np.ndarray)  # only training images are lazy
    return images.image


def _volume_result(score: Float[np.ndarray, "n"], test: Images) -> VolumeResult | None:
    """Returns the result by volume or patient, of the test images that are slices."""
    is_slice = np.array([split_slice(path)[1] is not None for path in test.path])
    if not is_slice.any():
        return None
    volumes = volume_scores(score[is_slice], test.label[is_slice], test.group[is_slice])
    n_anomalous = int(volumes.label.sum())
    area = auroc(volumes.score, volumes.label)
    return VolumeResult(TOP_SLICES, len(volumes.label) - n_anomalous, n_anomalous, area)


def _pixels_inside(maps: Shaped[np.ndarray, "*n h w"], roi: Roi) -> Shaped[np.ndarray, "*n pixels _"]:
    """Returns the maps as they are, or the pixels of the region of interest, [*n p 1]."""
    return maps if roi is None else maps[..., roi, None]


def _pixel_results(test: Images, scores: Scores, threshold: float, roi: Roi) -> tuple[PixelResult, PixelMetrics]:
    """Returns the metrics of the error maps, and those of the images' intensity as a baseline."""
    chosen = test.has_mask
    if not test.mask[chosen].any():
        undefined = dict.fromkeys(PIXEL_METRICS)
        return PixelResult(**undefined, dice=None, intervals=None), PixelMetrics(**undefined)
    if chosen.all():
        chosen = slice(None)  # avoids a copy of millions of pixels
    weights = region_weights(test.mask[chosen])
    pixels = test.mask[chosen], scores.error_map[chosen], np.moveaxis(_in_memory(test)[chosen], -1, 0)
    masks, maps, channels = (_pixels_inside(x, roi) for x in pixels)
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


def color_limits(normal: Scores, roi: Roi = None) -> dict[str, float]:
    """Returns the error shown in the brightest color, by score term and for the "combined" map."""
    maps = {**normal.terms.map, "combined": normal.error_map}
    return {
        name: float(np.quantile(_pixels_inside(np.asarray(errors), roi), _COLOR_QUANTILE))
        for name, errors in maps.items()
    }
