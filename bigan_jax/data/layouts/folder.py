"""TODO docstring."""

from pathlib import PurePosixPath

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.layouts.base import _MEANINGS, ANOMALOUS, NORMAL, layout_error
from bigan_jax.data.layouts.grouping import GROUPED, apply_metadata, group_by_camera
from bigan_jax.data.layouts.masks import find_masks
from bigan_jax.data.records import ImageRecord, Listing


def list_two_folders(source: str, folder: DataFolder) -> Listing:
    """Normal pictures in one folder, anomalous ones in another; or normal ones alone."""
    notes = ()
    folders = {meaning: _named(folder, names) for meaning, names in _MEANINGS.items()}
    normal, anomalous = (
        [f"{d}/{p}" for d in folders[label] for p in folder.images(d)]
        for label in ("normal", "anomalous")
    )
    if folders["normal"]:
        notes += _unread(folder, [name for named in folders.values() for name in named])
    else:
        if source != "folder" or folders["anomalous"]:
            raise layout_error(source, f"{folder.root} has no folder of normal pictures.")
        if folder.images("train/good"):
            raise layout_error(
                source, f"{folder.root} is laid out like MVTec AD: the source 'mvtec' reads it."
            )
        normal = folder.images()
        _refuse_mixture(source, folder, normal)
        notes += (f"{folder.root} has no folder normal/: all its pictures are taken as normal",)
    records = [ImageRecord(path, False, folder.group(path)) for path in sorted(normal)]
    places = {path: (path, path.partition("/")[2]) for path in sorted(anomalous)}
    masks, more = find_masks(folder, folders["masks"], places)
    notes += more
    for path, (_, name) in places.items():
        kind = PurePosixPath(name).parent.as_posix()
        kind = path.partition("/")[0] if kind == "." else kind
        records.append(ImageRecord(path, True, folder.group(path), 0, kind, masks[path]))
    if source == "plant":
        records = [group_by_camera(r) for r in records]
    if source not in GROUPED:
        return Listing(records, (), notes)
    records, conditions, left_out, more = apply_metadata(records, folder, source)
    return Listing(records, conditions, notes + more, left_out)


def _named(folder, names):
    return sorted(name for name in folder.subfolders() if name.lower() in names)


def _unread(folder, known):
    """A note of pictures that lie beside the folders whose names say what they hold."""
    places = {path.partition("/")[0] if "/" in path else "." for path in folder.images()}
    beside = sorted(places.difference(known))
    named = ", ".join(beside[:5]) + ", ..." * (len(beside) > 5)
    return (f"pictures beside {', '.join(known)} are not used: {named}",) if beside else ()


def _refuse_mixture(source, folder, paths):
    """Raises UserError where names further down say that not all pictures are normal."""
    named = [{part.lower() for part in PurePosixPath(path).parts[:-1]} for path in paths]
    normal = sum(not parts.isdisjoint(NORMAL) for parts in named)
    if set().union(*named).intersection(ANOMALOUS) or 0 < normal < len(paths):
        raise layout_error(
            source,
            f"{folder.root} has no folder normal/, but further down there are folders whose names "
            "say that not all its pictures are normal.",
        )
