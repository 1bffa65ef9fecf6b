"""Where in a folder or an archive, as it was downloaded, the layout of a source begins."""

import posixpath
from pathlib import PurePosixPath

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.layouts.base import NORMAL


def find_layout_root(source: str, folder: DataFolder) -> tuple[str, ...]:
    """Where in `folder` the layout of `source` begins: "" for right there, else folders that are
    equally far down (two levels at most, counted from where there is more than one folder), those
    with most pictures first. () where it is not found.

    The source `folder`, which takes nearly anything, is looked for only where it has no rival.
    """
    holding = {file.rpartition("/")[0] for file in folder.images()}
    folders = {"", *(parent for path in holding for parent in _with_parents(path))}
    common = posixpath.commonpath(holding) if holding else ""
    for depth in range(_depth(common) + 3):
        level = [inside for inside in folders if _depth(inside) == depth]
        found = [inside for inside in level if _fits(source, inside, folders)]
        if source == "folder" and sum(_has_normal(inside, folders) for inside in level) > 1:
            return ()
        if found:
            return tuple(sorted(found, key=lambda inside: (-len(folder.images(inside)), inside)))
    return ()


def _depth(path):
    return len(PurePosixPath(path).parts)


def _with_parents(path):
    return [path, *(parent.as_posix() for parent in PurePosixPath(path).parents)][:-1]


def _fits(source, inside, folders):
    start = f"{inside}/" if inside else ""
    children = _children(inside, folders)
    if source == "mvtec":
        places = (start, *(f"{start}{child}/" for child in children))
        return any(f"{place}train/good" in folders for place in places)
    if source == "folder" and PurePosixPath(inside).name in ("train", "test"):
        return False  # part of MVTec's layout
    species = source == "plant" and any("___" in child for child in children)
    return species or _has_normal(inside, folders)


def _has_normal(inside, folders):
    return any(child.lower() in NORMAL for child in _children(inside, folders))


def _children(inside, folders):
    start = f"{inside}/" if inside else ""
    return {path[len(start) :].partition("/")[0] for path in folders if path.startswith(start)}
