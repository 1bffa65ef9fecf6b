"""From a config to a detector, its schedule and its optimizers: where names become functions."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax

from bigan_jax import models
from bigan_jax.commands.settings import Settings
from bigan_jax.detector import Detector
from bigan_jax.errors import UserError, unknown_name
from bigan_jax.nn.ssim import SSIM_WINDOW
from bigan_jax.training import schedules
from bigan_jax.training.run import DetectorBuild

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(
    settings: Settings, conditions: int, steps_per_epoch: int, frozen: bool = True
) -> DetectorBuild:
    """The config's detector, optimizers and phases.

    conditions: how many kinds of picture the data set tells apart.
    frozen: False leaves out the weights of networks that only train others, so that the detector
      scores where those weights are not, and does not train.
    Raises UserError for names and values that do not fit.
    """
    names = [module.name for module in pkgutil.iter_modules(models.__path__)]
    if settings.model_name not in names:
        raise unknown_name("model", settings.model_name, names)
    size, multiple = settings.data.image_size, 2 ** len(settings.model.get("widths", ()))
    if size % multiple or size <= SSIM_WINDOW:
        raise UserError(
            f"config.data.image_size={size}: it must be a multiple of {multiple} and larger than "
            f"SSIM's window of {SSIM_WINDOW} pixels"
        )
    fields = dict(settings.model)
    _check_numbers("model", fields)
    if "perceptual_layers" in fields:
        fields["vgg16_weights"] = settings.vgg16_weights if frozen else None
    detector = importlib.import_module(f"bigan_jax.models.{settings.model_name}").create(
        shape=settings.data.image_shape,
        conditions=conditions,
        dtype=_DTYPES[settings.dtype],
        **fields,
    )
    phases = schedules.parse_phases(settings.phases, detector.objectives)
    _check_updates(phases, detector.objectives)
    detector = detector._replace(objectives=_inactive_objectives_first(detector.objectives, phases))
    optimizers = make_optimizers(settings, detector, phases, steps_per_epoch)
    return DetectorBuild(detector, optimizers, phases)


def make_optimizers(
    settings: Settings,
    detector: Detector,
    phases: tuple[schedules.Phase, ...],
    steps_per_epoch: int,
    scale: float = 1.0,
) -> dict[str, optax.GradientTransformation]:
    """Each objective's optimizer. scale: of all learning rates."""
    return {
        name: schedules.make_optimizer(
            schedules.updates_by_phase(phases, name, steps_per_epoch),
            settings.optimizers[name],
            scale,
        )
        for name in detector.objectives
    }


def _check_updates(phases, objectives):
    if not any(sum(schedules.updates_by_phase(phases, name, 1)) for name in objectives):
        raise UserError(
            "nothing would train: no objective of config.phases has epochs in which it acts. Give "
            "a phase more epochs, or an ablation less"
        )


def _inactive_objectives_first(objectives, phases):
    """A network is scored by the statistics of the last objective that owns it
    (detector.batch_statistics), and one that is never due has trained nothing."""

    def used(item):
        return any(schedules.updates_by_phase(phases, item[0], 1))

    return dict(sorted(objectives.items(), key=used))


class _Range(NamedTuple):
    """What a number has to be, in words and as a test."""

    words: str
    holds: Callable[[object], bool]


_COUNT = _Range("whole numbers from 1 on", lambda n: type(n) is int and n > 0)
_ABOVE = _Range("a number above 0", lambda n: 0 < n < float("inf"))
_DECAY = _Range("a number from 0 on and below 1", lambda n: 0 <= n < 1)
_WEIGHT = _Range("a number from 0 on", lambda n: 0 <= n < float("inf"))
_RANGES = {
    **dict.fromkeys(("codes", "discriminator_hidden", "discriminator_widths", "hidden"), _COUNT),
    **dict.fromkeys(("latent", "residual_width", "restarts", "search_steps"), _COUNT),
    **dict.fromkeys(("width", "widths"), _COUNT),
    **dict.fromkeys(("data_variance", "epsilon", "learning_rate", "search_rate"), _ABOVE),
    **dict.fromkeys(("averaging", "b1", "b2", "decay"), _DECAY),
    **dict.fromkeys(("discriminator_dropout", "search_b1"), _DECAY),
    "feature_weight": _Range("a number from 0 to 1", lambda n: 0 <= n <= 1),
}


def _check_numbers(where, fields):
    """Flax and Optax would say what is wrong with a number only when they make something of it, not
    of which field it is, or train by it."""
    for name, value in fields.items():
        if isinstance(value, dict):
            _check_numbers(f"{where}.{name}", value)
            continue
        rule = _RANGES.get(name, _WEIGHT)
        numbers = value if isinstance(value, tuple | list) else (value,)
        if rule is not _COUNT:  # names and the like are not for this to judge
            numbers = [n for n in numbers if isinstance(n, int | float)]
        if (rule is _COUNT and not numbers) or not all(map(rule.holds, numbers)):
            raise UserError(f"config.{where}.{name}={value!r:.200}: {rule.words}")
