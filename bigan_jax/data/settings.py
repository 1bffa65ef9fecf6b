"""The settings of a dataset: where its images are, how they are read and how they are split."""

import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool

from bigan_jax.data import layouts
from bigan_jax.data.files.fit import FITS
from bigan_jax.data.files.images import ImageFormat
from bigan_jax.data.layouts.layout import Layout
from bigan_jax.data.layouts.names import Selection
from bigan_jax.data.roi import roi_pixels
from bigan_jax.data.split import Fold
from bigan_jax.errors import UserError, unknown_name
from bigan_jax.value_checks import COUNT, DECAY, Range, require

PHANTOM = "phantom"
MEMORY = "memory"  # images that were given in Python (`source.ArraySource`)
_CHANNELS = Range("1 (gray) or 3 (RGB)", lambda n: n in (1, 3))
_FOLDS = Range("0 (none) or an integer of at least 2", lambda n: isinstance(n, int) and (n == 0 or n >= 2))
_IMAGE_SIZE = Range("an integer of at least 8", lambda n: isinstance(n, int) and n >= 8)


DUPLICATE_POLICIES = ("stop", "drop", "drop_near", "keep")


@dataclass(frozen=True)
class DataSettings:
    """The fields of `config.data`. Raises UserError with the name of the field for a value out of range."""

    source: str  # the name of a layout (`layouts.LAYOUTS`), "phantom" or "memory"
    dir: str | os.PathLike = ""  # a folder or an archive of it, local or in a bucket (gs://, s3://)
    tfds_dir: str | os.PathLike = ""  # of prepared data; "": TFDS_DATA_DIR or ~/tensorflow_datasets
    category: str = ""  # comma list of phantom domains, MVTec categories or plant species; "" or "all" for all
    normal: str = ""  # comma list of names or patterns of the folders or files of normal images; "": well-known names
    anomalous: str = ""  # the same of anomalous images
    image_size: int = 128  # side of the square images that the networks see, in pixels
    channels: int = 1  # 1 (gray) or 3 (RGB)
    window: bool = False  # whether each image is stretched from its own 1st to its 99th percentile
    fit: str = "stretch"  # how images that are not square become square: one of FITS
    roi: str | os.PathLike = ""  # the file of the region of interest; "": all pixels count
    split_seed: int = 0  # of the assignment of groups to splits
    test_fraction: float = 0.2  # of the normal images
    calibration_fraction: float = 0.1  # of the normal images that are not test images; see split.count_calibration
    calibration_folds: int = 0  # from 2 on: one of this number of equal folds of these images calibrates instead
    calibration_fold: int = 0  # its index, from 0
    official_split: bool = True  # whether MVTec keeps its own test images
    skip_unreadable: bool = False  # whether unreadable files are left out and counted, in place of an error
    stream: bool = False  # whether training images are decoded when they are needed and never all in memory
    duplicates: str = "stop"  # what happens at exact duplicates across splits: one of DUPLICATE_POLICIES
    phantom_normal: int = 400  # images of each category
    phantom_anomalous: int = 100
    name: str = ""  # what tables call the dataset

    def __post_init__(self):
        sources = (PHANTOM, MEMORY, *layouts.LAYOUTS)
        if self.source not in sources:
            raise unknown_name("config.data.source", self.source, sources)
        if self.source == PHANTOM and self.dir:
            raise UserError(
                f"config.data.dir={self.dir} is not used: the images of the phantom are drawn. Name the dataset with "
                "the layout of the folder, such as --config=configs/cae.py:folder."
            )
        if self.source == PHANTOM and (self.normal or self.anomalous):
            raise UserError("config.data.normal and config.data.anomalous name folders, and the phantom has none.")
        require("data.image_size", self.image_size, _IMAGE_SIZE)
        require("data.channels", self.channels, _CHANNELS)
        require("data.test_fraction", self.test_fraction, DECAY)
        require("data.calibration_fraction", self.calibration_fraction, DECAY)
        require("data.calibration_folds", self.calibration_folds, _FOLDS)
        require("data.calibration_fold", self.calibration_fold, COUNT)
        if self.calibration_fold >= max(self.calibration_folds, 1):
            raise UserError(
                f"config.data.calibration_fold must be below config.data.calibration_folds={self.calibration_folds} "
                f"(got {self.calibration_fold})."
            )
        require("data.phantom_normal", self.phantom_normal, COUNT)
        require("data.phantom_anomalous", self.phantom_anomalous, COUNT)
        if self.fit not in FITS:
            raise unknown_name("config.data.fit", self.fit, FITS)
        if self.roi and self.window:
            raise UserError(
                "config.data.window stretches the contrast by all pixels: leave it out with config.data.roi."
            )
        if self.duplicates not in DUPLICATE_POLICIES:
            raise unknown_name("config.data.duplicates", self.duplicates, DUPLICATE_POLICIES)

    @property
    def layout(self) -> Layout | None:
        """The layout of the data folder; None for images that are in no folder."""
        return layouts.LAYOUTS.get(self.source)

    @property
    def fold(self) -> Fold | None:
        """The fold that calibrates, if there are folds."""
        return Fold(self.calibration_fold, self.calibration_folds) if self.calibration_folds else None

    @property
    def selection(self) -> Selection:
        """The selected categories, and the names of normal and anomalous images."""
        return Selection(self.category, self.normal, self.anomalous)

    @property
    def image_format(self) -> ImageFormat:
        """Size, channels, contrast and fit of the images as the networks see them."""
        return ImageFormat(self.image_size, self.channels, self.window, self.fit)

    @cached_property
    def roi_pixels(self) -> Bool[np.ndarray, "h w"] | None:
        """Which pixels count; None if all do. Raises UserError if the file cannot be read or nothing is inside."""
        pixels = roi_pixels(self.roi, self.image_size, self.fit) if self.roi else None
        return None if pixels is None or pixels.all() else pixels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images as the networks see them."""
        return self.image_size, self.image_size, self.channels
