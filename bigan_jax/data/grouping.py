"""Pictures that show one thing, and are never divided between training and test: by a table or by
camera numbers."""

import csv
import io
import re
from pathlib import PurePosixPath

from bigan_jax.data.broken import Broken
from bigan_jax.data.folders import METADATA, Folder
from bigan_jax.data.medical import split_slice
from bigan_jax.data.split import Record, block
from bigan_jax.errors import UserError, printable

GROUPED = ("brain", "folder")  # the sources that read metadata.csv
_COLUMNS = ("group", "patient")

# What published copies add to a name: the uuid before it, an augmentation after it.
_BEFORE, _AFTER = re.compile(r"^.*___"), re.compile(r"_(new)?\d*deg\w*$|_flip\w*$", re.IGNORECASE)
_NUMBER = re.compile(r"^(.*?)(\d+)(\.\d+)?\D*$")
_MOST = 10**18  # prepared sets keep numbers of 64 bits; what is longer is no camera's


def with_camera(record: Record) -> Record:
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


def with_groups(
    records: list[Record], folder: Folder, source: str
) -> tuple[list[Record], tuple[str, ...]]:
    """Group the records by what tables named metadata.csv say; notes on what they do not say.

    A table has the columns `file`, a path from where it lies, and `group` or `patient`. What it
    does not name keeps the group that it has. What is no such table is an error of the source
    brain, whose pictures have patients; somebody's own may lie beside any, and a note says so.
    Raises UserError for a picture in two groups, and a table that names no picture.
    """
    named, used, notes = {}, False, []
    for table in folder.tables():
        try:
            rows = _read(folder, table)
        except UserError as error:
            if source == "brain":
                raise
            notes.append(f"{error}, and is not used")
            continue
        used = True
        for path, group in rows:
            if named.setdefault(path, group) != group:
                told = " and of ".join(map(_named, (named[path], group)))
                raise UserError(
                    f"{folder.root / table}: {_named(path)} is of {told}. A picture has one group."
                )
        groups = dict(rows)
        if groups and not any(_told(groups, r.path) for r in records):
            raise UserError(
                f"{folder.root / table} names no picture: it has {_named(rows[0][0])}, and they "
                f"are called as {_named(records[0].path)}. A path begins where the table lies."
            )
    if not used:
        return records, tuple(notes)
    # Slices of a volume and files of a patient stay together, though only some are named.
    whole = {r.group: group for r in records if (group := _told(named, r.path))}
    grouped = [
        r._replace(group=_told(named, r.path) or whole.get(r.group, r.group)) for r in records
    ]
    if alone := sum(r.group == r.path and r.group not in whole for r in records):
        notes.append(f"{alone} pictures have no group in {METADATA}: each is taken as its own")
    return grouped, tuple(notes)


def _told(named, path):
    volume, _ = split_slice(path)
    return named.get(path) or named.get(volume)


def _read(folder: Folder, table: str) -> list[tuple[str, str]]:
    """Files, by their path in `folder`, and the group of each. Raises UserError where it cannot be
    had."""
    (content,) = folder.read([table], False)
    if isinstance(content, Broken):
        raise UserError(f"{folder.root / table} cannot be read ({content.reason})")
    text, here = content.decode("utf-8-sig", "replace"), table.removesuffix(METADATA)
    try:
        for separator in ",;\t":  # spreadsheets write what their country does
            lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
            header = [name.strip().lower() for name in lines[0]] if lines else []
            columns = [header.index(name) for name in ("file", *_COLUMNS) if name in header]
            if "file" in header and columns[1:]:
                cells = ([*line, *[""] * len(header)] for line in lines[1:])
                named = ((line[columns[0]].strip(), line[columns[1]].strip()) for line in cells)
                return [(here + _plain(file), group) for file, group in named if group]
    except csv.Error as error:
        raise UserError(f"{folder.root / table} cannot be read ({error})") from error
    wanted = " or ".join(f"file and {name}" for name in _COLUMNS)
    raise UserError(f"{folder.root / table} has no columns {wanted}: give it both, or remove it")


def _named(text, most=200):
    return printable(text if len(text) <= most else f"{text[:most]}...")


def _plain(path):
    return path.replace("\\", "/").removeprefix("./")
