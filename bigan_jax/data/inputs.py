"""Images to score: named by a file, a folder, an archive or a pattern, or given in memory."""

import glob
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from bigan_jax.data.files import archives
from bigan_jax.data.files.folders import (
    DataFolder,
    is_hidden,
    is_remote,
    open_folder,
    resolve_path,
    select_files,
    unread_files,
)
from bigan_jax.data.files.images import SUFFIXES, ImageFormat, image_names, map_in_threads, read_image, to_format
from bigan_jax.data.files.medical import is_medical
from bigan_jax.data.files.unreadable import CONTENT_START, MAX_LISTED, UnreadableFile, require_image_content, try_read
from bigan_jax.data.layouts.masks import split_masks
from bigan_jax.errors import UserError, printable

# A file, a Pillow image, or an array: (h, w) or (h, w, 1) gray, (h, w, 3) RGB, (h, w, 4) RGBA.
ImageInput = str | Path | Image.Image | UInt8[np.ndarray, "h w *c"]


@no_type_check  # wrong input is reported as a UserError
def load_images(inputs: Sequence[ImageInput], image_format: ImageFormat) -> UInt8[np.ndarray, "n size size channels"]:
    """Decodes images as `read_image` does. Raises UserError with the name or index of the first that is no image."""

    def read_file(path: Path) -> np.ndarray:
        if not is_medical(path.name):  # which names a slice
            with path.open("rb") as file:
                require_image_content(file.read(CONTENT_START))
        return read_image(path, *image_format)

    def read(index: int) -> np.ndarray | UnreadableFile:
        image = inputs[index]
        if isinstance(image, str | Path):
            return try_read(str(image), lambda: read_file(Path(image)))
        return try_read(f"image {index}", lambda: to_format(_to_pillow(image), *image_format))

    if isinstance(inputs, str | Path | Image.Image):
        raise UserError("The images must be a list (got a single image): use [image].")
    images = map_in_threads(read, range(len(inputs)), "images")
    for image in images:
        if isinstance(image, UnreadableFile):
            raise UserError(f"{image.path}: {image.reason}")
    size, channels = image_format[:2]
    return np.stack(images) if images else np.zeros((0, size, size, channels), np.uint8)


def _to_pillow(image):
    if isinstance(image, Image.Image):
        return image
    array = np.asarray(image)
    gray = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.dtype != np.uint8 or not (gray.ndim == 2 or gray.shape[2:] in ((3,), (4,))):
        raise UserError(
            f"an image must be a uint8 array of shape (h, w) or (h, w, channels), with 1, 3 or 4 "
            f"channels (got {array.dtype} {array.shape})"
        )
    return Image.fromarray(gray)


class Inputs(NamedTuple):
    """Images to score, and what else lies with them."""

    folder: DataFolder
    names: list[str]  # of the images
    not_read: list[UnreadableFile]  # other files, masks, and folders that cannot be listed


@contextmanager
def open_inputs(source: str | Path, temporary: Path) -> Iterator[Inputs]:
    """Opens the folder of the images that `source` names, and lists their names.

    `source` is an image, a folder, an archive (extracted in `temporary` until the context ends), or a pattern of
    images and folders. Masks in a folder are not among its images (`split_masks`). Raises UserError if there is no
    such file, or no image.
    """
    path = resolve_path(source)
    if path.is_dir():
        yield _all_images(open_folder(path), source)
    elif not path.exists() and glob.has_magic(str(source)):
        yield _all_images(_open_matches(str(source)), source)
    elif not path.exists():
        raise UserError(f"--input={source}: there is no such image, folder or archive.")
    elif archives.is_archive(path.name):
        with tempfile.TemporaryDirectory(prefix=".extracted-", dir=temporary) as base_dir:
            folder = archives.extract_once(path, Path(base_dir), storage_flag="--output=DIR")
            assert folder is not None  # the archive exists
            yield _all_images(open_folder(folder), source)
    else:
        names = [path.name] if is_remote(path) else image_names(Path(path))
        yield Inputs(select_files(path.parent, names), names, [])


def _all_images(folder: DataFolder, source: str | Path) -> Inputs:
    images, masks = split_masks(folder)
    mask_reason = "a mask by its name, not an image to score: to score it, name it in --input"
    not_read = [*unread_files(folder), *(UnreadableFile(path, mask_reason) for path in masks.keys)]
    if not images:
        suffixes = ", ".join(sorted(SUFFIXES))
        lines = [f"  {printable(f'{f.path}: {f.reason}')}" for f in not_read[:MAX_LISTED]]
        raise UserError("\n".join([f"--input={source}: no image was found (looked for {suffixes}).", *lines]))
    return Inputs(folder, images, sorted(not_read))


def _open_matches(pattern: str) -> DataFolder:
    """Opens the folder where wildcards begin, with the matching files and those in folders."""
    parts = Path(pattern).expanduser().parts
    n_plain = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = resolve_path(Path(*parts[:n_plain]))
    names, unread, unlistable = [], [], []
    for match in glob.glob(str(Path(*parts[n_plain:])), root_dir=root, recursive=True):
        path = PurePosixPath(Path(match).as_posix())
        if (root / path).is_dir():
            inner = open_folder(root / path)
            names += [(path / name).as_posix() for name in inner.images()]
            unread += [(path / name).as_posix() + "/" * name.endswith("/") for name in inner.unread]
            unlistable += [f._replace(path=(path / f.path).as_posix()) for f in inner.unlistable]
        elif path.name.lower().endswith(tuple(SUFFIXES)):
            names += [(path.parent / name).as_posix() for name in image_names(Path(root / path))]
        elif not is_hidden(path.name):
            unread.append(path.as_posix())
    folder = select_files(root, sorted({*names}))
    return folder._replace(unread=tuple(sorted({*unread})), unlistable=tuple(sorted({*unlistable})))
