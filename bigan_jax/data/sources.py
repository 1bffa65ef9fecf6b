"""The folder layouts of real sets: from a folder to a list of records, nothing decoded yet."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from bigan_jax.data.decode import SUFFIXES, list_pictures
from bigan_jax.data.split import TEST, TRAIN, Record, block
from bigan_jax.errors import UserError, unknown

NORMAL = ("normal", "good", "healthy")
ANOMALOUS = ("anomalous", "abnormal", "defect", "diseased", "tumor")
MASKS = ("masks", "mask", "ground_truth", "tumor_mask")
LEAST_NORMAL = 10

EXPECTED = {
    "folder": """\
  dir/*.png                    normal pictures only, or
  dir/normal/                  normal pictures (or good/, healthy/)
  dir/anomalous/[<kind>/]      anomalous ones, optional (or abnormal/, defect/, diseased/)
  dir/masks/[<kind>/]          their masks, optional: the same name, or <name>_mask""",
    "brain": """\
  dir/healthy/                 slices without a tumour
  dir/tumor/                   slices with one
  dir/tumor_mask/              their masks, optional: the same name
  dir/metadata.csv             optional; columns file and patient
To be had as Kaggle mateuszbuda/lgg-mri-segmentation (patients, masks) or
masoudnickparvar/brain-tumor-mri-dataset; sort the pictures into these folders.""",
    "mvtec": """\
  dir/<category>/train/good/
  dir/<category>/test/good/, dir/<category>/test/<kind>/
  dir/<category>/ground_truth/<kind>/000_mask.png
To be had at https://www.mvtec.com/company/research/datasets/mvtec-ad""",
    "plant": """\
  dir/<species>___healthy/, dir/<species>___<disease>/      as in PlantVillage, or
  dir/healthy/, dir/diseased/
To be had as Kaggle emmarex/plantdisease or TFDS plant_village""",
}


class Listing(NamedTuple):
    """What a folder holds."""

    records: list[Record]
    conditions: tuple[str, ...]
    notes: tuple[str, ...] = ()


def list_source(source: str, root: Path, category: str, official_split: bool) -> Listing:
    """The pictures of `root`, read as the layout of `source`: a key of EXPECTED.

    Raises UserError that shows the layout when the folder is missing, is empty, has another
    layout or fewer than LEAST_NORMAL normal pictures, and for an unknown category.
    """
    if not root.is_dir():
        raise misplaced(source, f"There is no folder {root}.")
    if source == "mvtec":
        listing = list_mvtec(root, category, official_split)
    elif source == "plant" and any("___" in f.name for f in root.iterdir() if f.is_dir()):
        listing = list_species(root, category)
    else:
        listing = list_two_folders(source, root, category)
    if not listing.records:
        suffixes = ", ".join(sorted(SUFFIXES))
        raise misplaced(source, f"No picture was found in {root} (looked for {suffixes}).")
    normal = sum(not r.label for r in listing.records)
    if normal < LEAST_NORMAL:
        raise misplaced(
            source,
            f"Only {normal} normal pictures were found in {root}; at least {LEAST_NORMAL} are "
            "needed, and good results need hundreds.",
        )
    return listing


def misplaced(source: str, problem: str) -> UserError:
    """The error for a folder that is not laid out as `source` has to be."""
    return UserError(
        f"{problem}\n"
        f"The source {source!r} expects (dir is --config.data.dir):\n{EXPECTED[source]}\n"
        "To try things now, without any data: --config=configs/<model>.py:phantom"
    )


def choose(category: str, available: Sequence[str]) -> list[str]:
    """The names in the comma list `category`, each once; all of `available` for "" and "all"."""
    names = [name.strip() for name in category.split(",") if name.strip()]
    if names in ([], ["all"]):
        return list(available)
    for name in names:
        if name not in available:
            raise unknown("category", name, available)
    return list(dict.fromkeys(names))


def list_two_folders(source: str, root: Path, category: str) -> Listing:
    """Normal pictures in one folder, anomalous ones in another; or normal ones alone in `root`."""
    notes = ()
    folders = {f.name for f in root.iterdir() if f.is_dir()}
    normal = [f"{d}/{p}" for d in NORMAL if d in folders for p in list_pictures(root / d)]
    anomalous = [f"{d}/{p}" for d in ANOMALOUS if d in folders for p in list_pictures(root / d)]
    if not folders.intersection(NORMAL):
        if source != "folder" or folders.intersection(ANOMALOUS):
            raise misplaced(source, f"{root} has no folder of normal pictures.")
        if (root / "train" / "good").is_dir():
            raise misplaced(
                source, f"{root} is laid out like MVTec AD: the source 'mvtec' reads it."
            )
        normal = list_pictures(root)
        notes += (f"{root} has no folder normal/: all its pictures are taken as normal",)
    masks = Masks(root, [d for d in MASKS if d in folders])
    records = [Record(path, False, path) for path in sorted(normal)]
    for path in sorted(anomalous):
        folder, _, name = path.partition("/")
        kind = PurePosixPath(name).parent.as_posix()
        mask = masks.find(name, path)
        records.append(Record(path, True, path, 0, folder if kind == "." else kind, mask))
    notes += masks.notes()
    if source == "plant":
        records = [with_camera(r) for r in records]
    if (root / "metadata.csv").is_file() and source == "brain":
        records, more = with_patients(records, root / "metadata.csv")
        notes += more
    return Listing(records, (category.strip() or source,), notes)


def list_mvtec(root: Path, category: str, official_split: bool) -> Listing:
    """The layout of MVTec AD; `root` is the folder of the categories or one category."""
    if (root / "train" / "good").is_dir():
        folders = {root.resolve().name: root}
    else:
        folders = {f.name: f for f in sorted(root.iterdir()) if (f / "train" / "good").is_dir()}
    if not folders:
        raise misplaced("mvtec", f"{root} has no folder train/good, nor a category that has one.")
    records, notes = [], ()
    names = choose(category, list(folders))
    for condition, name in enumerate(names):
        inside = PurePosixPath(folders[name].relative_to(root).as_posix())
        masks = Masks(root, [(inside / "ground_truth").as_posix()])
        for file in list_pictures(folders[name]):
            part, _, rest = file.partition("/")
            kind = rest.partition("/")[0]
            if part not in ("train", "test") or kind == rest:
                continue
            label = kind != "good"
            records.append(
                Record(
                    path=(inside / file).as_posix(),
                    label=label,
                    group=f"{name}/{file}",
                    condition=condition,
                    kind=kind,
                    mask=masks.find(rest) if label else None,
                    official=(TRAIN if part == "train" else TEST) if official_split else None,
                )
            )
        notes += tuple(f"{name}: {note}" for note in masks.notes())
    return Listing(records, tuple(names), notes)


def list_species(root: Path, category: str) -> Listing:
    """PlantVillage's class folders <species>___<state>; each species is a condition."""
    states = {}
    for folder in sorted(f.name for f in root.iterdir() if f.is_dir() and "___" in f.name):
        species, _, state = folder.partition("___")
        states.setdefault(species, {})[state] = folder
    asked = choose(category, list(states))
    names = [n for n in asked if any(s.lower() == "healthy" for s in states[n])]
    if not names:
        raise misplaced("plant", f"{', '.join(asked)}: no folder <species>___healthy in {root}.")
    notes = tuple(f"{n} left out: it has no healthy leaves" for n in asked if n not in names)
    records = []
    for condition, name in enumerate(names):
        for state, folder in states[name].items():
            label = state.lower() != "healthy"
            kind = state if label else "good"
            for file in list_pictures(root / folder):
                path = f"{folder}/{file}"
                records.append(with_camera(Record(path, label, path, condition, kind)))
    return Listing(records, tuple(names), notes)


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


def with_patients(records: list[Record], table: Path) -> tuple[list[Record], tuple[str, ...]]:
    """Group the records by the column `patient` of `table`, whose column `file` holds paths."""
    with table.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        if missing := {"file", "patient"} - set(rows.fieldnames or ()):
            raise UserError(f"{table} has no column {' and no column '.join(sorted(missing))}.")
        patient = {row["file"].replace("\\", "/"): (row["patient"] or "").strip() for row in rows}
    grouped = [r._replace(group=patient.get(r.path) or r.path) for r in records]
    alone = sum(not patient.get(r.path) for r in records)
    note = f"{alone} pictures have no patient in {table.name}: each is taken as a group of its own"
    return grouped, (note,) if alone else ()


class Masks:
    """Finds the mask of a picture among the files of some folders of `root`."""

    def __init__(self, root: Path, folders: list[str]):
        self.known = bool(folders)
        self.count = Counter()
        self.mask_of = {
            PurePosixPath(file).with_suffix("").as_posix(): f"{folder}/{file}"
            for folder in folders
            for file in list_pictures(root / folder)
        }

    def find(self, *paths: str) -> str | None:
        """The mask with the relative path and stem of one of `paths`, or with _mask after it."""
        stems = [PurePosixPath(path).with_suffix("").as_posix() for path in paths]
        names = (name for stem in stems for name in (stem, f"{stem}_mask"))
        found = next((self.mask_of[name] for name in names if name in self.mask_of), None)
        self.count[found is not None] += 1
        return found

    def notes(self) -> tuple[str, ...]:
        """What a user should know: masks that were expected and not found."""
        missing = self.count[False]
        if not self.known or not missing:
            return ()
        return (f"{missing} anomalous pictures have no mask: pixel figures leave them out",)
