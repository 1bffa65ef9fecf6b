"""Where the layout of a dataset begins in a folder or archive as it was downloaded."""

import posixpath
from pathlib import PurePosixPath

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.layouts.layout import Layout, has_normal_folder
from bigan_jax.data.layouts.masks import mask_folders
from bigan_jax.data.layouts.names import Selection

MAX_DEPTH = 2  # levels that are searched below the first one with several folders


def find_layout_root(layout: Layout, folder: DataFolder, selection: Selection) -> tuple[str, ...]:
    """Finds the folders of the highest level in which a layout begins, those with the most images first.

    They are relative: ("",) is the data folder itself. A layout that accepts folders without labels fits nearly
    anything, and is found only if it is the only candidate of its level. Masks may lie next to the folder that holds
    the folders of images; the layout then begins where both do.
    """
    if layout.labels_at_any_depth and (selection.normal or selection.anomalous):
        return ("",)
    parents = {file.rpartition("/")[0] for file in folder.images()}
    all_folders = {ancestor for path in parents for ancestor in _ancestors(path)}
    mask_folders_ = mask_folders(all_folders)
    parents = {path for path in parents if mask_folders_.isdisjoint(_ancestors(path))} or parents
    folders = {"", *(ancestor for path in parents for ancestor in _ancestors(path))}
    common = posixpath.commonpath(parents) if parents else ""
    for depth in range(_depth(common) + MAX_DEPTH + 1):
        level = [path for path in folders if _depth(path) == depth]
        if layout.accepts_unlabeled and sum(has_normal_folder(f, folders) for f in level) > 1:
            return ()
        if roots := [path for path in level if layout.is_root(path, folders)]:
            first, *others = sorted(roots, key=lambda path: (-len(folder.images(path)), path))
            return _with_masks(first, others, mask_folders_), *others
    return ()


def _with_masks(root, others, mask_folders_):
    """Returns `root`, or the nearest folder above it that has a folder of masks and none of the other roots."""
    for parent in [*_ancestors(root)[1:], ""] if root else []:
        if any(path == parent or parent in ("", *_ancestors(path)) for path in others):
            return root
        if any(path.rpartition("/")[0] == parent for path in mask_folders_):
            return parent
    return root


def _depth(path):
    return len(PurePosixPath(path).parts)


def _ancestors(path):
    return [path, *(parent.as_posix() for parent in PurePosixPath(path).parents)][:-1]
