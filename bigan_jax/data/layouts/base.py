"""The layouts of real sets: from the names in a folder to a list of records, nothing decoded."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from bigan_jax.data.files.folders import Folder
from bigan_jax.data.files.images import SUFFIXES
from bigan_jax.data.files.medical import stem
from bigan_jax.data.layouts.grouping import GROUPED, with_camera, with_table
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
  dir/metadata.csv             optional; columns file and group (views of one part, one patient),
                               condition (what a picture shows)""",
    "brain": """\
  dir/healthy/                 slices without a tumour (or notumor/)
  dir/tumor/                   slices with one (or glioma/, meningioma/, pituitary/)
  dir/tumor_mask/              their masks, optional: the same name
  dir/metadata.csv             optional; columns file and patient, plane
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
    records = [Record(path, False, folder.group(path)) for path in sorted(normal)]
    places = {path: (path, path.partition("/")[2]) for path in sorted(anomalous)}
    masks, more = find_masks(folder, folders["masks"], places)
    notes += more
    for path, (_, name) in places.items():
        kind = PurePosixPath(name).parent.as_posix()
        kind = path.partition("/")[0] if kind == "." else kind
        records.append(Record(path, True, folder.group(path), 0, kind, masks[path]))
    if source == "plant":
        records = [with_camera(r) for r in records]
    if source not in GROUPED:
        return Listing(records, (), notes)
    records, conditions, left_out, more = with_table(records, folder, source)
    return Listing(records, conditions, notes + more, left_out)


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
                official=TRAIN if part == "train" else TEST,
            )
        )
    # <category>/test/<kind>/000.png has the mask <kind>/000_mask.png.
    places = {r.path: (r.path.removeprefix(start).partition("/")[2],) for r in records if r.label}
    masks, notes = find_masks(folder, [f"{start}ground_truth"], places)
    records = [r._replace(mask=masks.get(r.path)) for r in records]
    return Listing(records, (category,), tuple(f"{category}: {note}" for note in notes))


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


def find_masks(
    folder: Folder, inside: Sequence[str], places: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """Each anomalous picture's mask among the files of some folders, and notes on what has none.

    places: by picture, the relative paths that its mask may have, the surest first, with _mask
      after the stem or without. What may be the mask of two pictures is nobody's.
    """
    mask_of = {stem(file): f"{name}/{file}" for name in inside for file in folder.pictures(name)}
    fitting = {picture: _fitting(mask_of, paths) for picture, paths in places.items()}
    times = Counter(mask for fit in fitting.values() for mask in set(fit))
    found = {picture: next(iter(fit), None) for picture, fit in fitting.items()}
    doubtful = {mask for mask in found.values() if times[mask] > 1}
    masks = {picture: None if mask in doubtful else mask for picture, mask in found.items()}
    notes = []
    if doubtful:
        notes.append(
            f"{len(doubtful)} masks fit more than one picture, such as {min(doubtful)}, and are "
            "not used: give them folders that are called as those of the pictures"
        )
    if inside and (missing := [*masks.values()].count(None)):
        notes.append(f"{missing} anomalous pictures have no mask: pixel figures leave them out")
    if spare := set(mask_of.values()) - {*found.values()}:
        notes.append(f"{len(spare)} masks belong to no anomalous picture, such as {min(spare)}")
    return masks, tuple(notes)


def _fitting(mask_of, paths):
    names = (known for name, i in map(stem, paths) for known in ((name, i), (f"{name}_mask", i)))
    return [mask_of[name] for name in names if name in mask_of]
