"""The `Layout` of a dataset: how its folder is recognized and listed. Nothing is decoded."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.files.images import SUFFIXES
from bigan_jax.data.records import Listing
from bigan_jax.errors import UserError, unknown_name

# Names of folders, compared in lower case.
NORMAL = ("normal", "good", "ok", "healthy", "notumor", "no_tumor")
ANOMALOUS = ("anomalous", "abnormal", "anomaly", "defect", "defective", "bad", "nok", "ng")
ANOMALOUS += ("diseased", "tumor")
ANOMALOUS += ("glioma", "meningioma", "pituitary")  # defect types of Kaggle's brain datasets
MASKS = ("masks", "mask", "ground_truth", "tumor_mask")
MIN_NORMAL = 10  # images


@dataclass(frozen=True)
class Layout:
    """How the folder of a dataset is organized.

    A module of this package adds a layout by defining `LAYOUT`.

    Attributes:
      name: the value of config.data.source.
      expected: the expected folders, and where to download the dataset; shown in errors.
      builder: name of the TFDS builder, and of the folder, of prepared data.
      description: what the prepared data are, for TFDS.
      is_root: `is_root(path, folders)` tells whether the layout begins in the folder `path` ("" is the data folder).
        `folders` has the relative paths of all folders with images at any depth.
      list_datasets: `list_datasets(layout, folder, category)` lists the images of a folder that has images. It
        returns, by name, the datasets that are prepared separately; most layouts have one, named "". `category` is a
        comma list that may restrict them.
      reads_metadata: whether groups and conditions are read from metadata.csv.
      strict_metadata: whether an invalid metadata.csv is an error; otherwise it is ignored and noted, because such a
        file next to images may be about anything.
      accepts_unlabeled: whether a folder without label folders is read as normal images.
      tfds_dataset: name of the TFDS dataset with class folders that replaces a missing folder.
    """

    name: str
    expected: str
    builder: str
    description: str
    is_root: Callable[[str, Collection[str]], bool]
    list_datasets: Callable[["Layout", DataFolder, str], dict[str, Listing]]
    reads_metadata: bool = False
    strict_metadata: bool = False
    accepts_unlabeled: bool = False
    tfds_dataset: str | None = None

    def error(self, problem: str) -> UserError:
        """Returns the error for a folder without this layout; it shows what is expected."""
        return UserError(
            f"{problem}\n"
            f"The source {self.name!r} expects (dir is --config.data.dir, a folder or an archive "
            f"of it):\n{self.expected}\n"
            "To try a model without any data: --config=configs/<model>.py:phantom"
        )

    def list_folder(self, folder: DataFolder, category: str) -> dict[str, Listing]:
        """Lists the datasets of a folder in which the layout begins, as `list_datasets` does.

        Raises:
          UserError: the folder has no images or another layout, or a category is unknown.
        """
        if not folder.images():
            suffixes = ", ".join(sorted(SUFFIXES))
            raise self.error(f"{folder.root} has no images (looked for {suffixes}).")
        return self.list_datasets(self, folder, category)


def select_categories(category: str, available: Collection[str]) -> list[str]:
    """Returns the names in a comma list, each once; all of `available` for "" and "all".

    Raises:
      UserError: a name is not available.
    """
    names = [name.strip() for name in category.split(",") if name.strip()]
    if names in ([], ["all"]):
        return list(available)
    for name in names:
        if name not in available:
            raise unknown_name("category", name, available)
    return list(dict.fromkeys(names))


def child_folders(path: str, folders: Collection[str]) -> set[str]:
    """Returns the names of the folders directly in `path` ("" is the data folder)."""
    prefix = f"{path}/" if path else ""
    return {f[len(prefix) :].partition("/")[0] for f in folders if f.startswith(prefix)}


def has_normal_folder(path: str, folders: Collection[str]) -> bool:
    """Whether a folder directly in `path` is named as one of normal images (see NORMAL)."""
    return any(name.lower() in NORMAL for name in child_folders(path, folders))
