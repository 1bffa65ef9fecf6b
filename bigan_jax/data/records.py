"""What is known of each image before it is decoded: its place, label, group and condition."""

from typing import NamedTuple


class ImageRecord(NamedTuple):
    """An image that is not decoded yet; `path` and `masks` are relative to the data folder."""

    path: str
    label: bool  # True: anomalous
    group: str  # images of a group are never divided between splits
    condition: int = 0  # index into the conditions of the listing or dataset
    defect_type: str = "good"
    masks: tuple[str, ...] = ()  # of which the union counts
    official_split: str | None = None  # TRAIN or TEST, as published
    camera: tuple[str, int] | None = None  # sequence and number; `group` is then their block

    @property
    def mask(self) -> str | None:
        """The first of the masks, under whose path prepared data have their union."""
        return self.masks[0] if self.masks else None


class Listing(NamedTuple):
    """The images of a data folder."""

    records: list[ImageRecord]
    conditions: tuple[str, ...]  # () if the folder defines none
    notes: tuple[str, ...] = ()  # messages to the user
    skipped: tuple[str, ...] = ()  # conditions without normal images

    def files(self) -> list[str]:
        """Returns the paths of all images and masks, sorted."""
        return sorted({path for r in self.records for path in (r.path, *r.masks)})
