"""A folder of pictures, or the built-in phantom, to arrays that train, calibrate and test."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from bigan_jax.data import phantom
from bigan_jax.data.dataset import Dataset, Images
from bigan_jax.data.files.images import (
    ImageFormat,
    image_size,
    map_in_threads,
    read_image,
    read_mask,
)
from bigan_jax.data.files.medical import percentile_stretch, slice_notes, split_slice
from bigan_jax.data.files.unreadable import UnreadableFile, unreadable_error, unreadable_note
from bigan_jax.data.layouts.base import layout_error, select_categories
from bigan_jax.data.records import ImageRecord
from bigan_jax.data.settings import DataSettings
from bigan_jax.data.split import CALIBRATION, TEST, TRAIN, split
from bigan_jax.data.streaming import LazyImages
from bigan_jax.errors import UserError
from bigan_jax.runtime import distributed

if TYPE_CHECKING:
    from bigan_jax.data.source import ImageSource


def load_dataset(settings: DataSettings) -> Dataset:
    """Decode one of SOURCES into `image_size` square pictures with 1 (gray) or 3 (RGB) channels.

    With `window` each picture is stretched from its own 1st to its 99th percentile, so that its
    overall brightness is not seen.

    `category` is a comma list, or "" or "all" for all there are: phantom domains, MVTec
    categories or plant species, each of them a condition. Normal pictures are split by group
    (`bigan_jax.data.split`); anomalous ones are test only. MVTec keeps its official test
    pictures unless `official_split` is False. The two phantom counts are for each category;
    the phantom needs no `dir`. Pictures that are not square are stretched.

    With `stream` the training pictures are LazyImages: decoded once to see that they can be, then
    whenever they are asked for, and never all in memory. Those that calibrate and test are in
    memory all the same.

    `dir` is a folder or an archive of it, here or in a bucket (gs://, s3://). It is prepared on
    first use, and when it has changed, as a TFDS data set in `tfds_dir`, else TFDS_DATA_DIR, else
    ~/tensorflow_datasets (`bigan_jax.data.prepared`).

    Raises UserError for whatever the user can mend: names, folders, layouts, and broken files,
    all of them together; with `skip_unreadable` these are left out, and counted in the notes.
    """
    broken: list[UnreadableFile] = []
    form = ImageFormat(settings.image_size, settings.channels, settings.window)
    if settings.source == "phantom":
        conditions = tuple(select_categories(settings.category, phantom.DOMAINS))
        records = phantom.records(conditions, settings.phantom_normal, settings.phantom_anomalous)
        notes, opened = (), None

        def read(part: list[ImageRecord]) -> Images:
            return _phantom_pictures(part, conditions, form)

        def read_lazily(part: list[ImageRecord]) -> Images:
            def draw(r: ImageRecord) -> np.ndarray:
                number = phantom.index_of(r.path)
                return _draw(conditions[r.condition], number, form)[0]

            return _lazy_pictures(part, draw, form)

    elif not settings.dir:
        raise layout_error(settings.source, "No data folder was given: --config.data.dir=DIR.")
    else:
        try:  # only now: TFDS takes longer to import than a phantom to draw
            from bigan_jax.data.source import open_source
        except ImportError as error:
            raise UserError(f"{error.name} is not installed: pip install -e . again.") from error
        with distributed.primary_first("preparing data"):  # which they may share
            catalog = open_source(
                settings.source,
                settings.dir,
                settings.tfds_dir,
                settings.category.strip(),
                settings.official_split,
            )
        root, records, conditions, notes, _ = catalog
        opened = catalog.open

        def read(part: list[ImageRecord]) -> Images:
            pictures, unread = _read_pictures(part, catalog, form)
            broken.extend(unread)
            return pictures

        def read_lazily(part: list[ImageRecord]) -> Images:
            def decode(r: ImageRecord) -> np.ndarray:
                return read_image(catalog.open(r.path), *form)

            part, unread = _usable(part, catalog, form)
            broken.extend(unread)
            return _lazy_pictures(part, decode, form)

    parts, left_out = split(
        records, settings.split_seed, settings.test_fraction, settings.calibration_fraction
    )
    calibration, test = read(parts[CALIBRATION]), read(parts[TEST])
    train = (read_lazily if settings.stream else read)(parts[TRAIN])
    if broken and not settings.skip_unreadable:
        raise unreadable_error(broken, root, len(records), "pictures")
    asked = [r.path for part in parts.values() for r in part]
    kept = [path for part in (train, calibration, test) for path in part.path]
    notes += (
        left_out + unreadable_note(broken) + slice_notes(asked, [*kept, *(b.path for b in broken)])
    )
    for name, part in (TRAIN, train), (CALIBRATION, calibration), (TEST, test):
        if parts[name] and not len(part.label):
            raise UserError(
                f"No picture that can be read is left for {name}: mend the files, or "
                "let others be in it by another data.split_seed."
            )
    if not test.label.any():
        notes += ("the test has no anomalous pictures: only false alarms can be measured",)
    return Dataset(train, calibration, test, conditions, notes, opened)


def _read_pictures(
    part: list[ImageRecord], catalog: "ImageSource", form: ImageFormat
) -> tuple[Images, list[UnreadableFile]]:
    """What can be read of `part`, and what cannot; a picture stays when its mask is broken."""
    paths, size = [r.path for r in part], form.size
    images, broken = catalog.read_all(
        lambda picture, _: read_image(picture, *form), paths, "pictures"
    )
    read = [(r, image) for r, image in zip(part, images, strict=True) if image is not None]
    picture_of = {r.mask: r.path for r, _ in read if r.mask}
    masks, more = catalog.read_all(
        lambda mask, path: read_mask(mask, size, image_size(catalog.open(picture_of[path]))),
        list(picture_of),
        "masks",
    )
    mask_of = dict(zip(picture_of, masks, strict=True))
    read = [(r, image, mask_of.get(r.mask)) for r, image in read]
    read = [row for row in read if _tells(*row)]
    image, mask = _blank(len(read), form)
    for i, (_, picture, defect) in enumerate(read):
        image[i] = picture
        mask[i] = False if defect is None else defect
    return _pictures([r for r, *_ in read], image, mask), broken + more


def _tells(r: ImageRecord, image: np.ndarray, mask: np.ndarray | None) -> bool:
    """Of a volume's slices those tell nothing that are blank, or that their own mask shows to be
    without the defect for which the volume is anomalous."""
    whole = split_slice(r.path)[1] is None
    return whole or (np.ptp(image) > 0 and (mask is None or bool(mask.any())))


def _usable(
    part: list[ImageRecord], catalog: "ImageSource", form: ImageFormat
) -> tuple[list[ImageRecord], list[UnreadableFile]]:
    """Which pictures of `part`, all normal, `_read_pictures` would keep; none stays in memory."""
    record_of = {r.path: r for r in part}
    tells, broken = catalog.read_all(
        lambda picture, path: _tells(record_of[path], read_image(picture, *form), None),
        list(record_of),
        "pictures",
    )
    return [r for r, usable in zip(part, tells, strict=True) if usable], broken


def _lazy_pictures(
    part: list[ImageRecord], read: Callable[[ImageRecord], np.ndarray], form: ImageFormat
) -> Images:
    names = [r.path for r in part]
    size = form.size
    image = LazyImages(lambda i: read(part[i]), names, (size, size, form.channels))
    # What trains is normal: no defects, in a view that takes no memory.
    return _pictures(part, image, np.broadcast_to(False, (len(part), size, size)))


def _phantom_pictures(
    part: list[ImageRecord], conditions: tuple[str, ...], form: ImageFormat
) -> Images:
    def draw(r: ImageRecord):
        kind = r.defect_type if r.label else None
        return _draw(conditions[r.condition], phantom.index_of(r.path), form, kind)

    image, mask = _blank(len(part), form)
    for i, (picture, defect) in enumerate(map_in_threads(draw, part, "phantoms")):
        image[i], mask[i] = picture, defect
    return _pictures(part, image, mask)


def _draw(
    category: str, number: int, form: ImageFormat, kind: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    picture, mask = phantom.draw(category, number, form.size, form.channels, kind)
    return percentile_stretch(picture) if form.window else picture, mask


def _blank(count: int, form: ImageFormat) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and masks, to be filled."""
    image = np.zeros((count, form.size, form.size, form.channels), np.uint8)
    return image, np.zeros(image.shape[:3], bool)


def _pictures(part: list[ImageRecord], image: np.ndarray, mask: np.ndarray) -> Images:
    label = np.array([r.label for r in part], bool)
    # An anomalous picture without one defect pixel says nothing of where its defect is.
    has_mask = ~label
    has_mask[label] = mask[label].any(axis=(1, 2))
    return Images(
        image=image,
        label=label,
        group=np.array([r.group for r in part], str),
        condition=np.array([r.condition for r in part], np.int32),
        defect_type=np.array([r.defect_type for r in part], str),
        path=np.array([r.path for r in part], str),
        mask=mask,
        has_mask=has_mask,
    )
