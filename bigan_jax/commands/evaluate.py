"""Scores to threshold to metrics to files. Nothing here that decides looks at a test picture's
label, and no picture affects another's score, rounding aside, nor its decision or colours."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from bigan_jax.commands.build import picture_shape
from bigan_jax.commands.load import formula_of, restore
from bigan_jax.data import audit, loading
from bigan_jax.data.audit import Audit
from bigan_jax.data.dataset import Dataset
from bigan_jax.detector import Detector, State
from bigan_jax.errors import UserError, printable, unknown
from bigan_jax.evaluation import anomaly_score, baselines, results
from bigan_jax.evaluation.scorer import Scorer
from bigan_jax.metrics.bootstrap import bootstrap
from bigan_jax.metrics.image import (
    Threshold,
    auroc,
    by_condition,
    by_kind,
    conformal_threshold,
    image_metrics,
    manual_threshold,
    oracle_threshold,
    predict_all,
)
from bigan_jax.metrics.pixel import NOTHING, dice, pixel_metrics, pixel_threshold, region_shares
from bigan_jax.metrics.pixel_bootstrap import pixel_bootstrap
from bigan_jax.nn.vgg16.network import load
from bigan_jax.reports import evaluation_files, figures
from bigan_jax.reports.evaluation_files import Assessment
from bigan_jax.runtime.lock import alone
from bigan_jax.runtime.run_config import check, claim, read_config
from bigan_jax.versions import version


def evaluate(workdir: str | Path, config: ConfigDict | None = None) -> dict:
    """Scores the test pictures anew from the workdir's newest checkpoint, and writes the results.

    config: that of the workdir by default; another may differ in what has no part in training
      only, such as score, threshold, and where the pictures lie.
    Returns what evaluation.json holds. Raises UserError where there is no run.
    """
    workdir = Path(workdir)
    theirs = read_config(workdir)
    config = config or theirs
    check_fields(config)
    check(workdir, config)
    with alone(workdir):
        dataset, found = load_audited(config)
        found.check(workdir)
        state, detector, epochs = restore(config, workdir, len(dataset.conditions))
        return evaluate_run(config, dataset, found, detector, state, epochs, workdir)


def check_fields(config: ConfigDict) -> None:
    """Raises UserError for fields that could not be evaluated: before a training, not after it."""
    if "perceptual" in formula_of(config.score).weights:
        load(config.vgg16.weights)
    if not config.data.calibration_fraction > 0:
        raise UserError(
            f"config.data.calibration_fraction={config.data.calibration_fraction}: the threshold "
            "and the colours of error maps come from calibration pictures, so it must be above 0."
        )
    for field, name in ("name", config.name), ("data.name", config.data.name):
        if not results.is_name(name) or set(name) & set("/\\"):
            raise UserError(
                f"config.{field}={name!r:.200}: it names rows and folders, so that it must be "
                "printable, without a slash, and of 1 to 100 characters"
            )
    if not 0 <= config.seed < 2**31:
        raise UserError(f"config.seed={config.seed}: a seed is a whole number from 0 to 2**31 - 1")
    if config.checkpoint.every < 1:
        raise UserError(
            f"config.checkpoint.every={config.checkpoint.every}: it counts epochs, from 1 on"
        )
    choose_threshold(config.threshold, np.zeros(1), 1)
    audit.check_policy(config.data.duplicates)


def data_fields(config: ConfigDict) -> dict:
    """The arguments of data.load."""
    others = ("name", "duplicates")
    return {name: value for name, value in config.data.items() if name not in others}


def load_audited(config: ConfigDict) -> tuple[Dataset, Audit]:
    """The pictures, less the copies that `data.duplicates` leaves out, and what was found; what is
    to be known of them is printed."""
    dataset = loading.load(**data_fields(config))
    found = audit.audit(dataset, config.data.duplicates)
    dataset = audit.settle(dataset, found)
    _check_parts(dataset, config)
    for note in dataset.notes:
        print(f"Note: {printable(note)}")
    return dataset, found


def _check_parts(dataset, config):
    """Each part has what is asked of it."""
    if len(dataset.train.label) < 2:
        raise UserError(
            f"{len(dataset.train.label)} pictures would train: at least 2 are needed. Lower "
            "--config.data.test_fraction or --config.data.calibration_fraction, or add pictures"
        )
    if not len(dataset.test.label):
        raise UserError(
            "no picture would be tested: raise --config.data.test_fraction, or add anomalous ones"
        )
    if config.score.standardise and len(dataset.calibration.label) < 2:
        raise UserError(
            "--config.score.standardise divides by the spread over the calibration pictures, and "
            "there is one: raise --config.data.calibration_fraction"
        )


def evaluate_run(
    config: ConfigDict,
    dataset: Dataset,
    found: Audit,
    detector: Detector,
    state: State,
    epochs: int,
    workdir: Path,
) -> dict:
    """Evaluates a state that was trained for so many epochs, and writes all files of its evaluation
    (`outcome.write`)."""
    assessment = assess(config, dataset, detector, state)
    claim(workdir, config)  # only now: what cannot be had leaves an earlier evaluation as it is
    found.write(workdir)
    trained = {"epochs": epochs, "n_train": found.number_trained(workdir)}
    assessment.evaluation.update(trained)
    wanted = sum(phase.epochs for phase in config.phases.values())
    if epochs < wanted:
        assessment.evaluation["warnings"].append(
            f"Trained for {epochs} of {wanted} epochs: it is not finished."
        )
    if late := found.number_late(workdir):
        assessment.evaluation["warnings"].append(
            f"{late} pictures that would train came after the training, and have no part in it: "
            "another --workdir trains on them as well."
        )
    evaluation_files.write(workdir, config, dataset.test, found, assessment)
    return assessment.evaluation


def assess(config: ConfigDict, dataset: Dataset, detector: Detector, state: State) -> Assessment:
    """Scores calibration and test pictures; thresholds from the former, metrics of the latter."""
    test, normals = dataset.test, dataset.calibration
    scorer = Scorer(
        detector,
        state,
        formula_of(config.score),
        picture_shape(config),
        config.batch_size,
        vgg16_weights=config.vgg16.weights,
        unit_features=config.score.unit_features,
    )
    calibration = scorer.score(normals.image, normals.condition, progress="calibration")
    spread = anomaly_score.spread(calibration.terms)
    if config.score.standardise:
        scorer.standardise(spread)
        calibration = scorer.rescore(calibration)
    scores = scorer.score(test.image, test.condition, progress="test")

    groups = len(np.unique(normals.group))
    threshold = choose_threshold(config.threshold, calibration.score, groups)
    pixel_cutoff = pixel_threshold(calibration.error_map, config.threshold.false_alarm_rate)
    measured = scores.score, test.label
    intervals = bootstrap(*measured, test.group, threshold.value)
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
        **_pixels(test, scores, pixel_cutoff),
        "by_kind": by_kind(*measured, test.kind, threshold.value),
        "by_condition": by_condition(
            *measured, test.condition, dataset.conditions, threshold.value
        ),
        "controls": _controls(scorer, dataset),
        "mse_auroc": auroc(scores.mse, test.label),
        "ssim_auroc": auroc(scores.ssim_error, test.label),
        "score": {**config.score.to_dict(), "spread": spread},
        "score_table": anomaly_score.table(
            scores.terms, test.label, spread, formula_of(config.score), config.score.standardise
        ),
        "score_table_note": anomaly_score.TABLE_NOTE,
        "calibration_scores": calibration.score.tolist(),
        "colour_limits": figures.colour_limits(calibration),
        "notes": [*dataset.notes, *baselines.fitting_note(dataset.train.image)],
        "warnings": list(detector.notes),
        "versions": {name: version(name) for name in ("bigan_jax", "jax", "flax")},
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
    raise unknown("config.threshold.rule", config.rule, ["conformal", "manual"])


def _pixels(test, scores, threshold):
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
            "intervals": pixel_bootstrap(maps, masks, test.group[chosen], shares),
        },
        "pixel_controls": {"raw_intensity": bright},
    }


def _controls(scorer, dataset):
    train = baselines.fitting_pictures(dataset.train.image)
    found = baselines.control_scores(train, dataset.test.image, scorer.rate)
    return baselines.control_aurocs(found, dataset.test.label)
