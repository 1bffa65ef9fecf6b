"""The promise of a threshold: which rate of false alarms holds, for which new images, and in which words."""

from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from typing import Literal


@dataclass(frozen=True)
class Promise:
    """The rate of false alarms that a threshold keeps, on average over sets of calibration images.

    `required` is the number of calibration images that the requested rate requires; of groups, if the promise is for
    new groups or would have to be; with folds, of folds or of images (groups) per fold, whichever is reached.
    """

    share_of: Literal["images", "pixels"]  # that are called anomalous
    requested: float
    holds: float  # the rate that holds: the requested one, or the lowest that these images can promise
    n_images: int  # calibration images
    n_groups: int  # of these images; n_images if each is its own group
    holds_for: Literal["images", "groups", "known groups"]  # new images; of new groups; of the same groups
    required: int
    folds: int = 0  # whose detectors score the calibration images; 0: one detector that saw none of them

    @property
    def kept(self) -> bool:
        """Whether the requested rate holds."""
        return self.holds <= self.requested

    @property
    def sentence(self) -> str:
        """The promise in a sentence; if it is weaker than requested, with the reason and how to get the rest."""
        images = {
            "images": "new normal images",
            "groups": "normal images of new groups",
            "known groups": f"new normal images of the same {_count(self.n_groups, 'group')}",
        }[self.holds_for]
        if self.share_of == "pixels":
            event = f"of the pixels of {images} are marked"
        else:
            event = f"of {images} score at or above the threshold"
        basis = _count(self.n_images, "normal image" if self.folds else "calibration image")
        basis += f" of {_count(self.n_groups, 'group')}" if self.holds_for == "groups" else ""
        basis += f" in {_count(self.folds, 'fold')}" if self.folds else ""
        unit = "group" if self.holds_for == "groups" else "image"
        if self.kept:
            reason = f" ({basis})"
        else:
            required = str(self.required) if unit == "image" else _count(self.required, unit)
            if self.folds:
                required = f"{_count(self.required, 'fold')} or {_count(self.required, unit)} per fold"
            reason = f": {basis} cannot promise the requested {percent(self.requested)}, which requires {required}"
        new_groups = f"; a promise for new groups requires {_count(self.required, 'group')}"
        outlook = new_groups if self.holds_for == "known groups" else ""
        return f"On average at most {percent(self.holds)} {event}{reason}{outlook}."


def percent(rate: float) -> str:
    """Formats a rate as a percentage with up to three digits, rounded up: a bound stays true."""
    return f"{float(Context(prec=3, rounding=ROUND_CEILING).create_decimal(str(rate)) * 100):.3g} %"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + "s" * (n != 1)
