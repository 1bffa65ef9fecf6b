"""Where the layout of a dataset begins in a folder or archive as it was downloaded."""

import posixpath
from pathlib import PurePosixPath

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.layouts.layout import Layout, has_normal_folder

MAX_DEPTH = 2  # levels that are searched below the first one with several folders


def find_layout_root(layout: Layout, folder: DataFolder) -> tuple[str, ...]:
    """Finds the folders of the highest level in which a layout begins, those with the most images first.

    They are relative: ("",) is the data folder itself. A layout that accepts folders without labels fits nearly
    anything, and is found only if it is the only candidate of its level.
    """
    parents = {file.rpartition("/")[0] for file in folder.images()}
    folders = {"", *(ancestor for path in parents for ancestor in _ancestors(path))}
    common = posixpath.commonpath(parents) if parents else ""
    for depth in range(_depth(common) + MAX_DEPTH + 1):
        level = [path for path in folders if _depth(path) == depth]
        if layout.accepts_unlabeled and sum(has_normal_folder(f, folders) for f in level) > 1:
            return ()
        if roots := [path for path in level if layout.is_root(path, folders)]:
            return tuple(sorted(roots, key=lambda path: (-len(folder.images(path)), path)))
    return ()


def _depth(path):
    return len(PurePosixPath(path).parts)


def _ancestors(path):
    return [path, *(parent.as_posix() for parent in PurePosixPath(path).parents)][:-1]
