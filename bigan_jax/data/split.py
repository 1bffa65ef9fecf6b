"""The split into training, calibration and test images, by groups and a seed alone."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b

from bigan_jax.data.records import ImageRecord
from bigan_jax.errors import UserError

TRAIN, CALIBRATION, TEST = "train", "calibration", "test"
CAMERA_BLOCK = 100  # consecutive camera numbers that stay together
BORDER_MARGIN = 5  # camera numbers excluded on each side of a border between two splits


def camera_block(sequence: str, number: int) -> str:
    """Returns the name of the block of camera numbers that contains `number`."""
    return f"{sequence} {number // CAMERA_BLOCK * CAMERA_BLOCK}"


def hash_to_unit(seed: int, group: str) -> float:
    """Returns a number in [0, 1) that depends on `seed` and `group` alone, on every machine."""
    digest = blake2b(f"{seed}/{group}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def assign_groups(
    groups: Iterable[str], seed: int, test_fraction: float, calibration_fraction: float
) -> dict[str, str]:
    """Assigns each group to a split by its hash.

    The split of a group does not depend on the other groups, with one exception: a split that would be empty gets the
    group with the closest hash (the lowest one that is left for test and calibration, the highest one for training).

    `test_fraction` is that of the groups, `calibration_fraction` that of the remaining ones, both in [0, 1); 0 leaves
    the split empty. Raises UserError if there are fewer groups than splits.
    """
    order = sorted((hash_to_unit(seed, group), group) for group in set(groups))
    hashes = [value for value, _ in order]
    has_test, has_calibration = test_fraction > 0, calibration_fraction > 0
    n_splits = 1 + has_test + has_calibration
    if len(order) < n_splits:
        raise UserError(
            f"The normal images belong to {len(order)} group(s), but {n_splits} splits need at "
            "least one group each, and a group (a patient, a camera block) is never divided. Add "
            "images of other groups, or correct metadata.csv if it joins unrelated images."
        )

    def count(limit: float, start: int, minimum: int, reserved: int) -> int:
        return min(max(bisect_left(hashes, limit) - start, minimum), len(order) - start - reserved)

    n_test = count(test_fraction, 0, has_test, 1 + has_calibration)
    limit = test_fraction + (1 - test_fraction) * calibration_fraction
    n_calibration = count(limit, n_test, has_calibration, 1)
    splits = [TEST] * n_test + [CALIBRATION] * n_calibration
    splits += [TRAIN] * (len(order) - len(splits))
    return {group: split for (_, group), split in zip(order, splits, strict=True)}


def split_records(
    records: list[ImageRecord], seed: int, test_fraction: float, calibration_fraction: float
) -> tuple[dict[str, list[ImageRecord]], tuple[str, ...]]:
    """Distributes images over the three splits.

    Normal images follow their group (`assign_groups`). If there is an official split, its test images stay test
    images, and calibration images are taken from its training images. Anomalous images are test images; they are
    excluded if their group has normal images in training or calibration. Normal images within BORDER_MARGIN camera
    numbers of a border between blocks of different splits are excluded too, because neighboring numbers often show
    the same object. Returns the images by split, and notes on what was excluded.

    Fractions are those of `assign_groups`; an official split replaces `test_fraction`. Raises UserError if there are
    too few groups, or a split that should have normal images has none.
    """
    divisible = {r.group for r in records if not r.label and r.official_split != TEST}
    if any(r.official_split for r in records):
        test_fraction = 0.0
    split_of = assign_groups(divisible, seed, test_fraction, calibration_fraction)

    def is_at_border(group: str, sequence: str, number: int) -> bool:
        blocks = (camera_block(sequence, number + d) for d in (-BORDER_MARGIN, BORDER_MARGIN))
        return any(split_of.get(block, split_of[group]) != split_of[group] for block in blocks)

    splits: dict[str, list[ImageRecord]] = {TRAIN: [], CALIBRATION: [], TEST: []}
    excluded = Counter()
    for r in records:
        split = split_of.get(r.group, TEST)
        if r.label and split != TEST:
            excluded["anomalous images whose group has normal images in training"] += 1
        elif not r.label and r.camera and is_at_border(r.group, *r.camera):
            excluded["normal images at borders between camera blocks of different splits"] += 1
        else:
            splits[split].append(r)
    fractions = {TRAIN: 1, CALIBRATION: calibration_fraction, TEST: test_fraction}
    n_normal = {name: sum(not r.label for r in chosen) for name, chosen in splits.items()}
    for name, fraction in fractions.items():
        if fraction > 0 and not n_normal[name]:
            raise UserError(
                f"No normal image is left for {name}: there are too few groups, or the fraction is "
                "too small. Add images or choose another config.data.split_seed."
            )
    notes = [f"{count} {what} excluded" for what, count in excluded.items()]
    totals = {TEST: sum(n_normal.values()), CALIBRATION: n_normal[TRAIN] + n_normal[CALIBRATION]}
    for name, total in totals.items():
        requested, n = fractions[name], n_normal[name]
        if requested and not requested / 2 <= n / total <= 2 * requested:
            notes.append(
                f"{n} of {total} normal images are {name} images, but {100 * requested:g} % were "
                "requested: chance assigns their groups. Another config.data.split_seed may help."
            )
    return splits, tuple(notes)
