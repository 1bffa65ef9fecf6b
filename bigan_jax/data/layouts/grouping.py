"""Groups, conditions and labels of images from metadata.csv, and groups from camera numbers in file names."""

import csv
import io
import re
import unicodedata
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from bigan_jax.data.files.folders import METADATA, DataFolder
from bigan_jax.data.files.medical import split_slice
from bigan_jax.data.files.unreadable import UnreadableFile
from bigan_jax.data.records import ImageRecord, Listing
from bigan_jax.data.split import camera_block
from bigan_jax.errors import UserError, printable

_FILE = ("file", "file_name", "filename", "path", "image")
_COLUMNS = {"group": ("group", "patient"), "condition": ("condition", "plane"), "label": ("label", "target")}

# What published copies add to a name: a uuid in front, an augmentation at the end.
_PREFIX, _SUFFIX = re.compile(r"^.*___"), re.compile(r"_(new)?\d*deg\w*$|_flip\w*$", re.IGNORECASE)
_NUMBER = re.compile(r"^(.*?)(\d+)(\.\d+)?\D*$")
_MAX_NUMBER = 10**18  # prepared data store 64 bits; a longer number is not of a camera


def group_by_camera(record: ImageRecord) -> ImageRecord:
    """Assigns an image to its block of camera numbers; without a number it stays as it is.

    The number is the last one in the name (`JR_HL_5807`, `<uuid>___JR_HL 5807`). Numbers that follow the same words
    in one folder are a sequence.
    """
    path = PurePosixPath(record.path)
    match = _NUMBER.match(_SUFFIX.sub("", _PREFIX.sub("", path.stem)))
    if not match or (number := int(match[2])) >= _MAX_NUMBER:
        return record
    sequence = f"{path.parent.as_posix()}/{match[1].replace(' ', '_').rstrip('_')}"
    return record._replace(group=camera_block(sequence, number), camera=(sequence, number))


class Metadata(NamedTuple):
    """The content of all files metadata.csv of a folder."""

    values: dict[str, dict[str, str]]  # by column ("group", "condition", "label") and path in NFC
    files: list[tuple[str, list[str]]]  # each file that is used, with the paths that it lists
    notes: list[str]  # messages to the user


def read_metadata(folder: DataFolder, *, strict: bool) -> Metadata:
    """Reads all files metadata.csv. An invalid one is noted; if `strict`, it raises UserError.

    Raises UserError if a file gives an image two values of one column.
    """
    values, files, notes = {name: {} for name in _COLUMNS}, [], []
    for file in folder.metadata_files():
        try:
            rows = _read_rows(folder, file)
        except UserError as error:
            if strict:
                raise
            notes.append(f"not used: {error}")
            continue
        files.append((file, [path for path, _ in rows]))
        for path, row in rows:
            for name, value in row.items():
                if (first := values[name].setdefault(path, value)) != value:
                    problem = f"{_short(path)} has the {name}s {_short(first)} and {_short(value)}"
                    raise UserError(f"{folder.root / file}: {problem}. Give each image one {name}.")
    return Metadata(values, files, notes)


def apply_metadata(listing: Listing, folder: DataFolder, *, strict: bool) -> Listing:
    """Assigns the groups and conditions of metadata.csv.

    A file has a column `file`, a path relative to its folder, and one or more of `group` or `patient`, `condition` or
    `plane`, and `label` or `target` (which the layout uses). An image without a group keeps its own. If one image has a
    condition, all must have one; images of a condition without normal images are removed.

    Raises UserError if an image has two groups or conditions, or lacks a condition, if a file lists no image of the
    folder or, if `strict`, if a file is invalid. Otherwise it is ignored and noted.
    """
    values, files, notes = read_metadata(folder, strict=strict)
    for file, paths in files:
        listed = dict.fromkeys(paths, "listed")
        if paths and not any(value_of_image(listed, r.path) for r in listing.records):
            raise UserError(
                f"{folder.root / file} lists no image of the folder: it has {_short(paths[0])}, but the images have "
                f"paths such as {_short(listing.records[0].path)}. Give paths relative to the folder of {METADATA}."
            )
    records, conditions, skipped = listing.records, (), ()
    if files:
        records, n_ungrouped = _assign_groups(records, values["group"])
        if n_ungrouped and (values["group"] or not (values["condition"] or values["label"])):
            notes.append(f"{n_ungrouped} images have no group in {METADATA}: each is a group of its own")
    if values["condition"]:
        records, conditions, skipped = _assign_conditions(records, values["condition"], folder.root)
    return Listing(records, conditions, (*listing.notes, *notes), skipped)


