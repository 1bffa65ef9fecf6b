"""What the names of folders and files say: normal, anomalous, a mask, an official split.

Only names whose meaning is certain are known. For all others the user says which are normal (`Selection`).
"""

import re
import unicodedata
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import NamedTuple

from bigan_jax.errors import UserError, printable

# Names without case and separators: "no_tumor" and "No Tumor" are "notumor". Negations of each are the other label.
NORMAL = {"normal", "normals", "good", "ok", "okay", "healthy"}
ANOMALOUS = {"anomalous", "abnormal", "anomaly", "anomalies", "abnormality", "nok", "ng", "ko", "bad", "faulty"}
ANOMALOUS |= {"defect", "defects", "defective", "defectives", "damage", "damaged"}
ANOMALOUS |= {"diseased", "tumor", "tumour", "tumors", "glioma", "meningioma", "pituitary"}
_NEGATIONS = ("without", "non", "not", "no", "un")
TRAINING, TESTING = {"train", "training"}, {"test", "testing"}
VALIDATION = {"validation", "val", "valid"}

_MASKS = {"mask", "masks", "gt", "gts", "truth", "groundtruth", "seg", "segs", "segmentation", "segmentations"}
_LABEL_IMAGES = {"label", "labels", "annotation", "annotations", "annots"}
_SPLITS = TRAINING | TESTING | VALIDATION | {"tr", "ts", "va", "trainval"}
_IMAGES = {"image", "images", "img", "imgs", "jpegimages", "png", "rgb"}
_CERTAIN_BEFORE_MASK = _SPLITS | _IMAGES | NORMAL | ANOMALOUS | {"ground", "binary", "lesion", "pixel", "object"}

# Words that often name labels, but whose meaning depends on the dataset: (perhaps normal, perhaps anomalous).
UNCERTAIN = [("no", "yes"), ("negative", "positive"), ("neg", "pos"), ("0", "1"), ("false", "true"), ("pass", "fail")]

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_BEFORE_MASK = r"(?:(?:ground|defect|anomaly|tumor|lesion|binary|pixel)[ _.-]*)?"
_MASK_STEM = re.compile(
    rf"(.+?)[ _.-]+{_BEFORE_MASK}(?:masks?|gt|truth|labels?|seg|segmentation|annotations?)(?:[ _.-]*\d+)?"
    r"|(?:masks?|gt|labels?|seg)[ _.-]+(.+)",
    re.DOTALL,
)
_IMAGE_STEM = re.compile(r"(.+?)[ _.-]+(?:image|img|rgb|input|raw|original)", re.DOTALL)
_CHANNEL_STEM = re.compile(r"(.+)_(\d{4})", re.DOTALL)
_OVERLAY_STEM = re.compile(
    r"(.+?)[ _.-]+(?:overlay|vis|viz|visuali[sz]ation|heatmap|contours?|bbox|boxes|annotated|colou?r[ _.-]?mask)",
    re.DOTALL,
)


class Selection(NamedTuple):
    """What a user selects of a data folder. Each field is a comma list, "" by default."""

    category: str = ""  # names of conditions or datasets; "" or "all" for all
    normal: str = ""  # names or patterns of the folders or files of normal images
    anomalous: str = ""  # the same of anomalous images

    def label(self, path: str, names: Iterable[str] | None = None) -> bool | None:
        """Returns whether an image is anomalous; None if nothing says it.

        The fields `normal` and `anomalous` match the path, a folder above it, or one of their names. A plain name in
        them has precedence over folders with well-known names, those over patterns, and all over the pattern "*". A
        field that is set replaces the well-known names of its label.

        Args:
          path: the image, relative to the data folder.
          names: what is matched in place of the path and its folders, such as a label in a table.

        Raises:
          UserError: both fields match, or the names contradict each other.
        """
        names = _names_of(path) if names is None else list(names)
        known = {known_label(name) for name in names}
        strength = {}
        for label, patterns in ((False, self.normal), (True, self.anomalous)):
            listed = [fold(p.strip().removeprefix("./").rstrip("/")) for p in patterns.split(",") if p.strip()]
            folded = [fold(name) for name in names]
            is_known = not listed and label in known
            matches = any(fnmatchcase(name, pattern) for name in folded for pattern in listed if pattern != "*")
            is_named = not {*listed}.isdisjoint(folded)
            strength[label] = max(4 * is_named, 3 * is_known, 2 * matches, 1 * ("*" in listed))
        if strength[False] == strength[True] > 0:
            raise UserError(
                f"{printable(path)} is both normal and anomalous by the names of its folders"
                + f", config.data.normal={self.normal} and config.data.anomalous={self.anomalous}. Let only one match."
                if self.normal or self.anomalous
                else f"{printable(path)} is both normal and anomalous by the names of its folders. Rename one, or say "
                f"what is normal: --config.data.normal=NAME --config.data.anomalous=NAME."
            )
        return None if strength[False] == strength[True] else strength[True] > strength[False]


