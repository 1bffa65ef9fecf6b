"""Health checks of training: warnings from one epoch's log row, for the log and the report."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# Mean output of a discriminator that is hardly ever wrong. Small healthy runs stayed below 0.91 on real images for 60
# steps; with D's learning rate a hundredfold they exceeded 0.98 within 16.
_SATURATED = 0.98

# Chance costs D 2 ln 2 = 1.39 (BCE on real plus on generated images). At three times that loss D is confidently
# wrong, and its weights jump.
_WRONG_LOSS = 3 * 2 * np.log(2)

# Fraction of the real images' standard deviation. A collapsed generator is near 0; the least of small healthy runs
# was 0.16, in the first epochs, when an autoencoder outputs the mean image.
_COLLAPSED = 0.1

# Perplexity is the effective number of codes; fewer than two describe a single image.
_MIN_PERPLEXITY = 2.0


def health_warnings(row: Mapping[str, Any]) -> list[str]:
    """Returns a warning for each problem of an epoch.

    Args:
      row: a row of train.jsonl: the epoch's mean of each log "<objective>/<log>", among other fields.
    """
    numbers = {k: v for k, v in row.items() if isinstance(v, int | float | np.number)}
    objectives: dict[str, dict[str, float]] = {}
    for name, value in numbers.items():
        objective, _, log = name.rpartition("/")
        objectives.setdefault(objective, {})[log] = value
    warnings = []
    if nonfinite := sorted(name for name, value in numbers.items() if not np.isfinite(value)):
        warnings.append(
            f"Training has diverged: {', '.join(nonfinite)} not finite. "
            "Lower the learning rates, or resume from an earlier checkpoint."
        )
    return warnings + [
        warning
        for name, logs in objectives.items()
        for check in (_discriminator, _generator, _codebook)
        if (warning := check(name, logs))
    ]


def _discriminator(name, logs):
    if not {"real", "fake"} <= logs.keys():
        return None
    outputs = f"{logs['real']:.2f} on real and {logs['fake']:.2f} on generated images"
    fix = f"Try a lower optimizers.{name}.learning_rate"
    if logs["real"] > _SATURATED and logs["fake"] < 1 - _SATURATED:
        return (
            f"The discriminator is saturated ({outputs}), and its gradients teach the other "
            f"networks little. {fix}, or update it less often."
        )
    if min(logs["real"], logs["fake"]) > _SATURATED or max(logs["real"], logs["fake"]) < 1 - _SATURATED:
        return f"The discriminator outputs the same for every image ({outputs}). {fix}."
    if logs.get("loss", 0) > _WRONG_LOSS:
        return (
            f"The discriminator is confidently wrong (loss {logs['loss']:.1f}, chance is 1.4) and "
            f"its weights jump. {fix}."
        )
    return None


def _generator(name, logs):
    spread, real = logs.get("spread", np.nan), logs.get("real_spread", np.nan)
    if spread < _COLLAPSED * real:
        return (
            f"The generator has collapsed: its images vary {spread / real:.0%} as much as real "
            f"ones ({spread:.3g} against {real:.3g}). Try a lower optimizers.{name}.learning_rate "
            "or another seed, and do not trust this run's scores."
        )
    return None


def _codebook(name, logs):
    if logs.get("perplexity", np.inf) < _MIN_PERPLEXITY:
        return (
            f"The codebook has collapsed: a perplexity of {logs['perplexity']:.2f} means that "
            f"nearly everything has the same code. Try a lower optimizers.{name}.learning_rate "
            "or a larger batch."
        )
    return None
