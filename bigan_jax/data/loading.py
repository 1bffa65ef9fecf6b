"""Loads a dataset: reads the images of a source and splits them."""

from collections.abc import Collection

import numpy as np

from bigan_jax.data.dataset import Dataset, Images
from bigan_jax.data.files.images import ImageFormat, image_size, map_in_threads
from bigan_jax.data.files.medical import is_medical, slice_notes, split_slice
from bigan_jax.data.files.unreadable import (
    UnreadableFile,
    split_unreadable,
    try_read,
    unreadable_error,
    unreadable_note,
)
from bigan_jax.data.records import ImageRecord
from bigan_jax.data.roi import require_shape_of_images
from bigan_jax.data.settings import PHANTOM, DataSettings
from bigan_jax.data.source import ImageSource, RoiSource, open_source
from bigan_jax.data.split import CALIBRATION, TEST, TRAIN, split_records
from bigan_jax.data.streaming import LazyImages
from bigan_jax.errors import UserError
from bigan_jax.runtime import distributed

MAX_MASK_COVER = 0.9  # fraction of the image; a mask that covers more is likely inverted
_Loaded = tuple[Images, list[UnreadableFile]]
# The brightest level of images that are called dark: a quarter of the range, which 14-bit values in 16 bits reach. The
# 10 and 12 bits of other cameras reach a sixteenth or less.
_DARK = 64


def load_dataset(settings: DataSettings, trained: Collection[str] = (), source: ImageSource | None = None) -> Dataset:
    """Reads and splits the images of a data folder, of the phantom, or of another source.

    A data folder is prepared on first use, and when it has changed, as TFDS datasets in `settings.tfds_dir`
    (`bigan_jax.data.tfds.prepared`). Images are decoded to squares of `settings.image_size`, as `settings.fit` says.
    With `settings.stream`, training images are decoded once to check them, and later on demand
    (`LazyImages`), so that they are never all in memory; calibration and test images always are.

    Args:
      settings: the source, and how images are read and split.
      trained: the paths of images that a run was trained on (`split_records`).
      source: replaces the source that the settings name.

    Raises:
      UserError: a name, folder or layout is wrong, images are too few for the splits, or files cannot be read. All
        unreadable files are in one error; with `settings.skip_unreadable` they are skipped and counted in the notes.
    """
    if source is None:
        with distributed.primary_first("preparing data"):  # processes may share prepared data
            source = open_source(settings)
    source, roi_notes = _with_roi(source, settings)
    records, split_notes = split_records(
        source.records,
        settings.split_seed,
        settings.test_fraction,
        settings.calibration_fraction,
        trained,
        settings.fold,
    )
    splits, unreadable = {}, []
    for name in (CALIBRATION, TEST, TRAIN):
        read = _read_on_demand if settings.stream and name == TRAIN else _read
        splits[name], failed = read(source, records[name], settings.image_format)
        unreadable += failed
    if unreadable and not settings.skip_unreadable:
        raise unreadable_error(unreadable, source.root, len(source.records), "images")
    for name in (TRAIN, CALIBRATION, TEST):
        if records[name] and not len(splits[name].label):
            raise UserError(
                f"No readable image is left for {name}: repair the unreadable files, or remove them, so that the split "
                "is made without them."
            )
    requested = [r.path for chosen in records.values() for r in chosen]
    loaded = [path for images in splits.values() for path in images.path]
    notes = source.notes + roi_notes + split_notes + unreadable_note(unreadable)
    notes += slice_notes(requested, [*loaded, *(file.path for file in unreadable)])
    notes += _mask_notes(records[TEST], splits[TEST], settings.roi_pixels is not None)
    notes += _dark_note(splits[CALIBRATION].image, settings)
    if len(splits[TEST].label) and not splits[TEST].label.any():
        notes += ("there are no anomalous test images: only false alarms can be measured",)
    return Dataset(splits[TRAIN], splits[CALIBRATION], splits[TEST], source.conditions, notes, source.open)


def _with_roi(source: ImageSource, settings: DataSettings) -> tuple[ImageSource, tuple[str, ...]]:
    """Returns the source within the region of interest, and a note about it, if there is one."""
    if not settings.roi:
        return source, ()
    if any(is_medical(r.path) for r in source.records):
        raise UserError("config.data.roi is not for DICOM and NIfTI, whose contrast is stretched by all pixels.")
    if (read := source.open) and source.records:  # images in memory and those that are drawn are square already
        path = source.records[0].path
        size = try_read(path, lambda: image_size(read(path)))
        if not isinstance(size, UnreadableFile):
            require_shape_of_images(settings.roi, size)
    if (roi := settings.roi_pixels) is None:
        return source, (f"config.data.roi={settings.roi} is white everywhere: all pixels count",)
    return RoiSource(source, roi), (f"only the region of interest counts, {roi.mean():.1%} of the pixels",)


