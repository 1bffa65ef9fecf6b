"""metadata.csv, which groups images."""

from collections.abc import Iterator
from pathlib import Path

from etils import epath
from hypothesis import strategies as st
from PIL import Image

from bigan_jax.data.files.folders import METADATA, open_folder
from bigan_jax.data.layouts.grouping import apply_metadata
from bigan_jax.data.records import ImageRecord, Listing
from tests.fuzz.mutations import changes, corrupt

NAMES = [f"normal/{i}.png" for i in range(4)]
SEEDS = [
    separator.join(["file", column]) + "".join(f"{end}{n}{separator}a{i // 2}" for i, n in enumerate(NAMES))
    for separator, column, end in ((",", "group", "\n"), (";", "patient", "\r\n"))
]
cases = st.tuples(st.booleans(), st.integers(0, len(SEEDS) - 1), changes)
warm = [(strict, i, []) for strict in (False, True) for i in range(len(SEEDS))]


def attempt(case, folder: Path) -> Iterator[str]:
    strict, seed, what = case
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(folder / name)
    (folder / METADATA).write_bytes(corrupt(SEEDS[seed].encode(), what, SEEDS[1 - seed].encode()))
    records = [ImageRecord(name, False, name) for name in NAMES]
    folder = open_folder(epath.Path(folder))
    listing = apply_metadata(Listing(records, ()), folder, strict=strict)
    assert [r.path for r in listing.records] == NAMES and all(r.group for r in listing.records)
    assert all(r.condition in range(max(1, len(listing.conditions))) for r in listing.records)
    yield from listing.notes
