"""Builds a detector, its schedule and its optimizers from settings."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping

import jax.numpy as jnp
import optax

from bigan_jax import models
from bigan_jax.commands.settings import Settings
from bigan_jax.detector import Detector
from bigan_jax.errors import UserError, unknown_name
from bigan_jax.evaluation.scorer import score_names
from bigan_jax.nn.ssim import SSIM_WINDOW
from bigan_jax.training import schedules
from bigan_jax.training.run import DetectorBuild
from bigan_jax.training.schedules import Phase
from bigan_jax.value_checks import NON_NEGATIVE, require

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(settings: Settings, conditions: int, steps_per_epoch: int, frozen: bool = True) -> DetectorBuild:
    """Builds the detector, optimizers and phases that the settings describe.

    Args:
      settings: the run's settings.
      conditions: number of conditions of the dataset.
      steps_per_epoch: number of training steps in an epoch.
      frozen: whether to load frozen networks, such as VGG16, without which the detector can score but not train.

    Raises:
      UserError: a name is unknown or a value is out of range.
    """
    names = [module.name for module in pkgutil.iter_modules(models.__path__)]
    if settings.model_name not in names:
        raise unknown_name("model", settings.model_name, names)
    size, multiple = settings.data.image_size, 2 ** len(settings.model.get("widths", ()))
    if size % multiple or size <= SSIM_WINDOW:
        raise UserError(
            f"config.data.image_size must be a multiple of {multiple} and larger than the SSIM window of {SSIM_WINDOW} "
            f"pixels (got {size})."
        )
    model = importlib.import_module(f"bigan_jax.models.{settings.model_name}")
    fields = dict(settings.model)
    _check_fields("model", fields, model.FIELD_RANGES)
    if "perceptual_layers" in fields:  # of a loss
        fields["vgg16_weights"] = settings.vgg16_weights if frozen else None
    if fields.get("feature_layers"):  # of the detector itself, which cannot score without them
        fields["vgg16_weights"] = settings.vgg16_weights
    roi, takes_roi = settings.data.roi_pixels, "roi" in inspect.signature(model.create).parameters
    if takes_roi:
        fields["roi"] = roi
    detector = model.create(
        shape=settings.data.image_shape, conditions=conditions, dtype=_DTYPES[settings.dtype], **fields
    )
    if roi is not None and not (detector.reconstruct or takes_roi):
        raise UserError(
            f"config.data.roi is not for {settings.name}: its score counts all pixels. Use another detector, or leave "
            "it out."
        )
    if settings.score.name not in score_names(detector):
        raise unknown_name("config.score.name of this detector", settings.score.name, score_names(detector))
    phases = schedules.parse_phases(settings.phases, detector.objectives)
    is_active = {name: any(schedules.updates_by_phase(phases, name, 1)) for name in detector.objectives}
    if not detector.fit and not any(is_active.values()):
        raise UserError(
            "config.phases has no epoch with an active objective. Add epochs to a phase, or remove an ablation."
        )
    # Objectives that are never active come first: a network that reconstructions do not need has the BatchNorm
    # statistics of the last one that owns it (`batchnorm_statistics.add_batch`).
    objectives = dict(sorted(detector.objectives.items(), key=lambda item: is_active[item[0]]))
    detector = detector._replace(objectives=objectives)
    return DetectorBuild(detector, make_optimizers(settings, detector, phases, steps_per_epoch), phases)


def make_optimizers(
    settings: Settings, detector: Detector, phases: tuple[Phase, ...], steps_per_epoch: int, scale: float = 1.0
) -> dict[str, optax.GradientTransformation]:
    """Returns the optimizer of each objective; `scale` multiplies all learning rates."""
    return {
        name: schedules.make_optimizer(
            schedules.updates_by_phase(phases, name, steps_per_epoch), settings.optimizers[name], scale
        )
        for name in detector.objectives
    }


def _check_fields(prefix, fields, ranges):
    """Flax would report a wrong value late and without the field's name, or train with it."""
    for name, value in fields.items():
        values = value if isinstance(value, list | tuple) else (value,)
        if isinstance(value, Mapping):
            group = dict.fromkeys(value, ranges[name]) if name in ranges else ranges
            _check_fields(f"{prefix}.{name}", value, group)
        elif name in ranges or (values and set(map(type, values)) <= {int, float}):
            require(f"{prefix}.{name}", value, ranges.get(name, NON_NEGATIVE))
