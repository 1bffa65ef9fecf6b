"""The results of the paper's Tables I to III, and a check whether a row of results is possible.

Source: A. C. Das, A. Banik, N. Sayara, S. H. Reaz, A. Chakrabarty, Fahim-Ul-Islam, "Leveraging GANs, Autoencoders and
their Combined Deep Learning Architectures for Anomaly Detection in Multi-Domain Image Data", Sec. V.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

METRICS = ("auroc", "accuracy", "precision", "recall", "f1", "specificity")

# Names in configs/ and in the paper, in the order of its Table I.
MODELS = {
    "improved_bigan": "Improved BiGAN",
    "bigan": "BiGAN",
    "ganomaly": "GANomaly",
    "anogan": "AnoGAN",
    "vae": "VAE",
    "beta_vae": "Beta-VAE",
    "fcae": "FC-AE",
    "cae": "CNN-AE",
    "vqvae": "VQ-VAE",
    "cvae": "CVAE",
}


class PaperTable(NamedTuple):
    """A table of the paper: values in the order of METRICS, by the model's name in configs/."""

    number: str
    title: str
    rows: dict[str, tuple[float, float, float, float, float, float]]


BRAIN = PaperTable(
    "I",
    "Brain MRI",
    {
        "improved_bigan": (0.892, 0.854, 0.959, 0.862, 0.905, 0.815),
        "bigan": (0.852, 0.820, 0.950, 0.820, 0.890, 0.780),
        "ganomaly": (0.840, 0.810, 0.947, 0.810, 0.875, 0.760),
        "anogan": (0.837, 0.800, 0.941, 0.800, 0.860, 0.740),
        "vae": (0.835, 0.774, 0.934, 0.766, 0.844, 0.695),
        "beta_vae": (0.830, 0.766, 0.931, 0.751, 0.832, 0.720),
        "fcae": (0.796, 0.787, 0.939, 0.785, 0.855, 0.696),
        "cae": (0.409, 0.555, 0.840, 0.653, 0.726, 0.371),
        "vqvae": (0.411, 0.446, 0.908, 0.402, 0.571, 0.484),
        "cvae": (0.810, 0.773, 0.928, 0.789, 0.853, 0.695),
    },
)
BOTTLE = PaperTable(
    "II",
    "MVTec AD, bottle",
    {
        "improved_bigan": (0.921, 0.823, 0.981, 0.813, 0.892, 0.782),
        "bigan": (0.872, 0.792, 0.953, 0.784, 0.864, 0.753),
        "ganomaly": (0.854, 0.781, 0.941, 0.771, 0.847, 0.732),
        "anogan": (0.832, 0.773, 0.932, 0.762, 0.834, 0.715),
        "vae": (0.803, 0.743, 0.903, 0.735, 0.813, 0.673),
        "beta_vae": (0.791, 0.736, 0.892, 0.724, 0.802, 0.662),
        "fcae": (0.764, 0.751, 0.911, 0.752, 0.823, 0.684),
        "cae": (0.382, 0.523, 0.803, 0.604, 0.683, 0.347),
        "vqvae": (0.395, 0.427, 0.872, 0.374, 0.526, 0.438),
        "cvae": (0.781, 0.739, 0.888, 0.748, 0.808, 0.669),
    },
)
PLANT = PaperTable(
    "III",
    "Plant Disease",
    {
        "improved_bigan": (0.939, 0.919, 0.969, 0.931, 0.949, 0.850),
        "bigan": (0.852, 0.820, 0.949, 0.820, 0.879, 0.780),
        "ganomaly": (0.840, 0.810, 0.946, 0.810, 0.872, 0.770),
        "anogan": (0.837, 0.800, 0.943, 0.800, 0.865, 0.760),
        "vae": (0.835, 0.754, 0.926, 0.766, 0.839, 0.695),
        "beta_vae": (0.830, 0.746, 0.928, 0.751, 0.832, 0.720),
        "fcae": (0.796, 0.769, 0.927, 0.785, 0.849, 0.690),
        "cae": (0.409, 0.606, 0.838, 0.653, 0.731, 0.370),
        "cvae": (0.410, 0.711, 0.896, 0.773, 0.831, 0.550),
        "vqvae": (0.789, 0.889, 0.938, 0.928, 0.933, 0.695),
    },
)


def paper_table(dataset: str, category: str) -> PaperTable | None:
    """Returns the paper's table for a data set; of MVTec AD, the paper has the bottle only."""
    if dataset == "mvtec":
        return BOTTLE if category == "bottle" else None
    return {"brain": BRAIN, "brain_mixed": BRAIN, "plant": PLANT}.get(dataset)


