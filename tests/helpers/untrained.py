"""A run's folder that predicts, without the training."""

import jax
import numpy as np

from bigan_jax.commands.build import build
from bigan_jax.commands.settings import parse_settings
from bigan_jax.detector import init_state
from bigan_jax.evaluation.calibrated_score import PixelStatistics, write_statistics
from bigan_jax.runtime.files import write_json
from bigan_jax.runtime.run_config import write_config
from bigan_jax.training.saving.checkpoints import CheckpointManager
from bigan_jax.training.saving.progress import Progress
from tests.helpers.datasets import evaluation_content


def write_untrained_run(workdir, config, **evaluation):
    """Writes all that a prediction needs: initial networks, and an evaluation with some fields replaced."""
    settings = parse_settings(config)
    write_config(workdir, config)
    content = evaluation_content(**evaluation, steps=0)
    built = build(settings, conditions=len(content["conditions"]), steps_per_epoch=1)
    state = jax.jit(lambda: init_state(built.detector, built.optimizers, 0, settings.data.image_shape))()
    checkpoints = CheckpointManager(workdir)
    checkpoints.save(Progress(1), state)
    checkpoints.close()
    write_json(workdir / "evaluation.json", content)
    write_statistics(workdir, PixelStatistics(*np.full((2, *settings.data.image_shape[:2]), 0.1, np.float32)))
