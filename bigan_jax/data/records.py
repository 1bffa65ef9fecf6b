"""TODO docstring."""

from typing import NamedTuple


class ImageRecord(NamedTuple):
    """One picture before it is decoded; `path` and `mask` are relative to the data folder."""

    path: str
    label: bool
    group: str
    condition: int = 0
    defect_type: str = "good"
    mask: str | None = None
    official: str | None = None  # the part its makers put it in: TRAIN or TEST
    camera: tuple[str, int] | None = None  # sequence and number; then the group is their block


class Listing(NamedTuple):
    """What a folder holds; `Record.condition` is an index into `conditions`."""

    records: list[ImageRecord]
    conditions: tuple[str, ...]  # () where the folder knows of none
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # conditions without normal pictures

    def files(self) -> list[str]:
        """The pictures and masks, sorted."""
        return sorted({path for r in self.records for path in (r.path, r.mask) if path})
