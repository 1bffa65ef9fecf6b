"""Separation of masks from images, and their pairing by name."""

import io
from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import NamedTuple

from PIL import Image

from bigan_jax.data.files.folders import DataFolder
from bigan_jax.data.files.images import FORMATS
from bigan_jax.data.files.medical import is_medical, stem
from bigan_jax.data.files.unreadable import UnreadableFile, try_read
from bigan_jax.data.layouts.names import (
    fold,
    image_stems,
    is_image_folder,
    is_mask_folder,
    is_overlay,
    mask_base,
    split_channel,
)

MAX_MASK_COLORS = 32

Key = tuple[str, ...]  # folders and stem, folded, without folders that only say "masks" or "images"


class Masks(NamedTuple):
    """The files of a data folder that are masks, each with the keys that its image may have, most reliable first."""

    keys: dict[str, list[Key]]  # by path
    shared: frozenset[str] = frozenset()  # masks of several modalities, such as scan_seg of scan_t1 and scan_t2
    notes: tuple[str, ...] = ()  # messages to the user


def mask_folders(folders: Collection[str]) -> set[str]:
    """Returns the folders that hold masks, among the relative paths of all folders with images at any depth."""
    siblings = defaultdict(set)
    for path in folders:
        siblings[PurePosixPath(path).parent].add(PurePosixPath(path).name)
    return {path for path in folders if is_mask_folder(PurePosixPath(path).name, siblings[PurePosixPath(path).parent])}


def split_masks(folder: DataFolder) -> tuple[list[str], Masks]:
    """Separates the images of a folder from the masks, which lie in folders of their own or next to their images.

    A mask next to an image has its name and "_mask" or the like ("_gt", "_label", "-seg"). Of two files of one name
    that differ in their suffix, a file with few colors is the mask. Returns the paths of images and the masks.
    """
    paths = folder.images()
    folders = mask_folders({p.as_posix() for path in paths for p in PurePosixPath(path).parents if p.name})
    separate = [path for path in paths if any(p.as_posix() in folders for p in PurePosixPath(path).parents)]
    if len(separate) == len(paths):  # images, whatever their folder is called
        separate = []
    keys = {path: _mask_keys(path, folders) for path in separate}
    by_folder = defaultdict(list)
    for path in sorted({*paths}.difference(separate)):
        by_folder[path.rpartition("/")[0]].append(path)
    shared, unpaired = set(), []
    for names in by_folder.values():
        adjacent, without_image = _adjacent_masks(folder, names)
        keys.update({path: [_key(path, base) for base in bases] for path, bases in adjacent.items()})
        shared.update(path for path, bases in adjacent.items() if len(bases) > 1)
        unpaired += without_image
    notes = ()
    if unpaired:
        notes = (f"{len(unpaired)} images are named like masks, but no image belongs to them, such as {unpaired[0]}",)
    return [path for path in paths if path not in keys], Masks(keys, frozenset(shared), notes)


