"""Where images come from: a data folder, the phantom, or arrays. Each is an `ImageSource`."""

import io
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Protocol, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import Bool, UInt8

from bigan_jax.data import phantom
from bigan_jax.data.files import archives
from bigan_jax.data.files.folders import (
    LINKED_FOLDER,
    DataFolder,
    local_folder,
    open_folder,
    resolve_path,
    tfds_data_dir,
)
from bigan_jax.data.files.images import ImageFormat, Mask, Pixels, image_size, read_image, read_mask
from bigan_jax.data.files.medical import percentile_stretch
from bigan_jax.data.files.unreadable import MAX_LISTED, UnreadableFile, try_read, unreadable_error, unreadable_note
from bigan_jax.data.layouts.find_root import find_layout_root
from bigan_jax.data.layouts.layout import MIN_NORMAL, count_by_folder, select_categories
from bigan_jax.data.layouts.names import Selection
from bigan_jax.data.records import ImageRecord, Listing
from bigan_jax.data.settings import MEMORY, PHANTOM, DataSettings
from bigan_jax.data.tfds.paths import find_tfds_dataset, is_tfds_dataset, prepared_path, prepared_paths
from bigan_jax.errors import UserError

_TEXTS = {".txt", ".md", ".pdf", ".html", ".csv", ".tsv", ".xlsx", ".json", ".xml", ".yaml", ".yml", ".py", ".ipynb"}
_TEXTS |= {".log", ".sha256", ".md5"}  # files about images

if TYPE_CHECKING:
    from bigan_jax.data.tfds.prepared import PreparedDataset


@runtime_checkable
class ImageSource(Protocol):
    """The images of a dataset: a record of each, and its pixels on demand."""

    @property
    def root(self) -> os.PathLike | str: ...  # what messages call the source
    @property
    def records(self) -> list[ImageRecord]: ...
    @property
    def conditions(self) -> tuple[str, ...]: ...  # names, indexed by the `condition` of a record
    @property
    def notes(self) -> tuple[str, ...]: ...  # messages to the user
    @property
    def open(self) -> Callable[[str], BinaryIO] | None: ...  # encoded image or mask of a path; None if drawn

    def read(self, record: ImageRecord) -> tuple[Pixels | UnreadableFile, Mask | UnreadableFile | None]:
        """Returns an image in the format of the networks, and its mask if it has one."""
        ...


class PhantomSource:
    """The images of the phantom (`bigan_jax.data.phantom`), which are drawn."""

    root, notes, open = "phantom", (), None

    def __init__(self, settings: DataSettings):
        """Raises UserError for an unknown category."""
        self.conditions = tuple(select_categories(settings.category, phantom.DOMAINS))
        self.records = phantom.records(self.conditions, settings.phantom_normal, settings.phantom_anomalous)
        self._format = settings.image_format

    def read(self, record: ImageRecord) -> tuple[Pixels, Mask]:
        """Draws an image and its mask."""
        size, channels, window, _ = self._format  # all are square
        category, defect = self.conditions[record.condition], record.defect_type if record.label else None
        image, mask = phantom.draw(category, phantom.index_of(record.path), size, channels, defect)
        return percentile_stretch(image) if window else image, mask


class ArraySource:
    """Normal images in memory, in the format of the networks."""

    root, notes, open, conditions = "memory", (), None, ("images",)

    def __init__(self, images: UInt8[np.ndarray, "n size size channels"]):
        """Takes the images, without a copy.

        Equal images are one group: they are never divided between splits, which depend on the pixels alone.
        """
        self._images = images
        groups = [blake2b(image.tobytes(), digest_size=16).hexdigest() for image in images]
        self.records = [ImageRecord(f"{index:08}", False, group) for index, group in enumerate(groups)]

    def read(self, record: ImageRecord) -> tuple[Pixels, None]:
        """Returns an image, without a mask."""
        return self._images[int(record.path)], None


@dataclass(frozen=True)
class FolderSource:
    """The images of a data folder or archive, which are read from prepared data."""

    root: epath.Path
    records: list[ImageRecord]
    conditions: tuple[str, ...]
    notes: tuple[str, ...]
    image_format: ImageFormat
    locations: dict[str, tuple["PreparedDataset", int, str]]  # dataset, index and feature of an image or mask by path

    def open(self, path: str) -> io.BytesIO:
        """Opens an encoded image or mask. Raises UserError if it was unreadable when the data were prepared."""
        dataset, index, feature = self.locations[path]
        if path in dataset.unreadable:
            raise UserError(dataset.unreadable[path])
        return io.BytesIO(dataset.read(index, feature))

    def read(self, record: ImageRecord) -> tuple[Pixels | UnreadableFile, Mask | UnreadableFile | None]:
        """Decodes an image and its mask. The mask of an unreadable image is not read."""
        path, mask_path = record.path, record.mask
        image = try_read(path, lambda: read_image(self.open(path), *self.image_format))
        if isinstance(image, UnreadableFile) or not mask_path:
            return image, None

        def decode_mask() -> Mask:
            size = image_size(self.open(path))
            return read_mask(self.open(mask_path), self.image_format.size, size, self.image_format.fit)

        return image, try_read(mask_path, decode_mask)


