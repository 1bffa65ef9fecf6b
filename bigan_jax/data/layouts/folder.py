"""The layout of a user's own folder: normal images, and optionally anomalous ones and masks."""

import re
from collections import Counter
from collections.abc import Collection
from pathlib import PurePosixPath

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.files.medical import is_medical
from bigan_jax.data.layouts.grouping import apply_metadata, read_metadata, value_of_image
from bigan_jax.data.layouts.layout import Layout, count_by_folder, has_normal_folder, unused_note
from bigan_jax.data.layouts.masks import Masks, find_masks, split_masks
from bigan_jax.data.layouts.names import (
    ANOMALOUS,
    NORMAL,
    TESTING,
    TRAINING,
    UNCERTAIN,
    VALIDATION,
    Selection,
    canonical,
    words,
)
from bigan_jax.data.records import ImageRecord, Listing
from bigan_jax.errors import UserError, printable

EXPECTED = """\
  dir/*.png                    normal images only, or
  dir/normal/                  normal images (or good/, ok/, healthy/)
  dir/anomalous/[<type>/]      anomalous images, optional (or defect/, bad/, nok/, diseased/)
  dir/masks/[<type>/]          their masks, optional: the same name, or <name>_mask
  dir/metadata.csv             optional; columns file and group (such as views of one part or
                               images of one patient), condition (what an image shows), label
Folders of other names: --config.data.normal=NAME --config.data.anomalous=NAME"""


def list_label_folders(layout: Layout, folder: DataFolder, selection: Selection) -> dict[str, Listing]:
    """Lists images whose folders say what is normal and what is anomalous (`Selection.label`).

    A column `label` of metadata.csv may say it too. If the layout accepts it, the images of a single folder without
    labels are listed as normal images.

    Raises:
      UserError: there are no normal images, labels contradict each other, or it is not certain that all images are
        normal. The message lists the folders with their counts.
    """
    images, masks = split_masks(folder)
    label_of, notes = _labels(layout, folder, selection, images)
    if not any(label is False for label in label_of.values()):
        _require_all_normal(layout, folder, selection, images, masks, label_of)
        notes += (_all_normal_note(folder, images),)
        label_of = dict.fromkeys(images, False)
    elif not (selection.normal or selection.anomalous):
        _require_one_place(layout, folder, label_of)
    normal = sorted(path for path, label in label_of.items() if label is False)
    anomalous = sorted(path for path, label in label_of.items() if label)
    unused = [path for path, label in label_of.items() if label is None]
    mask_of, mask_notes = find_masks(masks, anomalous)
    records = [ImageRecord(path, False, folder.group(path)) for path in normal]
    records += [
        ImageRecord(path, True, folder.group(path), 0, _defect_type(path, selection), mask_of[path])
        for path in anomalous
    ]
    unused_notes = [
        f"{note}. If they are anomalous: --config.data.anomalous=NAME" if not anomalous else note
        for note in unused_note(unused)
    ]
    listing = Listing(records, (), (*notes, *unused_notes, *mask_notes, *_volume_note(records)))
    if layout.reads_metadata:
        listing = apply_metadata(listing, folder, strict=layout.strict_metadata)
    return {"": listing}


def _labels(layout, folder, selection, images) -> tuple[dict[str, bool | None], tuple[str, ...]]:
    """Returns whether each image is anomalous; None if nothing says it."""
    table = read_metadata(folder, strict=layout.strict_metadata).values["label"] if layout.reads_metadata else {}
    value_of = {path: value_of_image(table, path) for path in images}
    if not any(value_of.values()):
        return {path: selection.label(path) for path in images}, ()
    label_of, unknown = {}, Counter()
    for path, value in value_of.items():
        by_folder = Selection().label(path)
        label_of[path] = by_folder if value is None else selection.label(path, [value])
        if value is not None and label_of[path] is None and not selection.normal:
            unknown[value] += 1
        if None not in (by_folder, label_of[path]) and by_folder != label_of[path]:
            raise UserError(
                f"{folder.root / path} has the label {printable(value)} in metadata.csv, which contradicts the name of "
                "its folder. Correct one of them."
            )
    if unknown:
        listed = ", ".join(f"{printable(value)} ({n} images)" for value, n in sorted(unknown.items()))
        raise UserError(
            f"{folder.root}: the labels in metadata.csv are not known: {listed}. {_how_to_name(sorted(unknown))}"
        )
    if unlabeled := [path for path in images if value_of[path] is None and label_of[path] is None]:
        raise UserError(
            f"{folder.root}: {len(unlabeled)} of {len(images)} images have no label in metadata.csv, such as "
            f"{printable(unlabeled[0])}. Give a label to all images, or remove the column."
        )
    return label_of, ()


def _defect_type(path, selection):
    """Returns the folders of an image below the one that says that it is anomalous, or else that folder."""
    parents = PurePosixPath(path).parts[:-1]
    for depth in range(1, len(parents)):
        if selection.label("/".join(parents[:depth])):
            return "/".join(parents[depth:])
    return "/".join(parents[-1:]) or "anomalous"


def _require_one_place(layout, folder, label_of):
    """Raises UserError if folders of several places have labels: it is not certain that they are one dataset."""
    places = set()
    for path, label in label_of.items():
        parts = PurePosixPath(path).parts[:-1]
        depths = [i for i, name in enumerate(parts) if canonical(name) in NORMAL | ANOMALOUS]
        if label is not None and depths:
            places.add(parts[: depths[0]])
    if len(places) > 1 or (_mvtec_splits(folder) and places != {()}):
        raise _ambiguous(layout, folder, [*label_of])