def find_masks(masks: Masks, images: Collection[str]) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Finds the masks of each anomalous image, and notes what could not be paired.

    A mask belongs to an image if one of them lies in the folders of the other as far as they are known: the mask
    hole/000 to test/hole/000, and the mask 000 to the only image 000. The one with the most folders in common is used.
    A mask that fits several images is not used. Several masks of one image are all returned. Where all images end in
    one channel number, as in nnU-Net's case_000_0000, the masks may leave it out.
    """
    keys_of_stem = defaultdict(list)
    channels = {split_channel(_file_stem(image))[1] for image in images}
    for image in images:
        *parents, name = _key(image, _file_stem(image))
        bases = [split_channel(name)[0]] if len(channels) == 1 and None not in channels else []
        for base in (*image_stems(name), *bases):
            keys_of_stem[base, stem(image)[1]].append((image, (*parents, base)))
    candidates = defaultdict(list)  # by image: (number of common parts, mask)
    counts = Counter()
    for mask, keys in masks.keys.items():
        for key in keys:
            fitting = {
                image: min(len(key), len(other))
                for image, other in keys_of_stem[key[-1], stem(mask)[1]]
                if all(a == b for a, b in zip(key[::-1], other[::-1], strict=False))
            }
            fitting = {image: n for image, n in fitting.items() if n == max(fitting.values())}
            counts[mask] += len(fitting)
            for image, n in fitting.items():
                candidates[image].append((n, mask))
            if fitting and mask not in masks.shared:
                break
    found, ambiguous = {}, set()
    for image, fitting in candidates.items():
        best = {mask for n, mask in fitting if n == max(fitting)[0]}
        unclear = {mask for mask in best if counts[mask] > 1 and mask not in masks.shared}
        ambiguous |= unclear
        if best - unclear:
            found[image] = tuple(sorted(best - unclear))
    return {image: found.get(image, ()) for image in images}, _notes(masks, images, found, ambiguous)


def _file_stem(path):
    return stem(path)[0].rpartition("/")[2]


def _notes(masks, images, found, ambiguous):
    notes = [*masks.notes]
    if ambiguous:
        notes.append(
            f"{len(ambiguous)} masks fit more than one image, such as {min(ambiguous)}, and are not used: put them "
            "into folders with the same names as those of the images"
        )
    if several := [names for names in found.values() if len(names) > 1]:
        notes.append(f"{len(several)} anomalous images have several masks, such as {', '.join(min(several))}: merged")
    if masks.keys and (n_missing := len(images) - len(found)):
        notes.append(f"{n_missing} anomalous images have no mask: pixel metrics exclude them")
    paired = {*ambiguous, *(mask for names in found.values() for mask in names)}
    if unused := masks.keys.keys() - paired:
        notes.append(f"{len(unused)} masks belong to no anomalous image, such as {min(unused)}")
    return tuple(notes)


def _adjacent_masks(folder, names) -> tuple[dict[str, list[str]], list[str]]:
    """Returns the masks among the files of a folder with the stems of their images, and files only named like masks."""
    stems = {name: (fold(stem(name)[0].rpartition("/")[2]), stem(name)[1]) for name in names}
    by_stem = defaultdict(list)
    for name, (text, number) in stems.items():
        for base in image_stems(text):
            by_stem[base, number].append(name)
    masks, unpaired = {}, []
    for name, (_, number) in stems.items():
        own = stem(name)[0].rpartition("/")[2]
        if is_overlay(own, {text for text, n in by_stem if n == number}):
            masks[name] = []  # neither an image nor a mask
        if (base := mask_base(own)) is None or name in masks:
            continue
        if (base, number) in by_stem:
            masks[name] = [base]
            continue
        others = [text for text, n in stems.values() if n == number and _starts_with(text, base)]
        modalities = [text for text in others if mask_base(text) is None]
        if modalities and (is_medical(name) or _looks_like_mask(folder, name)):
            masks[name] = modalities
        else:
            unpaired.append(name)
    for same in by_stem.values():
        same = [name for name in same if name not in masks and not is_medical(name)]
        if len(same) == 2 and stems[same[0]] == stems[same[1]]:
            flat = [name for name in same if _looks_like_mask(folder, name)]
            if len(flat) == 1:
                masks[flat[0]] = [stems[flat[0]][0]]
    return masks, unpaired


def _starts_with(text, base):
    return text.startswith(base) and text[len(base) : len(base) + 1] in tuple(" _.-")


def _mask_keys(path, folders) -> list[Key]:
    """Returns the keys of a mask in a folder of masks."""
    name = stem(path)[0].rpartition("/")[2]
    *parents, _ = key = _key(path, name, folders)
    base = mask_base(name)
    # MVTec LOCO has a folder for the masks of each image.
    return [key, *([(*parents, base)] if base else []), *([tuple(parents)] if parents else [])]


def _key(path, name, folders=frozenset()) -> Key:
    parents = [p for p in reversed(PurePosixPath(path).parents) if p.name]
    kept = [fold(p.name) for p in parents if p.as_posix() not in folders and not is_image_folder(p.name)]
    return (*kept, fold(name))


def _looks_like_mask(folder, name):
    """Whether an image has few colors, or nearly only black and white (JPEG blurs their edges)."""
    (content,) = folder.read([name], True)
    if isinstance(content, UnreadableFile):
        return False

    def has_few_colors() -> bool:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            gray = image.convert("RGB")
            if gray.getcolors(MAX_MASK_COLORS):
                return True
            counts = gray.convert("L").histogram()
            return sum(counts[:16]) + sum(counts[240:]) >= 0.98 * sum(counts)

    return try_read(name, has_few_colors) is True
