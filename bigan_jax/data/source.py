"""From what a user named, a folder, an archive or what TFDS has, to records and their bytes."""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Shaped

from bigan_jax.data.files import archives
from bigan_jax.data.files.folders import (
    DataFolder,
    is_remote,
    local_folder,
    open_folder,
    resolve_path,
    tfds_data_dir,
)
from bigan_jax.data.files.images import count_unsupported, map_in_threads
from bigan_jax.data.files.unreadable import UnreadableFile, split_unreadable, try_read
from bigan_jax.data.layouts.base import LEAST_NORMAL, layout_error, select_categories
from bigan_jax.data.layouts.grouping import GROUPED
from bigan_jax.data.layouts.listing import list_source
from bigan_jax.data.layouts.locate import find_layout_root
from bigan_jax.data.records import ImageRecord
from bigan_jax.data.settings import DataSettings
from bigan_jax.data.tfds import plant_village, prepared
from bigan_jax.data.tfds.prepared import Prepared
from bigan_jax.errors import UserError


class ImageSource(NamedTuple):
    """The pictures of a source: what is known of each, and its bytes in any order."""

    root: epath.Path  # what messages call it
    records: list[ImageRecord]
    conditions: tuple[str, ...]
    notes: tuple[str, ...]
    where: dict[str, tuple[Prepared, int, str]]  # by the path of a picture or mask

    def open(self, path: str) -> BinaryIO:
        """The encoded picture or mask with a path of the records.

        Raises UserError for one that could not be read when the data were prepared.
        """
        prepared, index, part = self.where[path]
        if path in prepared.broken:
            raise UserError(prepared.broken[path])
        return io.BytesIO(prepared.read(index, part))

    def read_all(
        self,
        read: Callable[[BinaryIO, str], Shaped[np.ndarray, "..."]],
        paths: Sequence[str],
        what: str,
    ) -> tuple[list[Shaped[np.ndarray, "..."] | None], list[UnreadableFile]]:
        """`read(file, path)` of all `paths`, by several threads, with a progress bar.

        Returns the results in order, None for what cannot be read, and these with their reasons.
        """

        def read_one(path: str) -> Shaped[np.ndarray, "..."] | UnreadableFile:
            return try_read(path, lambda: read(self.open(path), path))

        return split_unreadable(map_in_threads(read_one, paths, what))


def open_source(
    source: str, dir: str | os.PathLike, tfds_dir: str, category: str, official_split: bool
) -> ImageSource:
    """The pictures of a data folder, prepared on first use and whenever it has changed.

    dir: a folder with the layout of `source`, or with one that has it; an archive of such; for the
    source plant also what TFDS made of plant_village, which serves where `dir` is not there.
    A folder that is not there, or empty, is stood in for by what was prepared from it.
    Raises UserError for whatever the user can mend.
    """
    home, given = tfds_data_dir(tfds_dir), resolve_path(dir)
    folder, notes = _look(source, given, home)
    if source == "plant" and plant_village.is_plant_village(given):
        sets = [_from_village(given, home)]
    elif folder and folder.images():
        listings = list_source(source, folder, category)
        sets = [_prepared(source, home, given, folder, *item) for item in listings.items()]
    elif sets := prepared.reopen_all(source, home, given):
        notes = (f"{given} is not there or empty: what was prepared from it in {home} is used",)
    elif source == "plant" and (found := plant_village.find_plant_village(home)):
        sets = [_from_village(found, home)]
        notes = (f"{given} is not there: TFDS's own {found} is used",)
    elif folder:
        list_source(source, folder, category)  # raises: it is empty
    else:
        raise layout_error(source, f"There is no folder {given}.")
    return _merge(source, given, sets, category, official_split, notes)


