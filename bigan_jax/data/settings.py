"""The settings of a dataset: where its images are, how they are read and how they are split."""

import os
from dataclasses import dataclass

from bigan_jax.data import audit, layouts
from bigan_jax.data.files.images import ImageFormat
from bigan_jax.data.layouts.base import Layout
from bigan_jax.errors import UserError, unknown_name
from bigan_jax.validation import COUNT, DECAY, Range, require

PHANTOM = "phantom"
_CHANNELS = Range("1 (gray) or 3 (RGB)", lambda n: n in (1, 3))
_IMAGE_SIZE = Range("an integer of at least 8", lambda n: isinstance(n, int) and n >= 8)


@dataclass(frozen=True)
class DataSettings:
    """The fields of `config.data`, checked.

    Attributes:
      source: the name of a layout (`layouts.LAYOUTS`), or "phantom".
      dir: a folder or an archive of it, local or in a bucket (gs://, s3://); "" for the phantom.
      tfds_dir: where prepared data go; "" means TFDS_DATA_DIR or ~/tensorflow_datasets.
      category: comma list of phantom domains, MVTec categories or plant species; "" or "all" for all. Each is a
        condition.
      image_size: side of the square images that the networks see, in pixels.
      channels: 1 (gray) or 3 (RGB).
      window: whether each image is stretched from its own 1st to its 99th percentile.
      split_seed: of the assignment of groups to splits.
      test_fraction: of the normal images.
      calibration_fraction: of the normal images that are not test images.
      official_split: whether MVTec keeps its own test images.
      skip_unreadable: whether unreadable files are left out and counted, in place of an error.
      stream: whether training images are decoded when they are needed and never all in memory.
      duplicates: what happens at exact duplicates across splits: one of `audit.POLICIES`.
      phantom_normal: number of normal phantom images of each category.
      phantom_anomalous: number of anomalous phantom images of each category.
      name: what tables call the dataset.

    Raises:
      UserError: a value is out of range; the message names the field.
    """

    source: str
    dir: str | os.PathLike = ""
    tfds_dir: str | os.PathLike = ""
    category: str = ""
    image_size: int = 128
    channels: int = 1
    window: bool = False
    split_seed: int = 0
    test_fraction: float = 0.2
    calibration_fraction: float = 0.1
    official_split: bool = True
    skip_unreadable: bool = False
    stream: bool = False
    duplicates: str = "stop"
    phantom_normal: int = 400
    phantom_anomalous: int = 100
    name: str = ""

    def __post_init__(self):
        sources = (PHANTOM, *layouts.LAYOUTS)
        if self.source not in sources:
            raise unknown_name("config.data.source", self.source, sources)
        if self.source == PHANTOM and self.dir:
            raise UserError(
                f"config.data.dir={self.dir} is not used: the images of the phantom are drawn. Name the dataset with "
                "the layout of the folder, such as --config=configs/cae.py:folder."
            )
        require("data.image_size", self.image_size, _IMAGE_SIZE)
        require("data.channels", self.channels, _CHANNELS)
        for field in ("test_fraction", "calibration_fraction"):
            require(f"data.{field}", getattr(self, field), DECAY)
        for field in ("phantom_normal", "phantom_anomalous"):
            require(f"data.{field}", getattr(self, field), COUNT)
        audit.validate_policy(self.duplicates)

    @property
    def layout(self) -> Layout | None:
        """The layout of the data folder; None for the phantom."""
        return layouts.LAYOUTS.get(self.source)

    @property
    def image_format(self) -> ImageFormat:
        """Size, channels and contrast of the images as the networks see them."""
        return ImageFormat(self.image_size, self.channels, self.window)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images as the networks see them."""
        return self.image_size, self.image_size, self.channels
