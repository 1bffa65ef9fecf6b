"""How well facts that have nothing to do with a defect tell the label of a test picture."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bigan_jax.data.audit.duplicates import Pairs
from bigan_jax.metrics.image import auroc

TOGETHER = "all of these together"
SUSPICIOUS_AUROC = (
    0.7  # the AUROC from which on a fact is worth a warning, when chance does not reach it
)
SUSPICIOUS_TOGETHER = 0.9  # defects move these facts as well: on bottle, without a leak, to 0.79
FOLDS = 5
MIN_IMAGES = 20  # pairs to judge by


def shortcut_aurocs(
    facts: Mapping[str, Float[np.ndarray, "n"]],
    label: Bool[np.ndarray, "n"],
    group: Shaped[np.ndarray, "n"],
    condition: Int[np.ndarray, "n"],
) -> dict[str, float]:
    """The AUROC of each fact with its better sign, best first; empty with one class.

    The condition, and TOGETHER, all facts and it, are logistic regressions, cross-validated so
    that no group is on both sides; there are none for fewer than FOLDS groups of either class.
    """
    if label.all() or not label.any():
        return {}
    values = {name: better_sign(fact, label) for name, fact in facts.items()}
    if min(len(np.unique(group[label == c])) for c in (True, False)) >= FOLDS:
        kinds, kind = np.unique(condition, return_inverse=True)
        is_kind = np.eye(len(kinds))[kind]
        if len(kinds) > 1:
            values["condition"] = _cross_validated(is_kind, label, group)
        every = np.column_stack([*facts.values(), is_kind])
        values[TOGETHER] = _cross_validated(every, label, group)
    return dict(sorted(values.items(), key=lambda item: -item[1]))


def _cross_validated(values, label, group):
    """The AUROC of what a logistic regression says of pictures that it was not fitted to."""
    shared = len(np.unique(group)) < len(group)  # else the slow search for folds is needless
    kind = StratifiedGroupKFold if shared else StratifiedKFold
    told = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky")),
        values.astype(np.float64),
        label,
        groups=group if shared else None,
        cv=kind(FOLDS, shuffle=True, random_state=0),
        method="decision_function",
    )
    return auroc(told, label)


def better_sign(score: Float[np.ndarray, "n"], label: Bool[np.ndarray, "n"]) -> float:
    """The AUROC of `score` or of its negative, whichever is higher."""
    value = auroc(np.asarray(score, np.float64), label)
    return max(value, 1 - value)


def significant(aurocs: Mapping[str, float], label: Bool[np.ndarray, "n"]) -> dict[str, float]:
    """Those above TELLS or TELL_TOGETHER, and three standard errors above chance.

    The error is that of the Mann-Whitney statistic of two samples of one distribution.
    """
    normal, anomalous = np.count_nonzero(~label), np.count_nonzero(label)
    error = np.sqrt((normal + anomalous + 1) / (12 * max(1, normal * anomalous)))
    least = {TOGETHER: SUSPICIOUS_TOGETHER}
    return {
        name: value
        for name, value in aurocs.items()
        if value >= max(least.get(name, SUSPICIOUS_AUROC), 0.5 + 3 * error)
    }


def neighbor_similarity(
    signature: Float[np.ndarray, "n d"], pairs: Pairs, kind: Int[np.ndarray, "n"]
) -> float | None:
    """How surely a pair looks more alike than two pictures of its kind that chance put together.

    An AUROC of their correlations: 0.5 where the pairs mean nothing. None for fewer than ENOUGH
    pairs. Chance has a fixed seed.
    """
    first, second, _ = pairs
    if len(first) < MIN_IMAGES:
        return None
    rng = np.random.default_rng(0)
    other = np.empty_like(first)
    for k in np.unique(kind[first]):
        own = kind[first] == k
        other[own] = rng.choice(np.flatnonzero(kind == k), np.count_nonzero(own))
    by_chance = other[other != first], first[other != first]
    together = np.einsum("pd,pd->p", signature[first], signature[second])
    apart = np.einsum("pd,pd->p", signature[by_chance[0]], signature[by_chance[1]])
    are_pairs = np.repeat([True, False], [len(together), len(apart)])
    return auroc(np.concatenate([together, apart]), are_pairs)