# With p, t and u the fractions of anomalous images (the prevalence), true positives and true negatives, each metric
# is a ratio of two sums a + b p + c t + d u, given here as (a, b, c, d).
_RATIOS = {
    "recall": ((0, 0, 1, 0), (0, 1, 0, 0)),
    "specificity": ((0, 0, 0, 1), (1, -1, 0, 0)),
    "accuracy": ((0, 0, 1, 1), (1, 0, 0, 0)),
    "precision": ((0, 0, 1, 0), (1, -1, 1, -1)),
    "f1": ((0, 0, 2, 0), (1, 0, 1, -1)),
}
_ROUNDING = 0.0005 + 1e-9  # the rounding error of three decimals
_ANY_PREVALENCE = (1e-6, 1 - 1e-6)


def feasible_prevalence(
    row: Mapping[str, float | None],
    metrics: Sequence[str] = ("accuracy", "precision", "f1"),
    within: tuple[float, float] = _ANY_PREVALENCE,
) -> tuple[float, float] | None:
    """Returns the lowest and highest prevalence in `within` at which a row is possible; None if there is none.

    A row is possible if a confusion matrix exists whose recall, specificity and `metrics` round to its values, where
    these are known. "lower <= numerator / denominator <= upper" is linear in the fractions of the matrix, so a linear
    program answers exactly.
    """
    bounds = []
    for name in ("recall", "specificity", *metrics):
        value = row.get(name)
        low, high = (0.0, 1.0) if value is None else (max(value - _ROUNDING, 0), min(value + _ROUNDING, 1))
        numerator, denominator = np.array(_RATIOS[name], float)
        bounds += [low * denominator - numerator, numerator - high * denominator]
    constraints = np.array(bounds)
    solutions = [
        linprog(
            (sign, 0, 0),
            A_ub=constraints[:, 1:],
            b_ub=-constraints[:, 0],
            bounds=[within, (0, 1), (0, 1)],
            options={"primal_feasibility_tolerance": 1e-10},
        )
        for sign in (1, -1)
    ]
    if not all(solution.success for solution in solutions):
        return None
    return float(solutions[0].x[0]), float(solutions[1].x[0])


def contradiction(row: Mapping[str, float | None], within: tuple[float, float] = _ANY_PREVALENCE) -> str | None:
    """Returns why no test set with a prevalence in `within` can give a row, exact or to three decimals; else None."""
    auroc, recall, specificity = (row.get(n) for n in ("auroc", "recall", "specificity"))
    if recall is None or specificity is None:
        return None  # a class was not tested
    possible = feasible_prevalence(row, within=within)
    reasons = [] if possible else [_why_impossible(row, within)]
    if auroc is not None:
        # A ROC curve rises from (0, 0) to (1, 1) through the threshold's point.
        lowest = max(recall - _ROUNDING, 0) * max(specificity - _ROUNDING, 0)
        highest = 1 - (1 - min(recall + _ROUNDING, 1)) * (1 - min(specificity + _ROUNDING, 1))
        if auroc + _ROUNDING < lowest or auroc - _ROUNDING > highest:
            reasons.append(
                f"a ROC curve through this recall and specificity has an area of {lowest:.3f} to {highest:.3f}, not "
                f"{auroc:.3f}"
            )
    return "; ".join(reasons) or None


def _why_impossible(row, within):
    accuracy, precision, recall, f1, specificity = (row.get(name) for name in METRICS[1:])
    by_accuracy = feasible_prevalence(row, ["accuracy"], within)
    by_precision = feasible_prevalence(row, ["precision"], within)
    where = "at no prevalence" if within == _ANY_PREVALENCE else "not at this test set's prevalence"
    for name, value, feasible in (("accuracy", accuracy, by_accuracy), ("precision", precision, by_precision)):
        if feasible is None:
            return f"{name} {value:.3f} follows from recall {recall:.3f} and specificity {specificity:.3f} {where}"
    reasons = []
    if feasible_prevalence(row, ["accuracy", "precision"], within) is None:
        hint = "accuracy equals recall and lies above specificity: " * (accuracy == recall > specificity)
        needs = f"accuracy requires a prevalence of {_range_text(by_accuracy)}, precision one of "
        reasons.append(hint + needs + _range_text(by_precision))
    if feasible_prevalence({"precision": precision, "recall": recall, "f1": f1}) is None:
        harmonic = 2 * precision * recall / max(precision + recall, 1e-12)
        reasons.append(f"F1 is {f1:.3f}, but precision and recall give {harmonic:.3f}")
    return "; ".join(reasons) or f"F1 {f1:.3f} is possible at no prevalence at which the others are"


def _range_text(limits):
    return " to ".join(dict.fromkeys(f"{limit:.3f}" for limit in limits))
