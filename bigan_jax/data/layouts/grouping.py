"""Pictures that show one thing, and are never divided between training and test: by a table or by
camera numbers. The table may tell what a picture shows as well."""

import csv
import io
import re
from pathlib import PurePosixPath
from typing import NamedTuple

from bigan_jax.data.files.folders import METADATA, DataFolder
from bigan_jax.data.files.medical import split_slice
from bigan_jax.data.files.unreadable import UnreadableFile
from bigan_jax.data.records import ImageRecord
from bigan_jax.data.split import block
from bigan_jax.errors import UserError, printable

GROUPED = ("brain", "folder")  # the sources that read metadata.csv
_COLUMNS = {"group": ("group", "patient"), "condition": ("condition", "plane")}

# What published copies add to a name: the uuid before it, an augmentation after it.
_BEFORE, _AFTER = re.compile(r"^.*___"), re.compile(r"_(new)?\d*deg\w*$|_flip\w*$", re.IGNORECASE)
_NUMBER = re.compile(r"^(.*?)(\d+)(\.\d+)?\D*$")
_MOST = 10**18  # prepared sets keep numbers of 64 bits; what is longer is no camera's


def group_by_camera(record: ImageRecord) -> ImageRecord:
    """Group a plant's picture with its block of camera numbers, where its name has a number.

    The number is the last in the name (`JR_HL_5807`, `<uuid>___JR_HL 5807`); numbers of one
    folder that follow the same words are one sequence.
    """
    path = PurePosixPath(record.path)
    name = _AFTER.sub("", _BEFORE.sub("", path.stem))
    if not (match := _NUMBER.match(name)):
        return record
    sequence = f"{path.parent.as_posix()}/{match[1].replace(' ', '_').rstrip('_')}"
    number = int(match[2])
    if number >= _MOST:
        return record
    return record._replace(group=block(sequence, number), camera=(sequence, number))


class Metadata(NamedTuple):
    """What tables say of records."""

    records: list[ImageRecord]
    conditions: tuple[str, ...]  # () where they tell none
    left_out: tuple[str, ...]  # conditions without normal pictures, whose records are gone
    notes: tuple[str, ...]


def apply_metadata(records: list[ImageRecord], folder: DataFolder, source: str) -> Metadata:
    """Records by what tables named metadata.csv say: their groups, and the conditions they show.

    A table has a column `file`, a path from where it lies, and `group` or `patient`, `condition` or
    `plane`, or both. A picture that it gives no group keeps the one that it has; where it gives one
    a condition, it has to give all. What is no such table is an error of the source brain, whose
    pictures have patients; somebody's own may lie beside any, and a note says so.

    Raises UserError for a picture in two groups or conditions, for one that lacks a condition, and
    for a table that names no picture.
    """
    told, used, notes = {what: {} for what in _COLUMNS}, False, []
    for table in folder.metadata_files():
        try:
            rows = _read(folder, table)
        except UserError as error:
            if source == "brain":
                raise
            notes.append(f"not used: {error}")
            continue
        used = True
        for path, facts in rows:
            for what, value in facts.items():
                if told[what].setdefault(path, value) != value:
                    both = " and of ".join(map(_named, (told[what][path], value)))
                    raise UserError(
                        f"{folder.root / table}: {_named(path)} is of {both}. A picture has one "
                        f"{what}."
                    )
        if rows and not any(_told(dict(rows), r.path) for r in records):
            raise UserError(
                f"{folder.root / table} names no picture: it has {_named(rows[0][0])}, and they "
                f"are called as {_named(records[0].path)}. A path begins where the table lies."
            )
    if not used:
        return Metadata(records, (), (), tuple(notes))
    records, alone = _grouped(records, told["group"])
    if alone and (told["group"] or not told["condition"]):
        notes.append(f"{alone} pictures have no group in {METADATA}: each is taken as its own")
    return Metadata(*_conditioned(records, told["condition"], folder.root), tuple(notes))


def _grouped(records, named):
    # Slices of a volume and files of a patient stay together, though only some are named.
    whole = {r.group: group for r in records if (group := _told(named, r.path))}
    grouped = [
        r._replace(group=_told(named, r.path) or whole.get(r.group, r.group)) for r in records
    ]
    return grouped, sum(r.group == r.path and r.group not in whole for r in records)


def _conditioned(records, named, root):
    if not named:
        return records, (), ()
    shown = [_told(named, r.path) for r in records]
    if None in shown:
        lacking = records[shown.index(None)].path
        raise UserError(
            f"{root}: {shown.count(None)} of {len(shown)} pictures have no condition in "
            f"{METADATA}, such as {_named(lacking)}, and others have one. Give it to all or to none"
        )
    if odd := sorted(name for name in {*shown} if "," in name):
        raise UserError(f"{root}: a condition is chosen from a comma list: rename {_named(odd[0])}")
    every = list(zip(records, shown, strict=True))
    conditions = tuple(sorted({name for r, name in every if not r.label}))
    kept = [r._replace(condition=conditions.index(n)) for r, n in every if n in conditions]
    return kept, conditions, tuple(sorted({*shown}.difference(conditions)))


def _told(named, path):
    volume, _ = split_slice(path)
    return named.get(path) or named.get(volume)


def _read(folder: DataFolder, table: str) -> list[tuple[str, dict[str, str]]]:
    """Files, by their path in `folder`, with the group and the condition of each, where they have
    one. Raises UserError where it cannot be had."""
    (content,) = folder.read([table], False)
    if isinstance(content, UnreadableFile):
        raise UserError(f"{folder.root / table} cannot be read ({content.reason})")
    text, here = content.decode("utf-8-sig", "replace"), table.removesuffix(METADATA)
    try:
        for separator in ",;\t":  # spreadsheets write what their country does
            lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
            header = [name.strip().lower() for name in lines[0]] if lines else []
            columns = {
                what: header.index(known[0])
                for what, names in _COLUMNS.items()
                if (known := [name for name in names if name in header])
            }
            if "file" in header and columns:
                place, rows = header.index("file"), []
                for line in lines[1:]:
                    cells = [cell.strip() for cell in (*line, *[""] * len(header))]
                    facts = {what: cells[at] for what, at in columns.items() if cells[at]}
                    rows += [(here + _plain(cells[place]), facts)] if facts else []
                return rows
    except csv.Error as error:
        raise UserError(f"{folder.root / table} cannot be read ({error})") from error
    wanted = " or ".join(f"file and {name}" for names in _COLUMNS.values() for name in names)
    raise UserError(f"{folder.root / table} has no columns {wanted}: give it both, or remove it")


def _named(text, most=200):
    return printable(text if len(text) <= most else f"{text[:most]}...")


def _plain(path):
    return path.replace("\\", "/").removeprefix("./")
