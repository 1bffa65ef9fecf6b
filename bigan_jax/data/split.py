"""The split into training, calibration and test images: exact counts, by the hashes of groups."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

from bigan_jax.data.records import ImageRecord
from bigan_jax.errors import UserError
from bigan_jax.metrics.thresholds import assign_folds

TRAIN, CALIBRATION, TEST = "train", "calibration", "test"
CAMERA_BLOCK = 100  # consecutive camera numbers that stay together
MIN_CALIBRATION = 20  # images; a false-alarm rate of 5 % can be promised from 19 on
BORDER_MARGIN = 5  # camera numbers excluded on each side of a border between two splits


class Fold(NamedTuple):
    """One of several folds of the normal images that are not test images; it calibrates and the others train."""

    index: int  # from 0
    count: int


def camera_block(sequence: str, number: int) -> str:
    """Returns the name of the block of camera numbers that contains `number`."""
    return f"{sequence} {number // CAMERA_BLOCK * CAMERA_BLOCK}"


def hash_to_unit(seed: int, group: str) -> float:
    """Returns a number in [0, 1) that depends on `seed` and `group` alone, on every machine."""
    digest = blake2b(f"{seed}/{group}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def count_test(normal: int, test_fraction: float) -> int:
    """Returns how many of all normal images should be test images."""
    return max(1, round(test_fraction * normal)) if test_fraction else 0


def count_calibration(remaining: int, calibration_fraction: float) -> int:
    """Returns how many of the normal images that are not test images should be calibration images.

    Whatever the fraction asks, at least MIN_CALIBRATION or a third of them, whichever is less: a threshold from very
    few images promises nothing.
    """
    if not calibration_fraction:
        return 0
    return max(1, round(calibration_fraction * remaining), min(MIN_CALIBRATION, remaining // 3))


def apportion(total: int, sizes: Mapping[int, int]) -> dict[int, int]:
    """Divides `total` in proportion to `sizes` by the largest remainder; the lowest key wins a tie."""
    whole = sum(sizes.values())
    parts = {key: divmod(total * size, whole) for key, size in sorted(sizes.items())}
    rest = total - sum(quotient for quotient, _ in parts.values())
    rounded_up = sorted(parts, key=lambda key: -parts[key][1])[:rest]
    return {key: quotient + (key in rounded_up) for key, (quotient, _) in parts.items()}


def assign_groups(
    images: Iterable[tuple[str, int]],
    seed: int,
    test_fraction: float,
    calibration_fraction: float,
    trained: Collection[str] = (),
    fold: Fold | None = None,
) -> dict[str, str]:
    """Assigns each group to a split, with exact counts of images as far as undivided groups allow.

    Test groups have the lowest hashes, calibration groups the next ones. With one order for both, an added image
    moves at most one image from training to them. (No rule that knows only the current images moves none: where an
    added image trains and a count grows, an older image has to move.) Calibration groups by a hash of their own would
    be moved by each change of the test split as well.

    Each condition has its share of either split. A group of several conditions counts for its most frequent one.

    Args:
      images: group and condition of each normal image, in any order.
      seed: of the hashes.
      test_fraction: of the images, in [0, 1); 0 leaves the split empty. See `count_test`.
      calibration_fraction: of the images that are not test images, the same. See `count_calibration`.
      trained: groups that stay in training, if each other split can have a group without them.
      fold: calibrates in place of the `calibration_fraction`.

    Raises:
      UserError: there are fewer groups than splits.
    """
    conditions_of: dict[str, Counter[int]] = defaultdict(Counter)
    for group, condition in images:
        conditions_of[group][condition] += 1
    sizes = {group: counts.total() for group, counts in conditions_of.items()}
    stratum = {group: min(counts, key=lambda c: (-counts[c], c)) for group, counts in conditions_of.items()}
    n_splits = 1 + (test_fraction > 0) + (calibration_fraction > 0)
    if len(sizes) < n_splits:
        raise UserError(
            f"The normal images belong to {len(sizes)} group(s), but {n_splits} splits need at least one group each, "
            "and a group (a patient, a camera block) is never divided. Add images of other groups. If these images "
            "show several things (such as patients whose identity was removed), list their groups in a metadata.csv "
            "next to them, with the columns file and group."
        )
    order = sorted(sizes, key=lambda group: (hash_to_unit(seed, group), group))
    split_of = dict.fromkeys(order, TRAIN)

    def fill(split: str, count: int, later: int) -> None:
        free = [group for group in order if split_of[group] == TRAIN]
        totals: Counter[int] = Counter()
        for group in free:
            totals[stratum[group]] += sizes[group]
        candidates = [group for group in free if group not in trained] or free
        strata: dict[int, list[str]] = defaultdict(list)
        for group in candidates:
            strata[stratum[group]].append(group)
        reserved = later + (len(candidates) == len(free))  # the trained groups are enough for training
        queues = [(share, strata[condition]) for condition, share in apportion(count, totals).items()]
        for group in _choose(queues, sizes, max(1, len(candidates) - reserved)) or candidates[:1]:
            split_of[group] = split

    if test_fraction:
        fill(TEST, count_test(sum(sizes.values()), test_fraction), later=int(calibration_fraction > 0))
    if fold:
        free = [group for group in order if split_of[group] == TRAIN]
        fold_of = zip(free, assign_folds(free, fold.count), strict=True)
        split_of |= {group: CALIBRATION for group, index in fold_of if index == fold.index}
    elif calibration_fraction:
        remaining = sum(sizes[group] for group in order if split_of[group] == TRAIN)
        fill(CALIBRATION, count_calibration(remaining, calibration_fraction), later=0)
    return split_of


def _choose(queues: Iterable[tuple[int, Sequence[str]]], sizes: Mapping[str, int], most: int) -> list[str]:
    """Returns at most `most` groups: those of each queue that bring the number of images closer to its share.

    What a queue misses or exceeds is made up for by the next ones, so that the total does not drift.
    """
    chosen, count, goal = [], 0, 0
    for share, groups in queues:
        goal += share
        for group in groups:
            if len(chosen) < most and sizes[group] < 2 * (goal - count):
                chosen.append(group)
                count += sizes[group]
    return chosen


def split_records(
    records: list[ImageRecord],
    seed: int,
    test_fraction: float,
    calibration_fraction: float,
    trained: Collection[str] = (),
    fold: Fold | None = None,
) -> tuple[dict[str, list[ImageRecord]], tuple[str, ...]]:
    """Distributes images over the three splits.

    Normal images follow their group (`assign_groups`). If there is an official split, its test images stay test
    images, and calibration images are taken from its training images. Anomalous images are test images; they are
    excluded if their group has normal images in training or calibration. Normal images within BORDER_MARGIN camera
    numbers of a border between blocks of different splits are excluded too, because neighboring numbers often show
    the same object. Counts are therefore exact before this exclusion. Returns the images by split, and notes on what
    was excluded and on counts that groups make impossible.

    Fractions and `fold` are those of `assign_groups`; an official split replaces `test_fraction`. `trained` has the
    paths of images that a run was trained on: their groups stay in training, whatever was added. Raises UserError if
    there are too few groups, or a split that should have normal images has none.
    """
    divisible = [(r.group, r.condition) for r in records if not r.label and r.official_split != TEST]
    if any(r.official_split for r in records):
        test_fraction = 0.0
    trained_groups = {r.group for r in records if r.path in trained}
    split_of = assign_groups(divisible, seed, test_fraction, calibration_fraction, trained_groups, fold)

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
    n_train, n_calibration, n_test = (sum(not r.label for r in chosen) for chosen in splits.values())
    if not n_train:
        raise _no_normal_images(TRAIN, "lower config.data.test_fraction or config.data.calibration_fraction")
    if test_fraction and not n_test:
        raise _no_normal_images(TEST, "raise config.data.test_fraction")
    if calibration_fraction and not n_calibration:
        raise _no_normal_images(CALIBRATION, "raise config.data.calibration_fraction")
    notes = [f"{count} {what} excluded" for what, count in excluded.items()]
    n = n_train + n_calibration
    counts = [] if fold else [(CALIBRATION, n_calibration, n, count_calibration(n, calibration_fraction))]
    if test_fraction:
        n += n_test
        counts.append((TEST, n_test, n, count_test(n, test_fraction)))
    reason = "groups (patients, camera blocks) are never divided"
    without_trained = assign_groups(divisible, seed, test_fraction, calibration_fraction, fold=fold)
    if split_of != without_trained:
        reason += ", and images that the run was trained on stay in training"
    for name, count, total, requested in counts:
        if abs(count - requested) > requested / 4:  # less is not worth a message
            notes.append(f"{count} of {total} normal images are {name} images instead of {requested}, because {reason}")
    return splits, tuple(notes)


def _no_normal_images(split: str, remedy: str) -> UserError:
    """Every split has a group, so that only the exclusion at borders can leave it without images."""
    return UserError(
        f"No normal image is left for {split}: all are within {BORDER_MARGIN} camera numbers of a block of another "
        f"split. Add images of other camera numbers, or {remedy}."
    )