def _mask_notes(records: list[ImageRecord], test: Images, has_roi: bool) -> tuple[str, ...]:
    """Returns notes on masks of anomalous images that are empty, or cover so much that they are likely inverted."""
    with_mask = {r.path for r in records if r.label and r.mask}
    cover = {
        path: mask.mean()
        for path, label, mask in zip(test.path, test.label, test.mask, strict=True)
        if label and path in with_mask
    }
    empty = [path for path, value in cover.items() if value == 0]
    full = [path for path, value in cover.items() if value > MAX_MASK_COVER]
    notes = ()
    if empty:
        notes += (
            f"{len(empty)} of {len(cover)} masks are empty, such as that of {empty[0]}: pixel metrics exclude their "
            "images. Every value except zero must be defect"
            + ", and defects outside of config.data.roi do not count"
            * has_roi,
        )
    if full:
        notes += (
            f"{len(full)} of {len(cover)} masks cover more than {100 * MAX_MASK_COVER:g} % of the image, such as that "
            f"of {full[0]}. Are they inverted? Zero must be the background, and every other value defect",
        )
    return notes


def is_dark(images: np.ndarray, window: bool) -> bool:
    """Whether one or more images are nearly black: none reaches a quarter of the range. With a `window` none is."""
    return not window and 0 < int(images.max(initial=0)) <= _DARK


def _dark_note(images: np.ndarray, settings: DataSettings) -> tuple[str, ...]:
    """Warns of images that are nearly black, such as 12-bit values in 16-bit files."""
    brightest = int(images.max(initial=0))
    if settings.source == PHANTOM or not is_dark(images, settings.window):
        return ()
    return (
        f"the images are dark: their brightest level is {brightest} of 255, as with 10, 12 or 14 bits stored in 16. "
        "--config.data.window=true stretches the contrast of each image",
    )


def _read(source: ImageSource, records: list[ImageRecord], image_format: ImageFormat) -> _Loaded:
    """Reads images and masks; an image stays if only its mask is unreadable."""
    results = map_in_threads(source.read, records, "images")
    unreadable = [x for result in results for x in result if isinstance(x, UnreadableFile)]
    rows = []
    for record, (image, mask) in zip(records, results, strict=True):
        row = record, image, None if isinstance(mask, UnreadableFile) else mask
        if not isinstance(image, UnreadableFile) and _is_informative(*row):
            rows.append(row)
    size, channels = image_format[:2]
    images = np.zeros((len(rows), size, size, channels), np.uint8)
    masks = np.zeros(images.shape[:3], bool)
    for i, (_, image, mask) in enumerate(rows):
        images[i] = image
        masks[i] = False if mask is None else mask
    return _to_images([record for record, *_ in rows], images, masks), unreadable


def _is_informative(record: ImageRecord, image: np.ndarray, mask: np.ndarray | None) -> bool:
    """Whether an image is used; blank slices and slices of an anomaly without a defect are not."""
    is_slice = split_slice(record.path)[1] is not None
    return not is_slice or bool(np.ptp(image) > 0 and (mask is None or mask.any()))


def _read_on_demand(source: ImageSource, records: list[ImageRecord], image_format: ImageFormat) -> _Loaded:
    """The same for training images, without keeping them in memory."""
    unreadable = []
    if source.open:  # drawn images need no check

        def is_usable(record: ImageRecord) -> bool | UnreadableFile:
            image, _ = source.read(record)
            failed = isinstance(image, UnreadableFile)
            return image if failed else _is_informative(record, image, None)

        usable, unreadable = split_unreadable(map_in_threads(is_usable, records, "images"))
        records = [record for record, keep in zip(records, usable, strict=True) if keep]

    def decode(i: int) -> np.ndarray:
        image, _ = source.read(records[i])
        if isinstance(image, UnreadableFile):
            raise UserError(image.reason)
        return image

    size, channels = image_format[:2]
    images = LazyImages(decode, [r.path for r in records], (size, size, channels))
    # Training images are normal: their masks are a view of one value, which takes no memory.
    masks = np.broadcast_to(False, (len(records), size, size))
    return _to_images(records, images, masks), unreadable


def _to_images(records, images, masks) -> Images:
    label = np.array([r.label for r in records], bool)
    # The mask of an anomalous image without a defect pixel counts as unknown.
    has_mask = ~label
    has_mask[label] = masks[label].any(axis=(1, 2))
    condition = np.array([r.condition for r in records], np.int32)
    text = {name: np.array([getattr(r, name) for r in records], str) for name in ("group", "defect_type", "path")}
    return Images(image=images, label=label, condition=condition, mask=masks, has_mask=has_mask, **text)
