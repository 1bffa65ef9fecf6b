"""Health checks of training: warnings from one epoch's log row, for the log and the report."""

from collections import defaultdict
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
_MIN_PERPLEXITY = 2.0  # the effective number of codes; fewer than two describe a single image


def health_warnings(row: Mapping[str, Any]) -> list[str]:
    """Returns a warning for each problem of an epoch.

    Args:
      row: a row of train.jsonl: the epoch's mean of each log "<objective>/<log>", among other fields.
    """
    numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float | np.number)}
    objectives: dict[str, dict[str, float]] = defaultdict(dict)
    for name, value in numbers.items():
        objective, _, log = name.rpartition("/")
        objectives[objective][log] = value
    warnings = []
    if nonfinite := sorted(name for name, value in numbers.items() if not np.isfinite(value)):
        warnings.append(
            f"Training has diverged: {', '.join(nonfinite)} not finite. "
            "Lower the learning rates, or resume from an earlier checkpoint."
        )
    for objective, logs in objectives.items():
        fix = f"Try a lower optimizers.{objective}.learning_rate"
        warnings += [*_discriminator_warnings(logs, fix), *_collapse_warnings(logs, fix)]
    return warnings


def _discriminator_warnings(logs, fix):
    if not {"real", "fake"} <= logs.keys():
        return
    real, fake = logs["real"], logs["fake"]
    outputs = f"{real:.2f} on real and {fake:.2f} on generated images"
    if real > _SATURATED and fake < 1 - _SATURATED:
        yield (
            f"The discriminator is saturated ({outputs}), and its gradients teach the other networks little. "
            f"{fix}, or update it less often."
        )
    elif min(real, fake) > _SATURATED or max(real, fake) < 1 - _SATURATED:
        yield f"The discriminator outputs the same for every image ({outputs}). {fix}."
    elif logs.get("loss", 0) > _WRONG_LOSS:
        yield (
            f"The discriminator is confidently wrong (loss {logs['loss']:.1f}, chance is 1.4) and its weights jump. "
            f"{fix}."
        )


def _collapse_warnings(logs, fix):
    spread, real = logs.get("spread", np.nan), logs.get("real_spread", np.nan)
    if spread < _COLLAPSED * real:
        yield (
            f"The generator has collapsed: its images vary {spread / real:.0%} as much as real ones ({spread:.3g} "
            f"against {real:.3g}). {fix} or another seed, and do not trust this run's scores."
        )
    if logs.get("perplexity", np.inf) < _MIN_PERPLEXITY:
        yield (
            f"The codebook has collapsed: a perplexity of {logs['perplexity']:.2f} means that nearly everything has "
            f"the same code. {fix} or a larger batch."
        )
