"""Loading of trained detectors from the folders of their runs."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigan_jax.commands.build import build
from bigan_jax.commands.settings import Settings, parse_settings
from bigan_jax.detector import Detector, TrainState, init_state
from bigan_jax.errors import UserError
from bigan_jax.evaluation.calibrated_score import read_statistics
from bigan_jax.evaluation.fold_scorer import FoldScorer
from bigan_jax.evaluation.result import CALIBRATED, require_evaluation
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.runtime.jax_setup import require_platforms
from bigan_jax.runtime.run_config import config_errors, read_config
from bigan_jax.training.run import require_same_frozen
from bigan_jax.training.saving.checkpoints import CheckpointManager, tree_digest


@require_platforms
def load(workdir: str | Path) -> AnomalyScorer:
    """Returns the scorer of the detector in a run's folder, with the threshold of its evaluation.

    Raises:
      UserError: the folder holds no finished run, or its files are corrupt.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    with config_errors(workdir):
        settings = parse_settings(config, workdir)
    result = require_evaluation(workdir)
    if settings.threshold.folds:
        folders = fold_folders(workdir, settings.threshold.folds)
        _require_same_score(workdir, config, folders)
        scorers = [load(folder) for folder in folders]
        return FoldScorer(scorers, result.main.threshold, np.array(result.main.calibration_scores))
    conditions = result.conditions
    statistics = []  # of the calibrated score: the error maps', and those of asymmetry where it includes it
    if CALIBRATED in result.scores:
        statistics = read_statistics(workdir, *settings.data.image_shape[:2], 1 + result.symmetry.used)
    state, detector, _ = restore(settings, workdir, len(conditions))
    if result.steps != int(state.step):
        raise UserError(
            f"{workdir}: evaluation.json is of step {result.steps}, and the latest valid checkpoint is of step "
            f"{int(state.step)}. Run --mode=evaluate first."
        )
    is_conditional = settings.model.get("conditional") and len(conditions) > 1
    with config_errors(workdir):
        scorer = make_scorer(
            settings,
            detector,
            state,
            batch_size=settings.batch_size,  # as in the evaluation, whose programs the compilation cache has
            name=result.score_name,
            statistics=statistics[0] if statistics else None,
            asymmetry=statistics[1] if len(statistics) > 1 else None,
            threshold=result.main.threshold,
            calibration=np.array(result.main.calibration_scores),
            conditions=conditions if is_conditional else (),
        )
        if settings.score.standardize:
            scorer.standardize(result.score.standard_deviations)
    return scorer


def fold_folders(workdir: Path, folds: int) -> list[Path]:
    """Returns the folders of the runs of a cross-conformal calibration (`threshold.folds`)."""
    return [workdir / f"fold{index}" for index in range(folds)]


def _require_same_score(workdir, config, folders):
    """A fold that was evaluated alone may have other scores than those that the common threshold is for."""
    for folder in folders:
        own = read_config(folder)
        if own.score != config.score or own.threshold.get("folds"):
            raise UserError(
                f"{folder} was evaluated with another config.score or config.threshold.folds than {workdir}. Run "
                f"--mode=evaluate --workdir={workdir} again."
            )


def make_scorer(settings: Settings, detector: Detector, state: TrainState, **arguments: Any) -> AnomalyScorer:
    """Returns the scorer that the settings describe; `arguments` are further ones of its class."""
    return AnomalyScorer(
        detector,
        state,
        settings.score.formula,
        settings.data.image_shape,
        vgg16_weights=settings.vgg16_weights,
        unit_features=settings.score.unit_features,
        window=settings.data.window,
        fit=settings.data.fit,
        roi=settings.data.roi_pixels,
        **arguments,
    )


def restore(settings: Settings, workdir: Path, conditions: int) -> tuple[TrainState, Detector, int]:
    """Restores the latest valid checkpoint of a run, without networks for losses, such as VGG16.

    Returns:
      The state, its detector, and the number of epochs that it was trained for.

    Raises:
      UserError: there is no checkpoint, config.json or the checkpoint is invalid, or the features come from another
        network than in training.
    """
    with config_errors(workdir):
        built = build(settings, conditions, steps_per_epoch=1, frozen=False)
        init = partial(init_state, built.detector, built.optimizers, shape=settings.data.image_shape)
        abstract_state = jax.eval_shape(init, settings.seed)
    detector = built.detector
    require_same_frozen(workdir, tree_digest(detector.frozen) if detector.frozen else "")
    with closing(CheckpointManager(workdir, read_only=True)) as checkpoints:
        restored = checkpoints.restore(abstract_state, complete_epochs=True)
    if restored is None:
        raise UserError(f"{workdir} holds no checkpoint. Train the run first.")
    progress, state = restored
    if detector.fit and progress.epochs < built.epochs:
        raise UserError(
            f"{workdir} has fitted {progress.epochs} of {built.epochs} passes. Run its training command again, which "
            "resumes."
        )
    return state, detector, progress.epochs
