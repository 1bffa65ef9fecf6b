"""Which pictures train, which calibrate, which test: decided by names and a seed alone."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b

from bigan_jax.data.records import ImageRecord
from bigan_jax.errors import UserError

TRAIN, CALIBRATION, TEST = "train", "calibration", "test"
BLOCK = 100  # consecutive camera numbers that stay together
MARGIN = 5  # camera numbers left out on each side of a border between two parts


def block(sequence: str, number: int) -> str:
    """The name of the block of camera numbers that `number` lies in."""
    return f"{sequence} {number // BLOCK * BLOCK}"


def uniform(seed: int, group: str) -> float:
    """A number in [0, 1) that depends on `seed` and `group` alone, on every machine."""
    digest = blake2b(f"{seed}/{group}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def assign_groups(
    groups: Iterable[str], seed: int, test_fraction: float, calibration_fraction: float
) -> dict[str, str]:
    """The part of each group: TEST for `test_fraction` of them, CALIBRATION for
    `calibration_fraction` of the others, TRAIN for the rest.

    A group's part does not depend on the other groups, but for one case: a part that would be
    empty gets the group whose hash lies closest to it (the lowest one that is left for test and
    calibration, the highest for training). A fraction of 0 means that the part is not wanted.

    Raises UserError for fractions outside [0, 1) and for fewer groups than parts.
    """
    for name, fraction in ("test", test_fraction), ("calibration", calibration_fraction):
        if not 0 <= fraction < 1:
            raise UserError(f"{name}_fraction is {fraction}: it must be at least 0 and below 1.")
    order = sorted((uniform(seed, group), group) for group in set(groups))
    hashes = [value for value, _ in order]
    tests, calibrates = test_fraction > 0, calibration_fraction > 0
    if len(order) < 1 + tests + calibrates:
        raise UserError(
            f"The normal pictures belong to {len(order)} group(s) only, and a group (a patient, a "
            f"camera block) is never divided: {1 + tests + calibrates} parts need as many groups. "
            "Add pictures of other groups, or mend metadata.csv where it names too much as one."
        )

    def count(limit: float, start: int, least: int, spare: int) -> int:
        return min(max(bisect_left(hashes, limit) - start, least), len(order) - start - spare)

    n_test = count(test_fraction, 0, tests, 1 + calibrates)
    border = test_fraction + (1 - test_fraction) * calibration_fraction
    n_calibration = count(border, n_test, calibrates, 1)
    parts = [TEST] * n_test + [CALIBRATION] * n_calibration
    parts += [TRAIN] * (len(order) - len(parts))
    return {group: part for (_, group), part in zip(order, parts, strict=True)}


def split(
    records: list[ImageRecord], seed: int, test_fraction: float, calibration_fraction: float
) -> tuple[dict[str, list[ImageRecord]], tuple[str, ...]]:
    """Deal `records` out to the three parts; returns them and notes on what was left out.

    Normal pictures go where their group goes (see `sides`); records with an official part keep
    it, and calibration is then a part of official training. Anomalous pictures are test only,
    and those of a group whose normal pictures train or calibrate are left out. So are pictures
    within MARGIN camera numbers of a border between two blocks that went to different parts:
    neighboring numbers often show the same thing.
    """
    divisible = {r.group for r in records if not r.label and r.official != TEST}
    official = any(r.official for r in records)
    side = assign_groups(divisible, seed, 0 if official else test_fraction, calibration_fraction)

    def at_border(r: ImageRecord) -> bool:
        sequence, number = r.camera
        near = (block(sequence, number - MARGIN), block(sequence, number + MARGIN))
        return any(side.get(b, side[r.group]) != side[r.group] for b in near)

    parts = {TRAIN: [], CALIBRATION: [], TEST: []}
    left_out = Counter()
    for r in records:
        part = side.get(r.group, TEST)
        if r.label and part != TEST:
            left_out["anomalous pictures whose group has normal pictures in training"] += 1
        elif not r.label and r.camera and at_border(r):
            left_out["normal pictures at borders between camera blocks of different parts"] += 1
        else:
            parts[part].append(r)
    test_wanted = test_fraction > 0 and not official
    wanted = {TRAIN: True, CALIBRATION: calibration_fraction > 0, TEST: test_wanted}
    for part, chosen in parts.items():
        if wanted[part] and not any(not r.label for r in chosen):
            raise UserError(
                f"No normal picture is left for {part}: too few groups, or a fraction too small. "
                "Add pictures or choose another split_seed."
            )
    notes = [f"{count} {what} left out" for what, count in left_out.items()]
    fractions = {TEST: test_fraction if test_wanted else 0, CALIBRATION: calibration_fraction}
    return parts, (*notes, *_uneven(parts, fractions))


def _uneven(parts, fractions):
    """Notes on parts that got less than half or more than twice the share that was asked for."""
    count = {part: sum(not r.label for r in chosen) for part, chosen in parts.items()}
    whole = {TEST: sum(count.values()), CALIBRATION: count[TRAIN] + count[CALIBRATION]}
    notes = []
    for part, verb in (TEST, "test"), (CALIBRATION, "calibrate"):
        asked, has, all_normals = fractions[part], count[part], whole[part]
        if asked and not asked / 2 <= has / all_normals <= 2 * asked:
            notes.append(
                f"{has} of {all_normals} normal pictures {verb}, where {100 * asked:g} % were "
                "asked for: chance deals out their groups; another config.data.split_seed may help"
            )
    return notes
