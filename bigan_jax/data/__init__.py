"""A folder of pictures, or the built-in phantom, to arrays that train, calibrate and test."""

from pathlib import Path

import numpy as np

from bigan_jax.data import phantom
from bigan_jax.data.decode import (
    in_threads,
    list_pictures,
    read_image,
    read_images,
    read_mask,
    read_masks,
)
from bigan_jax.data.pictures import Dataset, Pictures, concatenate
from bigan_jax.data.sources import EXPECTED, choose, list_source, misplaced
from bigan_jax.data.split import CALIBRATION, TEST, TRAIN, Record, split
from bigan_jax.errors import UserError, unknown

__all__ = [
    "SOURCES",
    "Dataset",
    "Pictures",
    "concatenate",
    "list_pictures",
    "load",
    "read_image",
    "read_images",
    "read_mask",
]

SOURCES = ("phantom", *EXPECTED)


def load(
    source: str,
    *,
    dir: str | Path | None,
    category: str,
    image_size: int,
    channels: int,
    split_seed: int,
    test_fraction: float = 0.2,
    calibration_fraction: float = 0.1,
    official_split: bool = True,
    phantom_normal: int = 500,
    phantom_anomalous: int = 100,
) -> Dataset:
    """Decode one of SOURCES into `image_size` square pictures with 1 (grey) or 3 (RGB) channels.

    `category` is a comma list, or "" or "all" for all there are: phantom domains, MVTec
    categories or plant species, each of them a condition. Normal pictures are split by group
    (`bigan_jax.data.split`); anomalous ones are test only. MVTec keeps its official test
    pictures unless `official_split` is False. The two phantom counts are for each category;
    the phantom needs no `dir`. Pictures that are not square are stretched.

    Raises UserError for whatever the user can mend: names, folders, layouts, broken files.
    """
    if source not in SOURCES:
        raise unknown("data source", source, SOURCES)
    if channels not in (1, 3):
        raise UserError(f"data.channels is {channels}: it must be 1 (grey) or 3 (RGB).")
    if image_size < 8:
        raise UserError(f"data.image_size is {image_size}: it must be at least 8.")
    if source == "phantom":
        conditions = tuple(choose(category, phantom.DOMAINS))
        records = phantom.records(conditions, phantom_normal, phantom_anomalous)
        notes = ()

        def read(part: list[Record]) -> Pictures:
            return _phantom_pictures(part, conditions, image_size, channels)

    elif not dir:
        raise misplaced(source, "No data folder was given: --config.data.dir=DIR.")
    else:
        root = Path(dir).expanduser()
        records, conditions, notes = list_source(source, root, category, official_split)

        def read(part: list[Record]) -> Pictures:
            return _read_pictures(part, root, image_size, channels)

    parts, left_out = split(records, split_seed, test_fraction, calibration_fraction)
    train, calibration, test = (read(parts[name]) for name in (TRAIN, CALIBRATION, TEST))
    notes += left_out
    if not test.label.any():
        notes += ("the test has no anomalous pictures: only false alarms can be measured",)
    return Dataset(train, calibration, test, conditions, notes)


def _read_pictures(part: list[Record], root: Path, size: int, channels: int) -> Pictures:
    image = read_images(root, [r.path for r in part], size, channels)
    mask = np.zeros((len(part), size, size), bool)
    known = [i for i, r in enumerate(part) if r.mask]
    mask[known] = read_masks(root, [part[i].mask for i in known], size)
    return _pictures(part, image, mask)


def _phantom_pictures(
    part: list[Record], conditions: tuple[str, ...], size: int, channels: int
) -> Pictures:
    def draw(r: Record):
        kind = r.kind if r.label else None
        return phantom.draw(conditions[r.condition], phantom.index_of(r.path), size, channels, kind)

    image = np.zeros((len(part), size, size, channels), np.uint8)
    mask = np.zeros((len(part), size, size), bool)
    for i, (picture, defect) in enumerate(in_threads(draw, part, "phantoms")):
        image[i], mask[i] = picture, defect
    return _pictures(part, image, mask)


def _pictures(part: list[Record], image: np.ndarray, mask: np.ndarray) -> Pictures:
    label = np.array([r.label for r in part], bool)
    return Pictures(
        image=image,
        label=label,
        group=np.array([r.group for r in part], str),
        condition=np.array([r.condition for r in part], np.int32),
        kind=np.array([r.kind for r in part], str),
        path=np.array([r.path for r in part], str),
        mask=mask,
        # An anomalous picture without one defect pixel says nothing of where its defect is.
        has_mask=~label | mask.any(axis=(1, 2)),
    )