def require_data_folder(settings: DataSettings) -> None:
    """Checks that the data folder, or what replaces a missing one, exists. JAX is not imported.

    Raises:
      UserError: no folder is set, or it does not exist and nothing replaces it.
    """
    source = settings.source
    if source == "phantom":
        return
    if not settings.dir:
        raise layout_error(source, "No data folder was given: --config.data.dir=DIR.")
    home, root = tfds_home(settings.tfds_dir), as_path(settings.dir)
    if not (
        root.exists()
        or archives.extract_once(root, local_home(home))
        or prepared.reopen_all(source, home, root)
        or (source == "plant" and plant_village.find_plant_village(home))
    ):
        raise layout_error(source, f"There is no folder {root}.")


def _look(source, given, home) -> tuple[DataFolder | None, tuple[str, ...]]:
    root = archives.extract_once(given, local_folder(home)) or given
    if not root.is_dir():
        return None, ()
    folder = open_folder(root)
    unread = () if is_remote(root) else _unread(Path(root))
    inside, *others = find_layout_root(source, folder) or ("",)
    if not inside:
        return folder, unread
    note = f"the layout begins in the folder {inside}"
    if others:
        note += f"; {', '.join(others)} beside it left out"
    kept = sum(len(folder.images(f)) for f in (inside, *others))
    if beside := len(folder.images()) - kept:
        note += f"; {beside} pictures elsewhere in {root} are not used"
    found = folder.subfolder(inside)
    above = sorted(
        {*folder.metadata_files()} - {f"{inside}/{table}" for table in found.metadata_files()}
    )
    notes = (f"{table} is not used: it has to lie in {inside}" for table in above)
    return found, (note, *unread, *(notes if source in GROUPED else ()))


def _unread(root: Path) -> tuple[str, ...]:
    kinds = count_unsupported(root)
    told = ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds.items()))
    return (f"files of kinds that are not read: {told}. Make them PNG or JPEG",) if told else ()


def _prepared(source, home, given, folder, name, listing) -> Prepared:
    place = prepared.prepared_path(source, home, name or given.name, given)
    fingerprint = prepared.fingerprint(listing, [folder.files[f] for f in listing.files()])
    old = prepared.reopen(place)
    if old and old.fingerprint == fingerprint:
        return old
    return prepared.prepare(source, place, listing, folder.read, fingerprint)


def _from_village(found: epath.Path, home: epath.Path) -> Prepared:
    place = prepared.prepared_path("plant", home, "plant_village", found)
    fingerprint = plant_village.fingerprint(found)
    old = prepared.reopen(place)
    if old and old.fingerprint == fingerprint:
        return old
    folder = plant_village.open_plant_village(found)
    (listing,) = list_source("plant", folder, "").values()
    return prepared.prepare("plant", place, listing, folder.read, fingerprint)


def _merge(source, given, sets, category, official_split, notes) -> ImageSource:
    known = [c for s in sets for c in s.listing.conditions]
    left_out = [c for s in sets for c in s.listing.left_out]
    if category and not known + left_out:
        raise UserError(
            f"config.data.category={category}: {given} knows no categories, as the source "
            f"{source!r} reads it. Leave the field empty, or give a folder of those pictures alone"
        )
    names = select_categories(category, known + left_out) if known or left_out else [source]
    conditions = tuple(n for n in names if n not in left_out)
    if not conditions:
        raise layout_error(source, f"{', '.join(names)}: none has normal pictures in {given}.")
    notes += tuple(f"{n} left out: it has no normal pictures" for n in names if n in left_out)
    records, where = [], {}
    for found in sets:
        notes += found.listing.notes
        for i, r in enumerate(found.listing.records):
            name = found.listing.conditions[r.condition] if known else conditions[0]
            if name in conditions:
                official = r.official if official_split else None
                records.append(r._replace(condition=conditions.index(name), official=official))
                where[r.path] = (found, i, "image")
                where |= {r.mask: (found, i, "mask")} if r.mask else {}
    normal = sum(not r.label for r in records)
    if normal < LEAST_NORMAL:
        raise layout_error(
            source,
            f"Only {normal} normal pictures were found in {given}; at least {LEAST_NORMAL} are "
            "needed, and good results need hundreds.",
        )
    return ImageSource(given, records, conditions, notes, where)
