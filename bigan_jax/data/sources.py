"""The layouts of real sets: from the names in a folder to a list of records, nothing decoded."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from bigan_jax.data.decode import SUFFIXES
from bigan_jax.data.folders import Folder
from bigan_jax.data.grouping import GROUPED, with_camera, with_groups
from bigan_jax.data.medical import stem
from bigan_jax.data.split import TEST, TRAIN, Record
from bigan_jax.errors import UserError, unknown

# In small letters: Normal/ is normal/.
NORMAL = ("normal", "good", "ok", "healthy", "notumor", "no_tumor")
ANOMALOUS = ("anomalous", "abnormal", "anomaly", "defect", "defective", "bad", "nok", "ng")
ANOMALOUS += ("diseased", "tumor")
ANOMALOUS += ("glioma", "meningioma", "pituitary")  # of Kaggle's brain sets, each its own kind
MASKS = ("masks", "mask", "ground_truth", "tumor_mask")
LEAST_NORMAL = 10
_MEANINGS = {"normal": NORMAL, "anomalous": ANOMALOUS, "masks": MASKS}

EXPECTED = {
    "folder": """\
  dir/*.png                    normal pictures only, or
  dir/normal/                  normal pictures (or good/, ok/, healthy/)
  dir/anomalous/[<kind>/]      anomalous ones, optional (or defect/, bad/, nok/, diseased/)
  dir/masks/[<kind>/]          their masks, optional: the same name, or <name>_mask
  dir/metadata.csv             optional; columns file and group: views of one part, one patient""",
    "brain": """\
  dir/healthy/                 slices without a tumour (or notumor/)
  dir/tumor/                   slices with one (or glioma/, meningioma/, pituitary/)
  dir/tumor_mask/              their masks, optional: the same name
  dir/metadata.csv             optional; columns file and patient
To be had as Kaggle mateuszbuda/lgg-mri-segmentation (110 patients, 3,929 slices and masks; CC
BY-NC-SA 4.0; sort its slices into these folders) or masoudnickparvar/brain-tumor-mri-dataset
(its archive.zip will do; no patients, and the source of a picture predicts its label).""",
    "mvtec": """\
  dir/<category>/train/good/
  dir/<category>/test/good/, dir/<category>/test/<kind>/
  dir/<category>/ground_truth/<kind>/000_mask.png
To be had at https://www.mvtec.com/company/research/datasets/mvtec-ad (15 categories, 5,354
pictures; CC BY-NC-SA 4.0); mvtec_anomaly_detection.tar.xz or one category's archive will do.""",
    "plant": """\
  dir/<species>___healthy/, dir/<species>___<disease>/      as in PlantVillage, or
  dir/healthy/, dir/diseased/
To be had as Kaggle emmarex/plantdisease (its archive.zip will do) or TFDS plant_village (found
where it is prepared; 38 classes, 54,303 pictures); CC BY-SA 3.0 is the licence usually named.""",
}


class Listing(NamedTuple):
    """What a folder holds; `Record.condition` is an index into `conditions`."""

    records: list[Record]
    conditions: tuple[str, ...]  # () where the folder knows of none
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # conditions without normal pictures

    def files(self) -> list[str]:
        """The pictures and masks, sorted."""
        return sorted({path for r in self.records for path in (r.path, r.mask) if path})


def list_source(source: str, folder: Folder, category: str) -> dict[str, Listing]:
    """The pictures of `folder`, read as the layout of `source`: a key of EXPECTED.

    Each of MVTec's categories is a set of its own, and those that `category` names are listed; of
    other sources there is one set without a name, with all there is. Returns the sets by name.
    Raises UserError that shows the layout when the folder is empty or has another layout, and for
    an unknown category.
    """
    if not folder.pictures():
        suffixes = ", ".join(sorted(SUFFIXES))
        raise misplaced(source, f"No picture was found in {folder.root} (looked for {suffixes}).")
    if source == "mvtec":
        found = categories(folder)
        names = choose(category, list(found))
        return {name: list_mvtec(folder, name, found[name]) for name in names}
    return {"": _list_whole(source, folder)}


def _list_whole(source, folder):
    if source == "plant" and any("___" in name for name in folder.folders()):
        return list_species(folder)
    return list_two_folders(source, folder)


def misplaced(source: str, problem: str) -> UserError:
    """The error for a folder that is not laid out as `source` has to be."""
    return UserError(
        f"{problem}\n"
        f"The source {source!r} expects (dir is --config.data.dir, a folder or an archive of it):\n"
        f"{EXPECTED[source]}\n"
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


def list_two_folders(source: str, folder: Folder) -> Listing:
    """Normal pictures in one folder, anomalous ones in another; or normal ones alone."""
    notes = ()
    folders = {meaning: _named(folder, names) for meaning, names in _MEANINGS.items()}
    normal, anomalous = (
        [f"{d}/{p}" for d in folders[label] for p in folder.pictures(d)]
        for label in ("normal", "anomalous")
    )
    if folders["normal"]:
        notes += _unread(folder, [name for named in folders.values() for name in named])
    else:
        if source != "folder" or folders["anomalous"]:
            raise misplaced(source, f"{folder.root} has no folder of normal pictures.")
        if folder.pictures("train/good"):
            raise misplaced(
                source, f"{folder.root} is laid out like MVTec AD: the source 'mvtec' reads it."
            )
        normal = folder.pictures()
        _refuse_mixture(source, folder, normal)
        notes += (f"{folder.root} has no folder normal/: all its pictures are taken as normal",)
    masks = Masks(folder, folders["masks"])
    records = [Record(path, False, folder.group(path)) for path in sorted(normal)]
    for path in sorted(anomalous):
        parent, _, name = path.partition("/")
        kind = PurePosixPath(name).parent.as_posix()
        mask = masks.find(name, path)
        kind = parent if kind == "." else kind
        records.append(Record(path, True, folder.group(path), 0, kind, mask))
    notes += masks.notes()
    if source == "plant":
        records = [with_camera(r) for r in records]
    if source in GROUPED:
        records, more = with_groups(records, folder, source)
        notes += more
    return Listing(records, (), notes)


def _named(folder, names):
    return sorted(name for name in folder.folders() if name.lower() in names)


def _unread(folder, known):
    """A note of pictures that lie beside the folders whose names say what they hold."""
    places = {path.partition("/")[0] if "/" in path else "." for path in folder.pictures()}
    beside = sorted(places.difference(known))
    named = ", ".join(beside[:5]) + ", ..." * (len(beside) > 5)
    return (f"pictures beside {', '.join(known)} are not used: {named}",) if beside else ()


def _refuse_mixture(source, folder, paths):
    """Raises UserError where names further down say that not all pictures are normal."""
    named = [{part.lower() for part in PurePosixPath(path).parts[:-1]} for path in paths]
    normal = sum(not parts.isdisjoint(NORMAL) for parts in named)
    if set().union(*named).intersection(ANOMALOUS) or 0 < normal < len(paths):
        raise misplaced(
            source,
            f"{folder.root} has no folder normal/, but further down there are folders whose names "
            "say that not all its pictures are normal.",
        )


def categories(folder: Folder) -> dict[str, str]:
    """MVTec's categories: the folder of each by its name, "" where `folder` is one itself.

    Raises UserError where there is none.
    """
    found = [
        f
        for f in ("", *sorted(folder.folders()))
        if "good" in folder.folders(f"{f}/train".lstrip("/"))
    ]
    if not found:
        raise misplaced(
            "mvtec", f"{folder.root} has no folder train/good, nor a category that has one."
        )
    return {child or folder.root.name: child for child in found}


def list_mvtec(folder: Folder, category: str, inside: str) -> Listing:
    """A category of MVTec AD, which lies in the folder `inside` of `folder`."""
    start = f"{inside}/" if inside else ""
    masks = Masks(folder, [f"{start}ground_truth"])
    records = []
    for file in folder.pictures(inside):
        part, _, rest = file.partition("/")
        kind = rest.partition("/")[0]
        if part not in ("train", "test") or kind == rest:
            continue
        label = kind != "good"
        records.append(
            Record(
                path=start + file,
                label=label,
                group=f"{category}/{file}",
                kind=kind,
                mask=masks.find(rest) if label else None,
                official=TRAIN if part == "train" else TEST,
            )
        )
    return Listing(records, (category,), tuple(f"{category}: {note}" for note in masks.notes()))


def list_species(folder: Folder) -> Listing:
    """PlantVillage's class folders <species>___<state>; each species is a condition."""
    states = {}
    for name in sorted(n for n in folder.folders() if "___" in n):
        species, _, state = name.partition("___")
        # A category is chosen from a comma list: "Pepper,_bell" is called "Pepper_bell".
        states.setdefault(species.replace(",", ""), {})[state] = name
    names = [n for n in states if any(s.lower() == "healthy" for s in states[n])]
    if not names:
        raise misplaced("plant", f"{folder.root} has no folder <species>___healthy.")
    records = []
    for condition, name in enumerate(names):
        for state, inside in states[name].items():
            label = state.lower() != "healthy"
            kind = state if label else "good"
            for file in folder.pictures(inside):
                path = f"{inside}/{file}"
                records.append(with_camera(Record(path, label, path, condition, kind)))
    return Listing(records, tuple(names), left_out=tuple(n for n in states if n not in names))


class Masks:
    """Finds the mask of a picture among the files of some folders of a data folder."""

    def __init__(self, folder: Folder, inside: list[str]):
        self.known = bool(inside)
        self.found: list[str | None] = []
        self.mask_of = {
            stem(file): f"{name}/{file}" for name in inside for file in folder.pictures(name)
        }

    def find(self, *paths: str) -> str | None:
        """The mask with the relative path and stem of one of `paths`, or with _mask after it."""
        stems = [stem(path) for path in paths]
        names = (name for file, i in stems for name in ((file, i), (f"{file}_mask", i)))
        found = next((self.mask_of[name] for name in names if name in self.mask_of), None)
        self.found.append(found)
        return found

    def notes(self) -> tuple[str, ...]:
        """What a user should know: pictures without a mask, and masks without a picture."""
        notes = []
        missing, spare = self.found.count(None), set(self.mask_of.values()) - {*self.found}
        if self.known and missing:
            notes.append(f"{missing} anomalous pictures have no mask: pixel figures leave them out")
        if spare:
            notes.append(f"{len(spare)} masks belong to no anomalous picture, such as {min(spare)}")
        return tuple(notes)
