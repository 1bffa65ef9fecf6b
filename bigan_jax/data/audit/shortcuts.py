"""Shortcut features: how well features without relation to a defect predict test labels."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from bigan_jax.data.audit.duplicates import Pairs
from bigan_jax.metrics.image import auroc

COMBINED = "all features combined"
SUSPICIOUS_AUROC = 0.7  # of one feature; lower values cause no warning
SUSPICIOUS_COMBINED_AUROC = 0.9  # defects change features too: 0.79 on bottle, without a leak
FOLDS = 5
MIN_PAIRS = 20  # pairs from which a similarity is estimated


def shortcut_aurocs(
    features: Mapping[str, Num[np.ndarray, "n"]],
    label: Bool[np.ndarray, "n"],
    group: Shaped[np.ndarray, "n"],
    condition: Int[np.ndarray, "n"],
) -> dict[str, float]:
    """Compute the AUROC of each feature with its better sign, best first; {} with one class.

    The condition, and COMBINED (all features and the condition), are scored by a cross-validated logistic regression
    with no group in two folds. They are omitted for fewer than FOLDS groups of a class.
    """
    if label.all() or not label.any():
        return {}
    aurocs = {name: best_sign_auroc(values, label) for name, values in features.items()}
    if min(len(np.unique(group[label == c])) for c in (True, False)) >= FOLDS:
        conditions, index = np.unique(condition, return_inverse=True)
        one_hot = np.eye(len(conditions))[index]
        if len(conditions) > 1:
            aurocs["condition"] = _cross_validated_auroc(one_hot, label, group)
        combined = np.column_stack([*features.values(), one_hot])
        aurocs[COMBINED] = _cross_validated_auroc(combined, label, group)
    return dict(sorted(aurocs.items(), key=lambda item: -item[1]))


def _cross_validated_auroc(values, label, group):
    """Returns the AUROC of a logistic regression on images to which it was not fitted."""
    grouped = len(np.unique(group)) < len(group)  # if not, the slow grouped split is not needed
    # These take a second to import, which commands without an audit need not wait for.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedGroupKFold if grouped else StratifiedKFold
    model = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky"))
    options = {"groups": group if grouped else None, "cv": folds(FOLDS, shuffle=True, random_state=0)}
    score = cross_val_predict(model, values.astype(np.float64), label, method="decision_function", **options)
    return _auroc(score, label)


def best_sign_auroc(score: Num[np.ndarray, "n"], label: Bool[np.ndarray, "n"]) -> float:
    """Returns the AUROC of `score` or of its negative, whichever is higher."""
    value = _auroc(score, label)
    return max(value, 1 - value)


def _auroc(score, label) -> float:
    value = auroc(np.asarray(score, np.float64), label)
    assert value is not None  # there are both classes
    return value


def significant(aurocs: Mapping[str, float], label: Bool[np.ndarray, "n"]) -> dict[str, float]:
    """Select AUROCs above the SUSPICIOUS ones and three standard errors above chance.

    The error is that of the Mann-Whitney statistic of two samples from the same distribution.
    """
    normal, anomalous = np.count_nonzero(~label), np.count_nonzero(label)
    error = np.sqrt((normal + anomalous + 1) / (12 * max(1, normal * anomalous)))
    minimum = {name: SUSPICIOUS_COMBINED_AUROC if name == COMBINED else SUSPICIOUS_AUROC for name in aurocs}
    return {name: value for name, value in aurocs.items() if value >= max(minimum[name], 0.5 + 3 * error)}


def neighbor_similarity(
    signature: Float[np.ndarray, "n d"], pairs: Pairs, stratum: Int[np.ndarray, "n"]
) -> float | None:
    """Compute how reliably pairs are more similar than random pairs within the same strata.

    This is the AUROC of their correlations: 0.5 if pairs are like random ones, None for fewer than MIN_PAIRS pairs.
    """
    first, second, _ = pairs
    if len(first) < MIN_PAIRS:
        return None
    rng = np.random.default_rng(0)
    other = np.empty_like(first)
    for s in np.unique(stratum[first]):
        selected = stratum[first] == s
        other[selected] = rng.choice(np.flatnonzero(stratum == s), np.count_nonzero(selected))
    distinct = other != first
    paired = np.einsum("pd,pd->p", signature[first], signature[second])
    random = np.einsum("pd,pd->p", signature[other[distinct]], signature[first[distinct]])
    is_pair = np.repeat([True, False], [len(paired), len(random)])
    return auroc(np.concatenate([paired, random]), is_pair)
