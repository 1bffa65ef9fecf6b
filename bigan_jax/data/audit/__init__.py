"""The leak audit: what would make a test look better than the detector is.

It may look at test labels, because all it decides by them is whether to warn. Its one action,
leaving out a copy that would train or calibrate, goes by the pixels alone.
"""

import numpy as np

from bigan_jax.data.audit import checks
from bigan_jax.data.audit.duplicates import (
    Pairs,
    exact_duplicates,
    file_number_neighbors,
    near_duplicates,
    signatures,
)
from bigan_jax.data.audit.fingerprints import fingerprint, headers, rarity
from bigan_jax.data.audit.result import LEFT_OUT, SPLITS, AllImages, Audit, AuditImage, Duplicate
from bigan_jax.data.audit.shortcuts import neighbor_similarity, shortcut_aurocs, significant
from bigan_jax.data.dataset import Dataset
from bigan_jax.errors import UserError, printable, unknown_name

__all__ = ["POLICIES", "Audit", "audit", "check_policy", "settle"]

POLICIES = ("stop", "drop", "drop_near", "keep")
LABELS = ("normal", "anomalous")
LISTED = 200  # pairs in audit.json
SHOWN = 24  # pairs in the report
NAMED = 20  # pairs in an error


def validate_policy(policy: str) -> None:
    """Raises UserError for what is not one of POLICIES."""
    if policy not in POLICIES:
        raise unknown_name("config.data.duplicates", policy, POLICIES)


def audit(dataset: Dataset, policy: str = "stop") -> Audit:
    """Looks for copies, groups and neighbors across parts, and for facts that tell the label.

    dataset: the images of a part are read in blocks of rows, so they may be decoded on demand.
    policy: what `settle` will do, one of POLICIES: "stop" at exact copies across parts, "drop"
      those that train or calibrate, "drop_near" also their near copies, "keep" everything.
    Raises UserError for a policy that there is not.
    """
    validate_policy(policy)
    parts = [getattr(dataset, name) for name in SPLITS]
    sizes = [len(part.path) for part in parts]
    every = AllImages(
        np.repeat(SPLITS, sizes),
        np.concatenate([np.arange(size) for size in sizes]),
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in AllImages._fields[2:]
        ),
    )
    looks = [fingerprint(part) for part in parts]
    digest, thumbnail = (
        np.concatenate([getattr(seen, name) for seen in looks]) for name in ("digest", "thumbnail")
    )
    signature = signatures(thumbnail, every.condition, every.part == "train")
    exact, near = exact_duplicates(digest, every.part), near_duplicates(signature)
    near = near.where(digest[near.first] != digest[near.second])
    neighbors = file_number_neighbors(every.path.tolist())
    alike = neighbor_similarity(signature, neighbors, 2 * every.condition + every.label)

    trivial = looks[0].facts | _of_files(dataset.open, every)
    test = dataset.test
    aurocs = shortcut_aurocs(trivial, test.label, test.group, test.condition)

    dropping = {"drop": [exact], "drop_near": [exact, near]}.get(policy, [])
    later = [checks.in_later_part(pairs, every) for pairs in dropping]
    nothing = np.zeros(0, int)
    left_out = {
        part: np.unique(np.concatenate([nothing, *(rows[part] for rows in later)]))
        for part in SPLITS
    }
    lines = [
        checks.copies_across("exact", exact, every, ("drop", "drop_near"), policy),
        checks.copies_across("near", near, every, ("drop_near",), policy),
        checks.copies_within(exact, near, every),
        checks.contradictions(exact, near, every),
        checks.groups_across(every),
        checks.neighbors_across(neighbors, alike, every),
        checks.facts(aurocs, significant(aurocs, test.label)),
        *checks.conditions(dataset),
    ]
    return Audit(
        policy=policy,
        balance=checks.class_balance(dataset),
        findings=[line._replace(found=printable(line.found)) for line in lines],
        facts=aurocs,
        copies=_listed(exact, near, every, dataset),
        exact=checks.in_later_part(exact, every),
        left_out=left_out,
        split=_split(every, digest, left_out, dataset.conditions),
    )


def drop_duplicates(dataset: Dataset, found: Audit) -> Dataset:
    """The dataset without what the audit's policy leaves out, and a note that says so.

    Raises UserError for the policy "stop" where pictures of two parts have the same pixels, and
    when a part would be left with nothing.
    """
    if found.policy == "stop" and any(map(len, found.exact.values())):
        raise UserError(_stopped(found))
    notes, parts = dataset.notes, {}
    for name, rows in found.left_out.items():
        if not len(rows):
            continue
        pictures = getattr(dataset, name)
        if len(rows) == len(pictures.path):
            raise UserError(
                f"config.data.duplicates={found.policy}: every picture of {name} has a copy in a "
                "later part, and none would be left. Mend the folder, or choose keep."
            )
        parts[name] = pictures.select(np.setdiff1d(np.arange(len(pictures.path)), rows))
        notes += (f"{len(rows)} pictures left out of {name}: they have copies in another part",)
    return dataset._replace(notes=notes, **parts)


def _of_files(opened, every):
    """What the files of the test pictures tell, as numbers."""
    known = headers(opened, every.path) if opened else {}
    if known:
        known["encoding"] = rarity(known["encoding"], known["encoding"][every.part == "train"])
    return {name: values[every.part == "test"] for name, values in known.items()}


def _split(every, digest, left_out, conditions):
    """The rows of split.csv."""
    gone = {(part, row) for part, rows in left_out.items() for row in rows.tolist()}
    return [
        (path, LABELS[label], group, conditions[c], LEFT_OUT if (part, row) in gone else part, d)
        for part, row, path, label, group, c, d in zip(
            *(f.tolist() for f in (*every, digest)), strict=True
        )
    ]


def _listed(exact: Pairs, near: Pairs, every: AllImages, dataset: Dataset) -> list[Duplicate]:
    """The pairs in two parts first, of these and of the others the nearest first."""
    first, second, distance = map(np.concatenate, zip(exact, near, strict=True))
    within = every.part[first] == every.part[second]
    order = np.lexsort((distance, within))[:LISTED]

    def picture(i: int, shown: bool) -> AuditImage:
        image = getattr(dataset, every.part[i]).image
        return AuditImage(
            str(every.part[i]),
            str(every.path[i]),
            LABELS[int(every.label[i])],
            np.asarray(image[every.row[i : i + 1]])[0] if shown else None,
        )

    return [
        Duplicate(
            picture(first[pair], place < SHOWN),
            picture(second[pair], place < SHOWN),
            float(distance[pair]),
        )
        for place, pair in enumerate(order)
    ]


def _stopped(found: Audit) -> str:
    count = sum(map(len, found.exact.values()))
    pairs = [c for c in found.copies if not c.distance and c.first.part != c.second.part]
    named = [
        f"  {c.second.part} {printable(c.second.path)} = {c.first.part} {printable(c.first.path)}"
        for c in pairs[:NAMED]
    ]
    more = [f"  and {count - len(named)} more"] * (count > len(named))
    return "\n".join(
        [
            f"{count} pictures that would train or calibrate have, pixel for pixel, a copy in "
            "another part:",
            *named,
            *more,
            "--config.data.duplicates=drop leaves them out; keep takes them all the same.",
        ]
    )
