"""From a workdir to the detector that was trained there."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import jax
import numpy as np

from bigan_jax.commands.build import build
from bigan_jax.commands.settings import Settings, parse_settings
from bigan_jax.detector import Detector, TrainState, init_state
from bigan_jax.errors import UserError, one_line
from bigan_jax.evaluation.result import require_evaluation
from bigan_jax.evaluation.scorer import AnomalyScorer
from bigan_jax.runtime.run_config import read_config
from bigan_jax.training.saving.checkpoints import CheckpointManager


def load(workdir: str | Path) -> AnomalyScorer:
    """The detector that was trained in a folder, with the threshold of its evaluation.

    Raises UserError when the folder holds no finished run.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    with _config_errors(workdir):
        settings = parse_settings(config)
    result = require_evaluation(workdir)
    told = result.conditions
    state, detector, _ = restore(settings, workdir, len(told))
    if result.steps != int(state.step):
        raise UserError(
            f"{workdir}: its evaluation.json was made after {result.steps} steps, and its "
            f"newest sound checkpoint is of {int(state.step)}: run --mode=evaluate first"
        )
    with _config_errors(workdir):
        scorer = make_scorer(
            settings,
            detector,
            state,
            threshold=result.threshold,
            calibration=np.array(result.calibration_scores),
            conditions=told if settings.model.get("conditional") and len(told) > 1 else (),
        )
        if settings.score.standardize:
            scorer.standardize(result.score.standard_deviations)
    return scorer


def make_scorer(
    settings: Settings, detector: Detector, state: TrainState, **arguments
) -> AnomalyScorer:
    """Returns a scorer of the settings' score and images; arguments: others of AnomalyScorer."""
    return AnomalyScorer(
        detector,
        state,
        settings.score.formula,
        settings.data.image_shape,
        vgg16_weights=settings.vgg16_weights,
        unit_features=settings.score.unit_features,
        window=settings.data.window,
        **arguments,
    )


@contextmanager
def _config_errors(workdir: Path) -> Iterator[None]:
    """A config.json that was edited makes nearly anything go wrong: told as one UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        kind, words = type(error).__name__, one_line(error, 300)
        raise UserError(
            f"nothing can be made of {workdir}/config.json ({kind}: {words}). Put back the one "
            "that the run wrote."
        ) from error


def restore(settings: Settings, workdir: Path, conditions: int) -> tuple[TrainState, Detector, int]:
    """The newest checkpoint of a run, its detector, and after how many epochs that was. Without
    networks that only train others: a perceptual loss's VGG16 is not asked for again."""
    with _config_errors(workdir):
        built = build(settings, conditions, steps_per_epoch=1, frozen=False)
        like = jax.eval_shape(
            lambda: init_state(
                built.detector, built.optimizers, settings.seed, settings.data.image_shape
            )
        )
    with closing(CheckpointManager(workdir, read_only=True)) as checkpoints:
        found = checkpoints.restore(like, complete_epochs=True)
    if found is None:
        raise UserError(f"{workdir} holds no checkpoint yet: train it first")
    progress, state = found
    return state, built.detector, progress.epochs
