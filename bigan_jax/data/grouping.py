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
from bigan_jax.errors import UserError

# What metadata.csv may call their column, by the sources that read it.
GROUPED = {"brain": ("patient", "group"), "folder": ("group", "patient")}

# What published copies add to a name: the uuid before it, an augmentation after it.
_BEFORE, _AFTER = re.compile(r"^.*___"), re.compile(r"_(new)?\d*deg\w*$|_flip\w*$", re.IGNORECASE)
_NUMBER = re.compile(r"^(.*?)(\d+)(\.\d+)?\D*$")


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
    return record._replace(group=block(sequence, number), camera=(sequence, number))


def with_groups(
    records: list[Record], folder: Folder, source: str
) -> tuple[list[Record], tuple[str, ...]]:
    """Group the records by two columns of metadata.csv: `file`, a path, and `group` or `patient`.

    A table without them is an error of the source brain, whose pictures have patients; beside
    somebody's own pictures it may be of anything, and a note says that it is not used.
    """
    (table,) = folder.read([METADATA], False)
    if isinstance(table, Broken):
        raise UserError(f"{folder.root}/{METADATA} cannot be read: {table.reason}")
    text = table.decode("utf-8-sig", "replace")
    separator = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets write what they like
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    there = rows.fieldnames or ()
    column = next((name for name in GROUPED[source] if name in there and "file" in there), None)
    if not column:
        wanted = ", or ".join(f"file and {name}" for name in GROUPED[source])
        lacks = f"{METADATA} has no columns {wanted}"
        if source == "folder":
            return records, (f"{lacks}: it is not used",)
        raise UserError(f"{folder.root}/{lacks}.")
    named = {(row["file"] or "").replace("\\", "/"): (row[column] or "").strip() for row in rows}

    def group(record: Record) -> str:
        volume, _ = split_slice(record.path)
        return named.get(record.path) or named.get(volume) or record.group

    grouped = [r._replace(group=group(r)) for r in records]
    alone = sum(r.group == r.path for r in grouped)
    note = f"{alone} pictures have no {column} in {METADATA}: each is taken as a group of its own"
    return grouped, (note,) if alone else ()