class RoiSource:
    """The images of another source, black outside of a region of interest, and their masks, empty there."""

    def __init__(self, source: ImageSource, roi: Bool[np.ndarray, "size size"]):
        self.root, self.records, self.conditions = source.root, source.records, source.conditions
        self.notes, self.open = source.notes, source.open
        self._read, self._roi = source.read, roi

    def read(self, record: ImageRecord) -> tuple[Pixels | UnreadableFile, Mask | UnreadableFile | None]:
        """Returns an image and its mask if it has one."""
        image, mask = self._read(record)
        if not isinstance(image, UnreadableFile):
            image = image * self._roi[:, :, None]
        return image, mask & self._roi if isinstance(mask, np.ndarray) else mask


def require_data_folder(settings: DataSettings) -> None:
    """Raises UserError if no data folder is set, or if it does not exist and nothing replaces it.

    It imports neither JAX nor TFDS. Earlier extractions, prepared data and the TFDS dataset of the layout can replace
    a missing folder.
    """
    if (layout := settings.layout) is None:
        return
    if not settings.dir:
        raise layout.error("No data folder is set: use --config.data.dir=DIR.")
    tfds_dir, root = tfds_data_dir(settings.tfds_dir), resolve_path(settings.dir)
    if not (
        root.exists()
        or archives.extract_once(root, local_folder(tfds_dir))
        or prepared_paths(tfds_dir, layout.builder, _prepared_root(settings))
        or (layout.tfds_dataset and find_tfds_dataset(tfds_dir, layout.tfds_dataset))
    ):
        raise layout.error(f"There is no folder {root}.")


def open_source(settings: DataSettings) -> ImageSource:
    """Opens the source that the settings name. Raises UserError as `open_folder_source` does."""
    if settings.source == PHANTOM:
        return PhantomSource(settings)
    if settings.source == MEMORY:
        raise UserError(
            "The images of this run were given in Python and are not stored (config.data.source=memory). Call "
            "`AnomalyDetector.fit` with them, or name a folder with --config.data.source=folder --config.data.dir=DIR."
        )
    return open_folder_source(settings)


def open_folder_source(settings: DataSettings) -> FolderSource:
    """Opens a data folder; its data are prepared on first use and when they have changed.

    `settings.dir` is a folder with the layout at most a few levels below, an archive of one, or the TFDS dataset of
    the layout. Raises UserError if it is missing or has another layout, a category is unknown, there are too few normal
    images, prepared data cannot be written, or a package is not installed.
    """
    layout = settings.layout
    assert layout is not None  # the phantom has no folder
    require_data_folder(settings)
    try:  # TFDS takes longer to import than the phantom to draw
        from bigan_jax.data.tfds import class_folders, prepared
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: run pip install -e . again.") from error
    tfds_dir, root, key = tfds_data_dir(settings.tfds_dir), resolve_path(settings.dir), _prepared_root(settings)
    folder, notes = _open_layout_root(settings, root, tfds_dir)

    def prepare_tfds_dataset(name: str, version: epath.Path) -> "PreparedDataset":
        def open_data() -> tuple[Listing, DataFolder]:
            class_folder = class_folders.open_class_folders(version)
            return layout.list_folder(class_folder, Selection())[""], class_folder

        path = prepared_path(tfds_dir, layout.builder, name, version)
        return prepared.reopen_or_prepare(layout, path, class_folders.fingerprint(version), open_data)

    def prepare_listing(name: str, listing: Listing, folder: DataFolder) -> "PreparedDataset":
        path = prepared_path(tfds_dir, layout.builder, name or root.name, key)
        fingerprint = prepared.fingerprint(listing, folder)
        return prepared.reopen_or_prepare(layout, path, fingerprint, lambda: (listing, folder))

    if layout.tfds_dataset and is_tfds_dataset(root, layout.tfds_dataset):
        datasets = [prepare_tfds_dataset(layout.tfds_dataset, root)]
    elif folder and folder.images():
        listings = layout.list_folder(folder, settings.selection)
        datasets = [prepare_listing(*item, folder) for item in listings.items()]
    elif datasets := [*filter(None, map(prepared.reopen, prepared_paths(tfds_dir, layout.builder, key)))]:
        notes = (f"{root} is missing or empty: the data prepared from it in {tfds_dir} are used",)
    elif layout.tfds_dataset and (version := find_tfds_dataset(tfds_dir, layout.tfds_dataset)):
        datasets = [prepare_tfds_dataset(layout.tfds_dataset, version)]
        notes = (f"{root} is missing or empty: the TFDS dataset {version} is used",)
    elif folder:
        layout.list_folder(folder, settings.selection)  # raises, as it is empty
    else:
        raise layout.error(f"There is no folder {root}.")
    return _merge(layout, settings, root, datasets, notes)


