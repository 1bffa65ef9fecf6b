"""Is training still sound? Short warnings from one epoch's log row, for the log and the report."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# D's mean output: it is hardly ever wrong. Small sound games stayed below 0.91 on real pictures for
# 60 steps; with D's learning rate a hundredfold they passed this within 16.
_SURE = 0.98

# Chance costs D 2 ln 2 = 1.39 (BCE on real plus on generated). One that loses three times as much
# is confidently wrong: its weights jump.
_LOST = 3 * 2 * np.log(2)

# Of the real pictures' spread. A collapsed generator is near 0; the least of small sound games was
# 0.16, in the first epochs, while an autoencoder still answers with the mean picture.
_COLLAPSED = 0.1

# Perplexity counts the codes in use; with fewer than two nothing but one picture can be told.
_FEWEST_CODES = 2.0


def health_warnings(row: Mapping[str, Any]) -> list[str]:
    """What is wrong with an epoch, in sentences; empty when all is well.

    row: as in train.jsonl: "<objective>/<log>" to its mean over the epoch, among other fields.
    """
    numbers = {k: v for k, v in row.items() if isinstance(v, int | float | np.number)}
    infinite = sorted(name for name, value in numbers.items() if not np.isfinite(value))
    objectives: dict[str, dict[str, float]] = {}
    for name, value in numbers.items():
        objective, _, log = name.rpartition("/")
        objectives.setdefault(objective, {})[log] = value
    found = [
        warning
        for name, logs in objectives.items()
        for look in (_discriminator, _generator, _codebook)
        if (warning := look(name, logs))
    ]
    if infinite:
        found.insert(
            0,
            f"Training has diverged: {', '.join(infinite)} not finite. "
            "Lower the learning rates, or go on from an earlier checkpoint.",
        )
    return found


def _discriminator(name, logs):
    if not {"real", "fake"} <= logs.keys():
        return None
    outputs = f"{logs['real']:.2f} on real and {logs['fake']:.2f} on generated pictures"
    remedy = f"Try a lower optimizers.{name}.learning_rate"
    if logs["real"] > _SURE and logs["fake"] < 1 - _SURE:
        return (
            f"The discriminator is saturated ({outputs}), so that it teaches the other networks "
            f"little. {remedy}, or let it act less often."
        )
    if min(logs["real"], logs["fake"]) > _SURE or max(logs["real"], logs["fake"]) < 1 - _SURE:
        return f"The discriminator says the same of every picture ({outputs}). {remedy}."
    if logs.get("loss", 0) > _LOST:
        return (
            f"The discriminator is confidently wrong (loss {logs['loss']:.1f}, 1.4 is chance): "
            f"its weights jump. {remedy}."
        )
    return None


def _generator(name, logs):
    spread, real = logs.get("spread", np.nan), logs.get("real_spread", np.nan)
    if spread < _COLLAPSED * real:
        return (
            f"The generator has collapsed: its pictures vary {spread / real:.0%} as much as real "
            f"ones ({spread:.3g} against {real:.3g}). Try a lower optimizers.{name}.learning_rate "
            "or another seed, and do not trust this run's scores."
        )
    return None


def _codebook(name, logs):
    if logs.get("perplexity", np.inf) < _FEWEST_CODES:
        return (
            f"The codebook has collapsed: a perplexity of {logs['perplexity']:.2f} means that "
            f"one code stands for nearly everything. Try a lower optimizers.{name}.learning_rate "
            "or a larger batch."
        )
    return None