def _names_of(path):
    parts = PurePosixPath(path).parts
    return [*parts, *("/".join(parts[: i + 1]) for i in range(1, len(parts)))]


def fold(name: str) -> str:
    """Returns a name for comparison: without case, and in one Unicode form (macOS stores another one)."""
    return unicodedata.normalize("NFC", name).casefold()


def words(name: str) -> list[str]:
    """Returns the words of a name in lower case: ["ground", "truth"] for "Ground-Truth" and "GroundTruth"."""
    return [
        word.casefold() for word in re.split(r"[\W_]+", _CAMEL.sub(" ", unicodedata.normalize("NFC", name))) if word
    ]


def canonical(name: str) -> str:
    """Returns a name without case and separators, as in NORMAL."""
    return "".join(words(name))


def known_label(name: str) -> bool | None:
    """Returns whether a name says that images are anomalous; None if it says nothing: "non-defective" is normal."""
    word = canonical(name)
    for known, opposite in ((NORMAL, ANOMALOUS), (ANOMALOUS, NORMAL)):
        negated = any(word.startswith(prefix) and word[len(prefix) :] in opposite for prefix in _NEGATIONS)
        is_free = known is NORMAL and word.endswith("free") and word.removesuffix("free") in opposite
        if word in known or negated or is_free:
            return known is ANOMALOUS
    return None


def is_mask_folder(name: str, siblings: Collection[str] = ()) -> bool:
    """Whether a folder holds masks or label images by its name.

    Names such as "tumor_mask", "train_labels" and "SegmentationClass" are certain, and so is "crack_mask" next to a
    folder "crack". "with_mask" and "missing_label" may be classes of images.
    """
    parts = words(name)
    if canonical(name).startswith("segmentation"):
        return True
    while len(parts) > 1 and parts[-1] in _SPLITS | _IMAGES:
        parts = parts[:-1]
    *before, last = parts or [""]
    if last in _LABEL_IMAGES:
        return {*before} <= _SPLITS | _IMAGES
    sibling = bool(before) and "".join(before) in map(canonical, siblings)
    return last in _MASKS and (last.endswith("s") or {*before} <= _CERTAIN_BEFORE_MASK or sibling)


def is_image_folder(name: str) -> bool:
    """Whether the name of a folder says only that it has images, as "images" in "images/" and "masks/"."""
    return canonical(name) in _IMAGES or is_channel_folder(name)


def is_channel_folder(name: str) -> bool:
    """Whether a folder is named like nnU-Net's images, whose files end in a channel: imagesTr, imagesTs."""
    return canonical(name) in ("imagestr", "imagests")


def split_channel(stem: str) -> tuple[str, str | None]:
    """Returns ("case_001", "0000") for "case_001_0000", as nnU-Net names channel 0 of a case; else (stem, None)."""
    match = _CHANNEL_STEM.fullmatch(stem)
    return (match[1], match[2]) if match else (stem, None)


def mask_base(stem: str) -> str | None:
    """Returns the stem of the image if a stem names its mask, folded: "000" for "000_mask"; else None."""
    match = _MASK_STEM.fullmatch(fold(_CAMEL.sub("_", stem)) if stem[-4:] in ("Mask", "mask") else fold(stem))
    return (match[1] or match[2]) if match else None


def is_overlay(stem: str, stems: Collection[str]) -> bool:
    """Whether a stem names a drawing over the image of one of the other folded stems: "000_overlay" over "000"."""
    match = _OVERLAY_STEM.fullmatch(fold(stem))
    return bool(match) and match[1] in stems


def image_stems(stem: str) -> tuple[str, ...]:
    """Returns the stems that name an image, folded: "000_image" and "000" for "000_image"."""
    match = _IMAGE_STEM.fullmatch(fold(stem))
    return (fold(stem), match[1]) if match else (fold(stem),)


def split_state(name: str) -> str | None:
    """Returns the species of a folder of normal images: "Pepper__bell" for "Pepper__bell___healthy"; else None."""
    for match in re.finditer(r"[ _.-]+", name):
        species, state = name[: match.start()], name[match.end() :]
        is_negation = (words(species) or [""])[-1] in _NEGATIONS
        if species and known_label(state) is False and not is_negation:
            return species
    return None
