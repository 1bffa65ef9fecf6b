"""Each line of the audit: what was counted, when that is alarming and what it means."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from bigan_jax.data.audit.duplicates import Pairs
from bigan_jax.data.audit.result import SPLITS, AllImages, Finding
from bigan_jax.data.dataset import Dataset

# How far neighboring numbers look alike (facts.likeness) when they mean nothing: 0.50 on the
# phantom, 0.55 on bottle; when they are views of one leaf 0.77, slices of one head 0.999.
ALIKE = 0.7


def across(pairs: Pairs, every: AllImages) -> Pairs:
    """The pairs that lie in two parts."""
    return pairs.where(every.part[pairs.first] != every.part[pairs.second])


def in_later_part(pairs: Pairs, every: AllImages) -> dict[str, Int[np.ndarray, "k"]]:
    """By part: the rows that have a copy in an earlier part."""
    rows = np.unique(across(pairs, every).second)
    return {part: every.row[rows[every.part[rows] == part]] for part in SPLITS}


def copies_across(
    kind: str, pairs: Pairs, every: AllImages, policies: tuple[str, ...], policy: str
) -> Finding:
    """Copies in two parts. policies: those that leave them out, the mildest first."""
    check = f"{kind} copies across parts"
    pairs = across(pairs, every)
    if not len(pairs.first):
        return Finding(check, "none")
    tested = len(np.unique(pairs.first[every.part[pairs.first] == "test"]))
    later = len(np.unique(pairs.second))
    found = (
        f"{tested} of {np.count_nonzero(every.part == 'test')} test pictures; "
        f"{later} that train or calibrate ({_count(len(pairs.first), 'pair')})"
    )
    if policy in policies:
        return Finding(check, f"{found}, left out")
    harm = (
        "The detector has seen what it is tested on, so that the result is too good."
        if tested
        else "The threshold comes from pictures that the detector has seen, so that it is too low."
    )
    return Finding(
        check,
        found,
        f"{harm} --config.data.duplicates={policies[0]} leaves those out that train or calibrate.",
    )


def copies_within(exact: Pairs, near: Pairs, every: AllImages) -> Finding:
    """Copies in one part: they count twice, and an interval may not know."""
    counts = []
    for part in SPLITS[::-1]:
        own = every.part == part
        pairs = [p.where(own[p.first] & own[p.second]) for p in (exact, near)]
        rows = np.unique(np.concatenate([row for p in pairs for row in p[:2]]))
        counts += [f"{part} {_count(len(rows), 'picture')}"] * (len(rows) > 0)
    return Finding("copies within a part", ", ".join(counts) or "none")


def contradictions(exact: Pairs, near: Pairs, every: AllImages) -> Finding:
    """Copies of which one is normal and the other anomalous."""
    check = "copies with both labels"
    count = sum(
        np.count_nonzero(every.label[p.first] != every.label[p.second]) for p in (exact, near)
    )
    if not count:
        return Finding(check, "none")
    return Finding(
        check,
        _count(count, "pair"),
        "One picture, or nearly, is called normal and anomalous: look at the pairs in the report.",
    )


def groups_across(every: AllImages) -> Finding:
    """Patients, camera blocks and the like that are in more than one part."""
    check = "groups across parts"
    parts_of = {}
    for group, part in zip(every.group.tolist(), every.part.tolist(), strict=True):
        parts_of.setdefault(group, set()).add(part)
    shared = sorted(group for group, parts in parts_of.items() if len(parts) > 1)
    if len(parts_of) == len(every.path):
        return Finding(check, "none known: every picture is a group of its own")
    if not shared:
        return Finding(check, f"none of {len(parts_of)}")
    return Finding(
        check,
        f"{len(shared)} of {len(parts_of)}: {', '.join(shared[:3])}{' ...' * (len(shared) > 3)}",
        "Pictures of one group (a patient, a camera block) are alike: split by group.",
    )


def neighbors_across(pairs: Pairs, alike: float | None, every: AllImages) -> Finding:
    """Files with neighboring numbers in two parts, where such files look alike."""
    check = "neighboring file numbers"
    if alike is None:
        return Finding(check, "too few to tell")
    apart = len(across(pairs, every).first)
    look = (
        f"look alike (AUROC {alike:.3f})" if alike >= ALIKE else f"say little (AUROC {alike:.3f})"
    )
    found = f"{_count(len(pairs.first), 'pair')} {look}, {apart or 'none'} across parts"
    if alike < ALIKE or not apart:
        return Finding(check, found)
    return Finding(
        check,
        found,
        "They may show one thing twice, once in training and once in the test: name what belongs "
        "together in metadata.csv and train in a new --workdir (the sources folder and brain), or "
        "split by blocks of camera numbers (the source plant).",
    )


def facts(aurocs: Mapping[str, float], telling: Mapping[str, float]) -> Finding:
    """Facts that have nothing to do with a defect and tell the label."""
    check = "trivial facts that tell the label"
    if not aurocs:
        return Finding(check, "the test has one class only")
    if not telling:
        name, best = next(iter(aurocs.items()))
        return Finding(check, f"none; the best is {name}, AUROC {best:.3f}")
    named = [f"{name} {value:.3f}" for name, value in telling.items()]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return Finding(
        check,
        ", ".join(named[:3]) + more,
        "Normal and anomalous pictures differ in more than the defect (source, light, framing): a "
        "good result may come from that. Compare it with the controls.",
    )


def conditions(dataset: Dataset) -> list[Finding]:
    """Conditions that are tested and not trained, or tested with one class only."""
    found, names = [], dataset.conditions
    test, train = dataset.test, dataset.train
    normal, anomalous = (
        np.bincount(test.condition[test.label == kind], minlength=len(names)) > 0
        for kind in (False, True)
    )
    trained = np.bincount(train.condition, minlength=len(names)) > 0
    untrained, one_sided = (normal | anomalous) & ~trained, normal != anomalous
    if untrained.any():
        found.append(
            Finding(
                "conditions without training",
                ", ".join(np.array(names)[untrained]),
                "Nothing of this kind was trained on, so all of it may look anomalous.",
            )
        )
    if one_sided.any() and len(names) > 1:
        found.append(
            Finding(
                "conditions with one class",
                ", ".join(np.array(names)[one_sided]),
                "In the test these are all normal or all anomalous: the condition tells the label.",
            )
        )
    return found


def class_balance(dataset: Dataset) -> list[dict]:
    """Of each part and condition the number of normal and of anomalous pictures."""
    return [
        {
            "part": part,
            "condition": name,
            "normal": int(np.count_nonzero(own & ~pictures.label)),
            "anomalous": int(np.count_nonzero(own & pictures.label)),
        }
        for part in SPLITS[::-1]
        for pictures in [getattr(dataset, part)]
        for index, name in enumerate(dataset.conditions)
        for own in [pictures.condition == index]
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
