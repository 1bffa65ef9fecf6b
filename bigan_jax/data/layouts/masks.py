"""TODO docstring."""

from collections import Counter
from collections.abc import Mapping, Sequence

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.files.medical import stem


def find_masks(
    folder: DataFolder, inside: Sequence[str], places: Mapping[str, Sequence[str]]
) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """Each anomalous picture's mask among the files of some folders, and notes on what has none.

    places: by picture, the relative paths that its mask may have, the surest first, with _mask
      after the stem or without. What may be the mask of two pictures is nobody's.
    """
    mask_of = {stem(file): f"{name}/{file}" for name in inside for file in folder.images(name)}
    fitting = {picture: _fitting(mask_of, paths) for picture, paths in places.items()}
    times = Counter(mask for fit in fitting.values() for mask in set(fit))
    found = {picture: next(iter(fit), None) for picture, fit in fitting.items()}
    doubtful = {mask for mask in found.values() if times[mask] > 1}
    masks = {picture: None if mask in doubtful else mask for picture, mask in found.items()}
    notes = []
    if doubtful:
        notes.append(
            f"{len(doubtful)} masks fit more than one picture, such as {min(doubtful)}, and are "
            "not used: give them folders that are called as those of the pictures"
        )
    if inside and (missing := [*masks.values()].count(None)):
        notes.append(f"{missing} anomalous pictures have no mask: pixel figures leave them out")
    if spare := set(mask_of.values()) - {*found.values()}:
        notes.append(f"{len(spare)} masks belong to no anomalous picture, such as {min(spare)}")
    return masks, tuple(notes)


def _fitting(mask_of, paths):
    names = (known for name, i in map(stem, paths) for known in ((name, i), (f"{name}_mask", i)))
    return [mask_of[name] for name in names if name in mask_of]
