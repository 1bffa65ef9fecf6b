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
# Fractions of the real images' standard deviation. A collapsed generator is near 0, and the least of small healthy runs
# was 0.16. Reconstructions of small healthy runs (phantom at 32x32, 10 epochs of 5 steps) varied at least 0.13 as much
# (GANomaly) or 0.2 (autoencoders), but those of VQ-VAEs 0.02 to 0.1 until step 45, when they are the mean image.
_COLLAPSED = 0.1
_SAME = 0.05
_FIRST_STEPS = 100
# Nats, one bit. The KL divergence, averaged over images, is an upper bound of the information in the code (Hoffman and
# Johnson 2016, "ELBO surgery"); with less than one bit it cannot tell two halves of the images apart. Small runs began
# above 30 nats and fell below one bit only where no unit was active.
_MIN_KL = np.log(2)
_MIN_PERPLEXITY = 2.0  # the effective number of codes; fewer than two describe a single image
# Fraction of the codebook. Codes that the first batch does not use die at once: 3 to 6 % of 512 lived in small runs,
# and with dead codes replaced 76 to 100 %.
_MIN_LIVE = 0.1


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
        warnings += [
            *_discriminator_warnings(logs, fix),
            *_spread_warnings(logs, fix, early=numbers.get("step", np.inf) < _FIRST_STEPS),
            *_posterior_warnings(logs),
            *_codebook_warnings(logs, fix),
        ]
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


def _spread_warnings(logs, fix, early):
    real = logs.get("real_spread", np.nan)

    def below(limit, name):
        return logs.get(f"{name}_spread", np.nan) < limit * real

    def amount(name):
        spread = logs[f"{name}_spread"]
        return f"vary {spread / real:.0%} as much as real ones ({spread:.3g} against {real:.3g})"

    if below(_COLLAPSED, "generated"):
        yield (
            f"The generator has collapsed: its images {amount('generated')}. {fix} or another seed, and do not trust "
            "this run's scores."
        )
    if below(_SAME, "reconstruction") and not early:
        yield (
            f"The reconstructions are nearly the same for every image: they {amount('reconstruction')}, so scores only "
            f"compare images with their average. Train longer. If it lasts, {fix[0].lower()}{fix[1:]} or a larger "
            "code (config.model)."
        )


def _posterior_warnings(logs):
    kl = logs.get("kl", np.inf)
    if kl < _MIN_KL:
        yield (
            f"The posterior has collapsed: the code carries at most {kl:.2g} nats about an image (active units: "
            f"{logs.get('active_units', 0):.0f}), so scores only compare images with their average. "
            "Lower config.model.beta, or use larger images."
        )


def _codebook_warnings(logs, fix):
    live, dead = logs.get("live_codes", np.nan), logs.get("dead_codes", np.nan)
    if logs.get("perplexity", np.inf) < _MIN_PERPLEXITY:
        yield (
            f"The codebook has collapsed: a perplexity of {logs['perplexity']:.2f} means that nearly everything has "
            f"the same code. {fix} or a larger batch."
        )
    elif live < _MIN_LIVE * (live + dead):
        yield (
            f"Most codes are dead: images use {live:.0f} of {live + dead:.0f}. Set config.model.reseed_dead=True, "
            "which replaces dead codes, or lower config.model.codes."
        )
