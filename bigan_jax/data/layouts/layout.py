"""The `Layout` of a dataset: how its folder is recognized and listed. Nothing is decoded."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.files.images import SUFFIXES
from bigan_jax.data.layouts.names import Selection, known_label
from bigan_jax.data.records import Listing
from bigan_jax.errors import UserError, printable, unknown_name

MIN_NORMAL = 10  # images
MAX_LISTED = 20  # folders in a message


@dataclass(frozen=True)
class Layout:
    """How the folder of a dataset is organized. A module of this package adds a layout by defining `LAYOUT`."""

    name: str  # the value of config.data.source
    expected: str  # the expected folders, and where to download the dataset; shown in errors
    builder: str  # name of the TFDS builder, and of the folder, of prepared data
    description: str  # what the prepared data are, for TFDS
    # Whether the layout begins in a folder ("" is the data folder), given the relative paths of all folders with
    # images at any depth.
    is_root: Callable[[str, Collection[str]], bool]
    # Lists, by name, the datasets of a folder that are prepared separately (most layouts have one, named ""). The last
    # argument may restrict them to some categories, and names the folders of normal and anomalous images.
    list_datasets: Callable[["Layout", DataFolder, Selection], dict[str, Listing]]
    reads_metadata: bool = False  # whether groups and conditions are read from metadata.csv
    strict_metadata: bool = False  # whether an invalid metadata.csv is an error; otherwise it is ignored and noted
    accepts_unlabeled: bool = False  # whether a folder without label folders is read as normal images
    labels_at_any_depth: bool = False  # whether labels that the user names are found in folders of any depth
    tfds_dataset: str | None = None  # the TFDS dataset with class folders that replaces a missing folder

    def error(self, problem: str) -> UserError:
        """Returns the error for a folder without this layout; it shows what is expected."""
        return UserError(
            f"{problem}\nThe source {self.name!r} expects (dir is --config.data.dir, a folder or an archive of it):\n"
            f"{self.expected}\nTo try a model without any data: --config=configs/<model>.py:phantom"
        )

    def list_folder(self, folder: DataFolder, selection: Selection) -> dict[str, Listing]:
        """Calls `list_datasets`. Raises UserError for a folder without images or layout, and unknown categories."""
        if not folder.images():
            suffixes = ", ".join(sorted(SUFFIXES))
            raise self.error(f"{folder.root} has no images (looked for {suffixes}).")
        return self.list_datasets(self, folder, selection)


def select_categories(category: str, available: Collection[str]) -> list[str]:
    """Returns the names in a comma list, each once; all for "" and "all". Raises UserError for an unknown name."""
    names = [name.strip() for name in category.split(",") if name.strip()]
    if names in ([], ["all"]):
        return list(available)
    by_form = {unicodedata.normalize("NFC", name): name for name in available}  # names of macOS are in another form
    for name in names:
        if unicodedata.normalize("NFC", name) not in by_form:
            raise unknown_name("category", name, available)
    return list(dict.fromkeys(by_form[unicodedata.normalize("NFC", name)] for name in names))


def count_by_folder(paths: Iterable[str], depth: int | None = None) -> str:
    """Returns the folders of images with their counts, as "no (20 images), yes (8)"; "." is the data folder itself.

    Folders are named down to `depth`, by default completely. The first MAX_LISTED are listed.
    """
    parents = (PurePosixPath(path).parent.parts[:depth] for path in paths)
    counts = sorted(Counter("/".join(parts) or "." for parts in parents).items())
    listed = [f"{printable(name)} ({n}{' images' * (i == 0)})" for i, (name, n) in enumerate(counts[:MAX_LISTED])]
    return ", ".join([*listed, *[f"and {len(counts) - MAX_LISTED} more folders"] * (len(counts) > MAX_LISTED)])


def unused_note(paths: Collection[str]) -> tuple[str, ...]:
    """Returns the note that names images that are not used with their folders; () if there are none."""
    return (f"{len(paths)} images are not used: {count_by_folder(paths, 2)}",) if paths else ()


def child_folders(path: str, folders: Collection[str]) -> set[str]:
    """Returns the names of the folders directly in `path` ("" is the data folder)."""
    prefix = f"{path}/" if path else ""
    return {f[len(prefix) :].partition("/")[0] for f in folders if f.startswith(prefix)}


def has_normal_folder(path: str, folders: Collection[str]) -> bool:
    """Whether a folder directly in `path` is named as one of normal images (see NORMAL)."""
    return any(known_label(name) is False for name in child_folders(path, folders))
