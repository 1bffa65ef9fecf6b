"""Pairing of anomalous images with their masks by file name."""

from collections import Counter
from collections.abc import Mapping, Sequence

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.files.medical import stem


def find_masks(
    folder: DataFolder, mask_folders: Sequence[str], mask_paths: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """Finds the mask of each anomalous image, or None, and notes what could not be paired.

    `mask_paths` has, by image, the paths that its mask may have in a mask folder, the most reliable first. Suffixes are
    ignored, and the stem may have "_mask" appended. A mask that fits several images is not used.
    """
    mask_of = {stem(file): f"{name}/{file}" for name in mask_folders for file in folder.images(name)}
    candidates = {image: _candidates(mask_of, paths) for image, paths in mask_paths.items()}
    counts = Counter(mask for masks in candidates.values() for mask in set(masks))
    first = {image: masks[0] for image, masks in candidates.items() if masks}
    ambiguous = {mask for mask in first.values() if counts[mask] > 1}
    found = {image: mask for image, mask in first.items() if mask not in ambiguous}
    masks = {image: found.get(image) for image in mask_paths}
    notes = []
    if ambiguous:
        notes.append(
            f"{len(ambiguous)} masks fit more than one image, such as {min(ambiguous)}, and are not used: put them "
            "into folders with the same names as those of the images"
        )
    if mask_folders and (n_missing := [*masks.values()].count(None)):
        notes.append(f"{n_missing} anomalous images have no mask: pixel metrics exclude them")
    if unused := set(mask_of.values()) - {*first.values()}:
        notes.append(f"{len(unused)} masks belong to no anomalous image, such as {min(unused)}")
    return masks, tuple(notes)


def _candidates(mask_of, paths):
    names = ((name, index) for stem_, index in map(stem, paths) for name in (stem_, f"{stem_}_mask"))
    return [mask_of[name] for name in names if name in mask_of]
