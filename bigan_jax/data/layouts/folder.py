"""The layout of a user's own folder: normal images, and optionally anomalous ones and masks."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.files.medical import is_medical, stem
from bigan_jax.data.files.unreadable import UnreadableFile
from bigan_jax.data.layouts.grouping import apply_metadata, read_metadata, value_of_image
from bigan_jax.data.layouts.layout import MAX_LISTED, Layout, count_by_folder, has_normal_folder, unused_note
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
    fold,
    is_channel_folder,
    is_image_folder,
    known_label,
    split_channel,
    words,
)
from bigan_jax.data.records import ImageRecord, Listing
from bigan_jax.errors import UserError, printable

# Words in the heading of a column that may have labels.
_LABEL_COLUMNS = {"label", "labels", "target", "class", "diagnosis", "category", "healthy", "normal", "anomaly"}
_LABEL_COLUMNS |= {"anomalous", "defect", "defects"}

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
    label_of, notes = _labels(layout, folder, selection, images), ()
    if not any(label is False for label in label_of.values()):
        _require_all_normal(layout, folder, selection, images, masks, label_of)
        notes += (_all_normal_note(folder, images),)
        label_of = dict.fromkeys(images, False)
    elif not (selection.normal or selection.anomalous):
        _require_one_place(layout, folder, label_of)
    normal = sorted(path for path, label in label_of.items() if label is False)
    anomalous = sorted(path for path, label in label_of.items() if label)
    unused = [path for path, label in label_of.items() if label is None]
    _require_one_channel(folder, [*normal, *anomalous], masks)
    mask_of, mask_notes = find_masks(masks, anomalous)
    records = [ImageRecord(path, False, folder.group(path)) for path in normal]
    records += [
        ImageRecord(path, True, folder.group(path), 0, _defect_type(path, selection), mask_of[path])
        for path in anomalous
    ]
    unused_notes = unused_note(unused)
    if unused and not anomalous:
        names = ",".join(sorted({_specific_folder_name(path) for path in unused})[:3])
        unused_notes = (f"{unused_notes[0]}. If they are anomalous: --config.data.anomalous='{names}'",)
    listing = Listing(records, (), (*notes, *unused_notes, *mask_notes, *_volume_note(records)))
    if layout.reads_metadata:
        listing = apply_metadata(listing, folder, strict=layout.strict_metadata)
    return {"": listing}


def _labels(layout, folder, selection, images) -> dict[str, bool | None]:
    """Returns whether each image is anomalous; None if nothing says it."""
    table = read_metadata(folder, strict=layout.strict_metadata).values["label"] if layout.reads_metadata else {}
    value_of = {path: value_of_image(table, path) for path in images}
    if not any(value_of.values()):
        return {path: selection.label(path) for path in images}
    label_of, unknown = {}, Counter()
    for path, value in value_of.items():
        by_folder = Selection().label(path)
        label_of[path] = by_folder if value is None else selection.label(path, [value])
        if value is not None and label_of[path] is None and not selection.normal:
            unknown[value] += 1
        if value is not None and None not in (by_folder, label_of[path]) and by_folder != label_of[path]:
            raise UserError(
                f"{folder.root / path} has the label {printable(value)} in metadata.csv, which contradicts the name of "
                "its folder. Correct one of them."
            )
    if unknown:
        listed = ", ".join(f"{printable(value)} ({n} images)" for value, n in sorted(unknown.items()))
        remedy = _how_to_name([value for value, _ in unknown.most_common()])
        raise UserError(f"{folder.root}: the labels in metadata.csv are not known: {listed}. {remedy}")
    if unlabeled := [path for path in images if value_of[path] is None and label_of[path] is None]:
        raise UserError(
            f"{folder.root}: {len(unlabeled)} of {len(images)} images have no label in metadata.csv, such as "
            f"{printable(unlabeled[0])}. Give a label to all images, or remove the column."
        )
    return label_of


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
        depths = [i for i, name in enumerate(parts) if known_label(name) is not None]
        if label is not None and depths:
            places.add(parts[: depths[0]])
    if len(places) > 1 or (_is_mvtec(folder) and places != {()}):
        raise _ambiguous(layout, folder, [*label_of])


def _require_one_channel(folder, images, masks: Masks):
    """Raises UserError if cases have several channels, as nnU-Net names them: case_001_0000, case_001_0001.

    Numbers at the end may also count images. They are channels if a mask or the folder of the images says so.
    """
    channels_of = defaultdict(set)
    for path in images:
        parent, _, name = stem(path)[0].rpartition("/")
        base, channel = split_channel(name)
        if channel is None:
            return
        channels_of[parent, base].add(channel)
    several = {case: channels for case, channels in channels_of.items() if len(channels) > 1}
    masked = {key[-1] for keys in masks.keys.values() for key in keys}
    if not any(
        fold(base) in masked or any(map(is_channel_folder, PurePosixPath(parent).parts)) for parent, base in several
    ):
        return
    counts = Counter(channel for channels in channels_of.values() for channel in channels)
    listed = ", ".join(f"_{channel} ({n} files)" for channel, n in sorted(counts.items()))
    first = min(counts)
    labels = [name for name in ("normal", "anomalous") if name in folder.subfolders()]
    flags = " ".join(f"--config.data.{name}='{name}/*_{first}.*'" for name in labels)
    flags = flags or f"--config.data.normal='NORMAL/*_{first}.*' --config.data.anomalous='ANOMALOUS/*_{first}.*'"
    raise UserError(
        f"{folder.root} has several channels of one case: {listed}. A model sees one. Choose it by its number, such as "
        f"{flags}."
    )


def _require_all_normal(layout, folder, selection, images, masks: Masks, label_of):
    """Raises UserError unless all images are normal for certain: in one folder, no masks, no labels in their names."""
    if selection.normal:
        raise layout.error(
            f"{folder.root}: config.data.normal={selection.normal} matches no image. It has {count_by_folder(images)}."
        )
    if any(label_of.values()) or not layout.accepts_unlabeled or len({p.rpartition("/")[0] for p in images}) > 1:
        raise _ambiguous(layout, folder, images, masks)
    if masks.keys:
        raise layout.error(
            f"{folder.root} has no folders of normal and anomalous images.{_mask_sentence(images, masks)}"
        )
    if named := _labels_in_names(images):
        listed = ", ".join(f"{n} with {word!r}" for word, n in named.items())
        raise UserError(
            f"{folder.root} has no folder of normal images, and names of its files may be labels: {listed}, of "
            f"{len(images)} images. {_how_to_name_files(images, named)}"
        )
    if labeled_by := _label_file(folder, images):
        raise UserError(
            f"{folder.root} has no folder of normal images, and {labeled_by} may have labels. Write the labels into "
            "metadata.csv, with the columns file and label (normal or anomalous). If all images are normal: "
            "--config.data.normal='*'."
        )


def _labels_in_names(images) -> dict[str, int]:
    """Counts the words in file names that may be labels; {} unless one names anomalous images, or only some images."""
    counts = Counter(word for path in images for word in _words_of_file(path))
    uncertain = {word for pair in UNCERTAIN for word in pair if not word.isdigit()}
    if not any(word in ANOMALOUS or (word in NORMAL | uncertain and n < len(images)) for word, n in counts.items()):
        return {}
    return {word: n for word, n in sorted(counts.items()) if word in NORMAL | ANOMALOUS | uncertain}


def _words_of_file(path):
    return {*words(re.sub(r"(\d+)", r" \1 ", PurePosixPath(path).stem))}


def _how_to_name_files(images, named):
    """Returns how to say by patterns which files are normal."""
    normal_words = NORMAL | {word for word, _ in UNCERTAIN}

    def pattern(word: str) -> str:
        stems = [fold(PurePosixPath(path).stem) for path in images if word in _words_of_file(path)]
        if all(text.startswith(word) for text in stems):
            return f"{word}*"
        return f"*{word}.*" if all(text.endswith(word) for text in stems) else f"*{word}*"

    normal = ",".join(pattern(word) for word in named if word in normal_words) or "*"
    anomalous = ",".join(pattern(word) for word in named if word not in normal_words) or "*"
    return (
        f"Say by patterns which are normal, such as --config.data.normal='{normal}' "
        f"--config.data.anomalous='{anomalous}'. If all images are normal: --config.data.normal='*'."
    )


def _label_file(folder, images) -> str:
    """Returns a file that may have labels: a table with a column of that meaning, or annotations of single images."""
    stems = {PurePosixPath(path).with_suffix("").as_posix() for path in images}
    names = {PurePosixPath(stem).name for stem in stems}
    annotations = [f for f in folder.unread if PurePosixPath(f).suffix.lower() in (".xml", ".json", ".txt")]
    annotations = [f for f in annotations if PurePosixPath(f).stem in names]
    for table in (f for f in folder.unread if PurePosixPath(f).suffix.lower() in (".csv", ".tsv")):
        (content,) = folder.read([table], False)
        header = b"" if isinstance(content, UnreadableFile) else content[:10_000].partition(b"\n")[0]
        columns = re.split(r"[,;\t]", header.decode("utf-8-sig", "replace"))
        if named := [column.strip() for column in columns if not _LABEL_COLUMNS.isdisjoint(words(column))]:
            return f"the column {printable(named[0])!r} of {printable(table)}"
    if annotations:
        return f"{len(annotations)} files with the names of images, such as {printable(annotations[0])},"
    return ""


def _all_normal_note(folder, images):
    families = Counter(re.sub(r"\d+", "#", PurePosixPath(path).stem) for path in images)
    common = [(family, n) for family, n in families.most_common() if n > 1]
    listed = ", ".join(f"{printable(family)} ({n})" for family, n in common[:5])
    named = f"; their file names have {len(common)} patterns: {listed}" if 1 < len(common) < 20 else ""
    return f"{folder.root} has no folder normal/: all its images are used as normal images{named}"


def _ambiguous(layout, folder, images, masks: Masks | None = None) -> UserError:
    """Returns the error for folders whose labels are not certain."""
    names = [name for name, _ in Counter(map(_specific_folder_name, images)).most_common()]
    problem = (
        f"{folder.root} has no folder of normal images next to those of anomalous ones, and it is likely that not all "
        f"its images are normal. It has {count_by_folder(images)}."
    )
    if masks and masks.keys:
        problem += _mask_sentence(images, masks)
    problem += f"\n{_how_to_name(names)}"
    if _split_folders(folder, TRAINING) and _split_folders(folder, TESTING):
        problem += "\nIf these are official training and test images: use the source 'mvtec' (with config.data.normal)."
    return layout.error(problem)


def _mask_sentence(images, masks):
    return (
        f" It has {len(images)} images and {len(masks.keys)} masks, such as {printable(min(masks.keys))}. If the "
        "masks show which images are anomalous, sort the images into normal/ and anomalous/, or list them in "
        "metadata.csv with the columns file and label (normal or anomalous)."
    )


def _specific_folder_name(path) -> str:
    """Returns the name of the nearest folder that says more than "images"."""
    names = [p.name for p in PurePosixPath(path).parents if p.name and not is_image_folder(p.name)]
    return names[0] if names else PurePosixPath(path).parent.name or "."


def _split_folders(folder, known) -> set[str]:
    """Returns the folders in train/ or test/, whatever the case."""
    splits = [name for name in folder.subfolders() if canonical(name) in known]
    return {name for split in splits for name in folder.subfolders(split)}


def _is_mvtec(folder) -> bool:
    """Whether a folder has train/ with a folder of normal images, and test/ with folders."""
    is_normal = any(known_label(name) is False for name in _split_folders(folder, TRAINING))
    return is_normal and bool(_split_folders(folder, TESTING))


def _how_to_name(names: Sequence[str]) -> str:
    """Returns how to say which of several folders or labels are normal; most images should have the first of them."""
    uncertain = {word for word, _ in UNCERTAIN} | {"negatives", "free", "clean", "intact", "background", "regular"}

    def likelihood(name: str) -> tuple[bool, bool]:
        found = {canonical(name), *words(name)}
        is_normal = not found.isdisjoint(NORMAL) and found.isdisjoint({*ANOMALOUS, "not", "non", "no"})
        return is_normal or known_label(name) is False, not found.isdisjoint(uncertain)

    names = [name if name != "." else "*" for name in names]  # the images that are in no folder: all others
    first, *others = sorted(names, key=likelihood, reverse=True)
    first = ",".join([first, *(name for name in others if likelihood(first)[0] and likelihood(name)[0])])
    others = [name for name in others if name not in first.split(",")]
    quote = "'" if any(" " in name or name == "*" for name in names) else ""
    example = f", such as --config.data.normal={quote}{first}{quote}"
    example += f" --config.data.anomalous={quote}{','.join(others[:3])}{quote}" * bool(others)
    return (
        f"Say by names or patterns which are normal and which are anomalous{example * (len(names) <= MAX_LISTED)}. If "
        "all images are normal: --config.data.normal='*'."
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
