"""The leak audit: finds what makes test results look better than the detector is.

It may use test labels, because they only decide whether it warns; what it drops depends on the pixels alone.
"""

import numpy as np

from bigan_jax.data.audit import checks, duplicates, fingerprints, shortcuts
from bigan_jax.data.audit.duplicates import Pairs, across_splits
from bigan_jax.data.audit.result import DROPPED, SPLITS, AllImages, Audit, AuditImage, Duplicate, SplitRow
from bigan_jax.data.dataset import Dataset
from bigan_jax.errors import UserError, printable

__all__ = ["Audit", "audit_dataset", "drop_duplicates"]

LABELS = ("normal", "anomalous")
MAX_PAIRS = 200  # pairs in audit.json
MAX_SHOWN_PAIRS = 24  # pairs in the report
MAX_NAMED_PAIRS = 20  # pairs in an error


def audit_dataset(dataset: Dataset, policy: str = "stop") -> Audit:
    """Finds duplicates, groups and file number neighbors across splits, and shortcut features.

    `policy` is what `drop_duplicates` will do: "stop" if there are exact duplicates across splits, "drop" them from
    training and calibration, "drop_near" also near duplicates, or "keep" all.
    """
    images = AllImages.from_dataset(dataset)
    seen = [fingerprints.fingerprint(getattr(dataset, name)) for name in SPLITS]
    pixel_hash = np.concatenate([prints.pixel_hash for prints in seen])
    thumbnail = np.concatenate([prints.thumbnail for prints in seen])
    signature = duplicates.signatures(thumbnail, images.condition, images.split == "train")
    exact = duplicates.exact_duplicates(pixel_hash, images.split)
    near = duplicates.near_duplicates(signature)
    near = near.select(pixel_hash[near.first] != pixel_hash[near.second])
    neighbors = duplicates.file_number_neighbors(images.path.tolist())
    strata = 2 * images.condition + images.label
    similarity = shortcuts.neighbor_similarity(signature, neighbors, strata)

    test, test_features = dataset.test, seen[0].features | _test_header_features(dataset.open, images)
    aurocs = shortcuts.shortcut_aurocs(test_features, test.label, test.group, test.condition)
    dropped = np.zeros(len(images.path), bool)
    for pairs in {"drop": [exact], "drop_near": [exact, near]}.get(policy, []):
        dropped[across_splits(pairs, images.split).second] = True
    findings = [
        checks.exact_duplicates_across_splits(exact, images, policy),
        checks.near_duplicates_across_splits(near, images, policy),
        checks.duplicates_within_split(exact, near, images),
        checks.conflicting_labels(exact, near, images),
        checks.groups_across_splits(images),
        checks.neighboring_file_numbers(neighbors, similarity, images),
        checks.shortcut_features(aurocs, shortcuts.significant(aurocs, test.label)),
        checks.conditions_without_training_images(dataset),
        checks.conditions_with_one_class(dataset),
    ]
    return Audit(
        policy=policy,
        balance=_class_balance(dataset),
        findings=[f._replace(result=printable(f.result)) for f in findings if f],
        shortcut_aurocs=aurocs,
        duplicates=_listed_duplicates(exact, near, images, dataset),
        n_exact=len(np.unique(across_splits(exact, images.split).second)),
        dropped={name: images.row[dropped & (images.split == name)] for name in SPLITS},
        split=_split_rows(images, pixel_hash, dropped, dataset.conditions),
    )


def drop_duplicates(dataset: Dataset, audit: Audit) -> Dataset:
    """Returns the dataset without the images that the audit's policy drops, and with a note about them.

    Raises UserError if the policy is "stop" and there are exact duplicates across splits, or a split becomes empty.
    """
    if audit.policy == "stop" and audit.n_exact:
        raise UserError(_exact_duplicates_message(audit))
    notes, splits = dataset.notes, {}
    for name, rows in audit.dropped.items():
        if not len(rows):
            continue
        images = getattr(dataset, name)
        if len(rows) == len(images.path):
            raise UserError(
                f"config.data.duplicates={audit.policy} would drop every image of {name}: each has "
                "a duplicate in another split. Remove duplicates from the folder, or use keep."
            )
        splits[name] = images.select(np.setdiff1d(np.arange(len(images.path)), rows))
        notes += (f"{len(rows)} images dropped from {name}: duplicates of images in other splits",)
    return dataset._replace(notes=notes, **splits)


def _test_header_features(open_file, images):
    features = fingerprints.header_features(open_file, images.path) if open_file else {}
    if features:
        values = features["encoding"]
        features["encoding"] = fingerprints.frequency_encode(values, values[images.split == "train"])
    return {name: values[images.split == "test"] for name, values in features.items()}


def _class_balance(dataset: Dataset) -> list[dict]:
    """Counts the normal and anomalous images of each split and condition."""
    rows = []
    for split in SPLITS[::-1]:
        images = getattr(dataset, split)
        for index, name in enumerate(dataset.conditions):
            n_normal, n_anomalous = np.bincount(images.label[images.condition == index], minlength=2).tolist()
            rows.append({"split": split, "condition": name, "normal": n_normal, "anomalous": n_anomalous})
    return rows


def _split_rows(images, pixel_hash, dropped, conditions) -> list[SplitRow]:
    split = np.where(dropped, DROPPED, images.split)
    columns = (images.path, images.label, images.group, images.condition, split, pixel_hash)
    return [
        SplitRow(path, LABELS[label], group, conditions[condition], *others)
        for path, label, group, condition, *others in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _listed_duplicates(exact: Pairs, near: Pairs, images: AllImages, dataset: Dataset) -> list[Duplicate]:
    """Lists pairs across splits first, then pairs within a split, each by distance."""
    first, second, distance = map(np.concatenate, zip(exact, near, strict=True))
    within = images.split[first] == images.split[second]
    order = np.lexsort((distance, within))[:MAX_PAIRS]

    def audit_image(i: int, shown: bool) -> AuditImage:
        split, path, label = str(images.split[i]), printable(str(images.path[i])), LABELS[int(images.label[i])]
        image = getattr(dataset, split).image
        return AuditImage(split, path, label, np.asarray(image[images.row[i : i + 1]])[0] if shown else None)

    listed = []
    for rank, pair in enumerate(order):
        a, b = (audit_image(int(row[pair]), rank < MAX_SHOWN_PAIRS) for row in (first, second))
        listed.append(Duplicate(a, b, float(distance[pair])))
    return listed


def _exact_duplicates_message(audit: Audit) -> str:
    pairs = [d for d in audit.duplicates if not d.distance and d.first.split != d.second.split]
    lines = [f"  {b.split} {b.path} = {a.split} {a.path}" for a, b, _ in pairs[:MAX_NAMED_PAIRS]]
    if audit.n_exact > len(lines):
        lines.append(f"  and {audit.n_exact - len(lines)} more")
    title = f"{audit.n_exact} training or calibration images have the same pixels as an image in another split:"
    return "\n".join([title, *lines, "Use --config.data.duplicates=drop to drop them, or keep to keep them."])
