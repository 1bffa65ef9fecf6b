"""The checks of the audit: each function returns one `Finding`."""

from collections.abc import Mapping

import numpy as np

from bigan_jax.data.audit.duplicates import Pairs, across_splits
from bigan_jax.data.audit.result import SPLITS, AllImages, Finding
from bigan_jax.data.dataset import Dataset

# Similarity of neighboring file numbers (`shortcuts.neighbor_similarity`) from which they matter. Measured: 0.50 on the
# phantom and 0.55 on bottle, where numbers mean nothing; 0.77 for views of one leaf, 0.999 for slices of one head.
SIMILAR_AUROC = 0.7


def exact_duplicates_across_splits(pairs: Pairs, images: AllImages, policy: str) -> Finding:
    """Reports images in two splits with the same pixels."""
    return _duplicates_across_splits("exact", pairs, images, policy, ("drop", "drop_near"))


def near_duplicates_across_splits(pairs: Pairs, images: AllImages, policy: str) -> Finding:
    """Reports images in two splits that were re-encoded, scaled or brightened."""
    return _duplicates_across_splits("near", pairs, images, policy, ("drop_near",))


def _duplicates_across_splits(kind, pairs, images, policy, dropping_policies):
    name, pairs = f"{kind} duplicates across splits", across_splits(pairs, images.split)
    if not len(pairs.first):
        return Finding(name, "none")
    n_tested = len(np.unique(pairs.first[images.split[pairs.first] == "test"]))
    n_test = np.count_nonzero(images.split == "test")
    result = (
        f"{n_tested} of {n_test} test images; " if n_test else ""
    ) + f"{_count(len(np.unique(pairs.second)), 'training or calibration image')} ({_count(len(pairs.first), 'pair')})"
    if policy in dropping_policies:
        return Finding(name, f"{result}, dropped")
    consequence = "Calibration images were used for training, so the threshold is too low."
    if n_tested:
        consequence = "Test images were used for training or calibration, so the result is too good."
    if kind == "near":  # objects of one kind look alike
        consequence = f"If the pairs in the report show the same object: {consequence[0].lower()}{consequence[1:]}"
    remedy = f"--config.data.duplicates={dropping_policies[0]} drops training or calibration images"
    return Finding(name, result, f"{consequence} {remedy} that have duplicates.")


def duplicates_within_split(exact: Pairs, near: Pairs, images: AllImages) -> Finding:
    """Reports duplicates in one split, which count twice and may make intervals too narrow."""
    counts = []
    for split in SPLITS[::-1]:
        inside = images.split == split
        pairs = [p.select(inside[p.first] & inside[p.second]) for p in (exact, near)]
        rows = np.unique(np.concatenate([row for p in pairs for row in p[:2]]))
        counts += [f"{split} {_count(len(rows), 'image')}"] * (len(rows) > 0)
    return Finding("duplicates within a split", ", ".join(counts) or "none")


def conflicting_labels(exact: Pairs, near: Pairs, images: AllImages) -> Finding:
    """Reports duplicates of which one is normal and the other anomalous."""
    name, label = "conflicting labels", images.label
    n_pairs = sum(int(np.count_nonzero(label[p.first] != label[p.second])) for p in (exact, near))
    if not n_pairs:
        return Finding(name, "none")
    meaning = "Duplicates are labeled normal and anomalous: look at the pairs in the report."
    return Finding(name, _count(n_pairs, "pair"), meaning)


def groups_across_splits(images: AllImages) -> Finding:
    """Reports groups, such as patients or camera blocks, with images in more than one split."""
    name, splits_of = "groups across splits", {}
    for group, split in zip(images.group.tolist(), images.split.tolist(), strict=True):
        splits_of.setdefault(group, set()).add(split)
    shared = sorted(group for group, splits in splits_of.items() if len(splits) > 1)
    if len(splits_of) == len(images.path):
        return Finding(name, "none known: every image is a group of its own")
    if not shared:
        return Finding(name, f"none of {len(splits_of)}")
    result = f"{len(shared)} of {len(splits_of)}: {', '.join(shared[:3])}{' ...' * (len(shared) > 3)}"
    return Finding(name, result, "Images of one group (a patient, a camera block) are similar: split by group.")


def neighboring_file_numbers(pairs: Pairs, auroc: float | None, images: AllImages) -> Finding:
    """Reports files with neighboring numbers in two splits, if such files are similar."""
    name = "neighboring file numbers"
    if auroc is None:
        return Finding(name, "too few pairs")
    n_across, similar = len(across_splits(pairs, images.split).first), auroc >= SIMILAR_AUROC
    result = (
        f"{_count(len(pairs.first), 'pair')} {'look' if similar else 'do not look'} similar "
        f"(AUROC {auroc:.3f}), {n_across or 'none'} across splits"
    )
    if not similar or not n_across:
        return Finding(name, result)
    meaning = (
        "They may show the same object in training and in the test: set groups in metadata.csv and train in a new "
        "--workdir (layouts folder and brain), or split by blocks of camera numbers (layout plant)."
    )
    return Finding(name, result, meaning)


def shortcut_features(aurocs: Mapping[str, float], significant: Mapping[str, float]) -> Finding:
    """Reports features without relation to a defect that predict the label."""
    name = "shortcut features"
    if not aurocs:
        return Finding(name, "the test has one class only")
    if not significant:
        best, auroc = next(iter(aurocs.items()))
        return Finding(name, f"none; the best is {best}, AUROC {auroc:.3f}")
    listed = [f"{feature} {auroc:.3f}" for feature, auroc in significant.items()]
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    meaning = (
        "Normal and anomalous images differ in more than the defect (source, light, framing), and this may explain a "
        "good result. Compare it with the baselines."
    )
    return Finding(name, ", ".join(listed[:3]) + more, meaning)


def conditions_without_training_images(dataset: Dataset) -> Finding | None:
    """Reports conditions that are tested but not trained; None if there are none."""
    n_test, n_train = (
        np.bincount(images.condition, minlength=len(dataset.conditions)) for images in (dataset.test, dataset.train)
    )
    names = ", ".join(np.array(dataset.conditions)[(n_test > 0) & (n_train == 0)])
    meaning = "The detector was not trained on them, so all of their images may look anomalous."
    return Finding("conditions without training images", names, meaning) if names else None


def conditions_with_one_class(dataset: Dataset) -> Finding | None:
    """Reports conditions, of several, with test images of one class only; None if there are none."""
    test, n_conditions = dataset.test, len(dataset.conditions)
    has_normal, has_anomalous = (
        np.bincount(test.condition[test.label == label], minlength=n_conditions) > 0 for label in (False, True)
    )
    names = ", ".join(np.array(dataset.conditions)[(has_normal != has_anomalous) & (n_conditions > 1)])
    meaning = "Their test images are all normal or all anomalous, so the condition predicts the label."
    return Finding("conditions with one class", names, meaning) if names else None


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