def _assign_groups(records, group_of):
    # Slices of a volume and files of a patient stay together if only some of them are listed.
    merged = {r.group: group for r in records if (group := value_of_image(group_of, r.path))}
    grouped = [r._replace(group=value_of_image(group_of, r.path) or merged.get(r.group, r.group)) for r in records]
    return grouped, sum(r.group == r.path and r.group not in merged for r in records)


def _assign_conditions(records, condition_of, root):
    names: list[Any] = [value_of_image(condition_of, r.path) for r in records]
    if None in names:
        path = records[names.index(None)].path
        raise UserError(
            f"{root}: {names.count(None)} of {len(names)} images have no condition in {METADATA}, "
            f"such as {_short(path)}. Give a condition to all images or to none."
        )
    if with_comma := sorted(name for name in {*names} if "," in name):
        problem = "has a comma, but conditions are selected by a comma list. Rename it."
        raise UserError(f"{root}: the condition {_short(with_comma[0])} {problem}")
    pairs = list(zip(records, names, strict=True))
    conditions = tuple(sorted({name for r, name in pairs if not r.label}))
    kept = [r._replace(condition=conditions.index(n)) for r, n in pairs if n in conditions]
    return kept, conditions, tuple(sorted({*names}.difference(conditions)))


def value_of_image(value_of: Mapping[str, str], path: str) -> str | None:
    """Returns the value of an image, or of the volume that it is a slice of; paths are compared in NFC."""
    path = unicodedata.normalize("NFC", path)
    volume, _ = split_slice(path)
    return value_of.get(path) or value_of.get(volume)


def _read_rows(folder, file) -> list[tuple[str, dict[str, str]]]:
    """Returns paths in `folder`, each with its group and condition if it has them."""
    (content,) = folder.read([file], False)
    if isinstance(content, UnreadableFile):
        raise UserError(f"{folder.root / file} cannot be read ({content.reason}).")
    text, parent = content.decode("utf-8-sig", "replace"), file.removesuffix(METADATA)
    try:
        for separator in ",;\t":  # which one spreadsheets write depends on the country
            lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
            header = [name.strip().lower() for name in lines[0]] if lines else []
            known = [(name, title) for name, titles in _COLUMNS.items() for title in titles[::-1] if title in header]
            columns = {name: header.index(title) for name, title in known}  # the first title of a name wins
            file_column = next((header.index(title) for title in _FILE if title in header), None)
            if file_column is not None and columns:
                rows = []
                for line in lines[1:]:
                    cells = [cell.strip() for cell in (*line, *[""] * len(header))]
                    row = {name: cells[i] for name, i in columns.items() if cells[i]}
                    path = cells[file_column].replace("\\", "/").removeprefix("./")
                    # Tables are written in NFC; macOS, zip and rsync may have stored names in NFD.
                    rows += [(unicodedata.normalize("NFC", parent + path), row)] if row else []
                return rows
    except csv.Error as error:
        raise UserError(f"{folder.root / file} cannot be read ({error}).") from error
    columns = " or ".join(f"file and {title}" for titles in _COLUMNS.values() for title in titles)
    raise UserError(f"{folder.root / file} has no columns {columns}. Add them or remove the file.")


def _short(text, max_length=200):
    return printable(text if len(text) <= max_length else f"{text[:max_length]}...")