def _prepared_root(settings) -> epath.Path:
    """Returns the path that identifies prepared data: the data folder, and the names of its labels if they are set."""
    _, normal, anomalous = settings.selection
    root = resolve_path(settings.dir)
    return root / f"normal={normal};anomalous={anomalous}" if normal or anomalous else root


def _open_layout_root(settings, root, tfds_dir) -> tuple[DataFolder | None, tuple[str, ...]]:
    """Opens the folder in which the layout begins; None if there is no data folder."""
    root = archives.extract_once(root, local_folder(tfds_dir)) or root
    if not root.is_dir():
        return None, ()
    layout, folder = settings.layout, open_folder(root)
    if folder.unlistable and not settings.skip_unreadable:
        n_files = len(folder.files) + len(folder.unlistable)
        raise unreadable_error(folder.unlistable, root, n_files, "files and folders")
    notes = unreadable_note(folder.unlistable) + _unread_notes(folder)
    path, *others = find_layout_root(layout, folder, settings.selection) or ("",)
    if not layout.reads_metadata:
        notes += tuple(f"{file} is not used by the source {layout.name!r}" for file in folder.metadata_files())
    if not path:
        return folder, notes
    skipped = ", ".join(f"{name} ({len(folder.images(name))} images)" for name in others)
    note = f"the layout begins in the folder {path}" + f"; {skipped} skipped" * bool(others)
    used = tuple(f"{name}/" for name in (path, *others))
    if unused := [file for file in folder.images() if not file.startswith(used)]:
        note += f"; {len(unused)} images elsewhere in {root} are not used: {count_by_folder(unused, 2)}"
    notes = (note, *notes)
    layout_root = folder.subfolder(path)
    if layout.reads_metadata:
        unused = {*folder.metadata_files()} - {f"{path}/{file}" for file in layout_root.metadata_files()}
        notes += tuple(f"{file} is not used: move it to {path}" for file in sorted(unused))
    return layout_root, notes


def _unread_notes(folder):
    links = [name for name in folder.unread if name.endswith("/")]
    files = [name for name in folder.unread if name not in links]
    suffixes = Counter(PurePosixPath(name).suffix.lower() or "without a suffix" for name in files)
    counts = ", ".join(f"{n} {suffix}" for suffix, n in sorted(suffixes.items()) if suffix not in _TEXTS)
    notes = (f"files in unsupported formats: {counts}. Convert them to PNG or JPEG",) * bool(counts)
    return notes + tuple(f"{name}: {LINKED_FOLDER}" for name in links[:MAX_LISTED])


def _merge(layout, settings, root, datasets, notes) -> FolderSource:
    """Joins the prepared datasets of a folder, restricted to the selected categories."""
    category = settings.category.strip()
    known = [name for dataset in datasets for name in dataset.listing.conditions]
    skipped = [name for dataset in datasets for name in dataset.listing.skipped]
    if category and not known + skipped:
        raise UserError(
            f"config.data.category={category}: {root} has no categories when the source {layout.name!r} reads it. "
            "Leave the field empty, or use a folder with those images alone."
        )
    names = select_categories(category, known + skipped) if known + skipped else [layout.name]
    if not (conditions := tuple(name for name in names if name not in skipped)):
        raise layout.error(f"{', '.join(names)}: there are no normal images in {root}.")
    notes += tuple(f"{n} skipped: it has no normal images" for n in names if n in skipped)
    records, locations = [], {}
    for dataset in datasets:
        notes += dataset.listing.notes
        for i, r in enumerate(dataset.listing.records):
            name = dataset.listing.conditions[r.condition] if known else conditions[0]
            if name in conditions:
                official = r.official_split if settings.official_split else None
                records.append(r._replace(condition=conditions.index(name), official_split=official))
                locations[r.path] = (dataset, i, "image")
                if r.mask:
                    locations[r.mask] = (dataset, i, "mask")
    if (n_normal := sum(not r.label for r in records)) < MIN_NORMAL:
        raise layout.error(
            f"Only {n_normal} normal images were found in {root}. At least {MIN_NORMAL} are required, and good "
            "results need hundreds."
        )
    return FolderSource(root, records, conditions, notes, settings.image_format, locations)