def _require_all_normal(layout, folder, selection, images, masks: Masks, label_of):
    """Raises UserError unless all images are normal for certain: in one folder, no masks, no labels in their names."""
    if selection.normal:
        raise layout.error(
            f"{folder.root}: config.data.normal={selection.normal} matches no image. It has {count_by_folder(images)}."
        )
    if any(label_of.values()) or not layout.accepts_unlabeled or len({p.rpartition("/")[0] for p in images}) > 1:
        raise _ambiguous(layout, folder, images)
    if masks.keys:
        raise layout.error(
            f"{folder.root} has {len(images)} images and {len(masks.keys)} masks, such as "
            f"{printable(min(masks.keys))}, but no folders of normal and anomalous images. Sort the images into normal/ and anomalous/, or list them "
            "in metadata.csv with the columns file and label (normal or anomalous)."
        )
    if named := _labels_in_names(images):
        raise UserError(
            f"{folder.root} has no folder of normal images, but the names of its files suggest labels: "
            f"{', '.join(f'{n} with {word!r}' for word, n in named.items())}, of {len(images)} images. "
            + _how_to_name([f"*{word}*" for word in named])
        )


def _labels_in_names(images) -> dict[str, int]:
    """Counts the words in file names that may be labels of some of the images; {} if there are none."""
    words_of = [{*words(re.sub(r"(\d+)", r" \1 ", PurePosixPath(path).stem))} for path in images]
    counts = Counter(word for found in words_of for word in found)
    anomalous = [word for word in counts if word in ANOMALOUS]
    partial = [word for word in counts if word in NORMAL and counts[word] < len(images)]
    pairs = [
        pair
        for pair in UNCERTAIN
        if not pair[0].isdigit() and all(counts[word] for word in pair)
        if all(len(found.intersection(pair)) == 1 for found in words_of)
    ]
    found = [*anomalous, *partial, *(word for pair in pairs for word in pair)]
    if anomalous or partial:
        found += [word for word in counts if word in NORMAL and word not in found]
    return {word: counts[word] for word in sorted({*found})}


def _all_normal_note(folder, images):
    families = Counter(re.sub(r"\d+", "#", PurePosixPath(path).stem) for path in images)
    common = [(family, n) for family, n in families.most_common() if n > 1]
    listed = ", ".join(f"{printable(family)} ({n})" for family, n in common[:5])
    named = f"; their file names have {len(common)} patterns: {listed}" if 1 < len(common) < 20 else ""
    return f"{folder.root} has no folder normal/: all its images are used as normal images{named}"


def _ambiguous(layout, folder, images) -> UserError:
    """Returns the error for folders whose labels are not certain."""
    names = sorted({PurePosixPath(path).parent.name or "." for path in images})
    problem = (
        f"{folder.root} has no folder of normal images next to those of anomalous ones, and it is likely that not all "
        f"its images are normal. It has {count_by_folder(images)}.\n{_how_to_name(names)}"
    )
    if _mvtec_splits(folder):
        problem += "\nIf these are official training and test images: use the source 'mvtec'."
    return layout.error(problem)


def _mvtec_splits(folder) -> bool:
    """Whether a folder has train/ with a folder of normal images, and test/."""
    names = folder.subfolders()
    has_test = any(canonical(name) in TESTING for name in names)
    trains = [name for name in names if canonical(name) in TRAINING]
    return has_test and any(canonical(name) in NORMAL for train in trains for name in folder.subfolders(train))


def _how_to_name(names: Collection[str]) -> str:
    """Returns how to say which of several names or patterns are normal."""
    uncertain = {word for word, _ in UNCERTAIN} | {"negatives", "free", "clean", "intact", "background", "regular"}

    def likelihood(name: str) -> tuple[bool, bool]:
        found = {canonical(name), *words(name)}
        return not found.isdisjoint(NORMAL), not found.isdisjoint(uncertain)

    first, *others = sorted(names, key=likelihood, reverse=True)
    quote = "'" if any("*" in name or " " in name for name in names) else ""
    example = f"--config.data.normal={quote}{first}{quote}"
    example += f" --config.data.anomalous={quote}{','.join(others[:3])}{quote}" * bool(others)
    return (
        f"Say by names or patterns which are normal and which are anomalous, such as {example}. If all images are "
        "normal: --config.data.normal='*'."
    )


def _volume_note(records) -> tuple[str, ...]:
    """Returns the note on volumes that are anomalous in some slices, but nobody knows in which."""
    counts = Counter(r.group for r in records if r.label and not r.mask and is_medical(r.path))
    volumes = [n for n in counts.values() if n > 1]
    if not volumes:
        return ()
    return (
        f"{len(volumes)} anomalous volumes or patients have no masks: all their {sum(volumes)} slices count as "
        "anomalous, although some may not show the anomaly. Compare scores per volume, or add masks",
    )


def _is_root(path, folders):
    # A folder train or test with good/ in it is a part of MVTec's layout.
    is_split = canonical(PurePosixPath(path).name) in TRAINING | TESTING | VALIDATION
    return not is_split and has_normal_folder(path, folders)


LAYOUT = Layout(
    name="folder",
    expected=EXPECTED,
    builder="image_folder",
    description="A user's folder: normal images, and anomalous ones if there are any.",
    is_root=_is_root,
    list_datasets=list_label_folders,
    reads_metadata=True,
    accepts_unlabeled=True,
    labels_at_any_depth=True,
)
