"""New pictures as a user names them: a file, a folder, an archive, a pattern; or in memory."""

import glob
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from bigan_jax.data.files import archives
from bigan_jax.data.files.folders import (
    DataFolder,
    is_remote,
    open_folder,
    resolve_path,
    select_files,
)
from bigan_jax.data.files.images import (
    SUFFIXES,
    ImageFormat,
    image_names,
    map_in_threads,
    read_image,
    to_format,
)
from bigan_jax.data.files.unreadable import UnreadableFile, try_read
from bigan_jax.errors import UserError

# A file, a picture of Pillow's, or an array: [h w] or [h w 1] gray, [h w 3] RGB, [h w 4] RGBA.
ImageInput = str | Path | Image.Image | UInt8[np.ndarray, "h w *c"]


def load_images(
    pictures: Sequence[ImageInput], form: ImageFormat
) -> UInt8[np.ndarray, "n size size channels"]:
    """Pictures as `read_image` gives them. Raises UserError for the first that is none, with its
    name or its place."""

    def read(place: int) -> np.ndarray | UnreadableFile:
        given = pictures[place]
        if isinstance(given, str | Path):
            return try_read(str(given), lambda: read_image(Path(given), *form))
        return try_read(f"picture {place}", lambda: to_format(_in_memory(given), *form))

    if isinstance(pictures, str | Path | Image.Image):
        raise UserError("one picture alone: give a list of pictures, [picture]")
    images = map_in_threads(read, range(len(pictures)), "pictures")
    for broken in (image for image in images if isinstance(image, UnreadableFile)):
        raise UserError(f"{broken.path}: {broken.reason}")
    return (
        np.stack(images) if images else np.zeros((0, form.size, form.size, form.channels), np.uint8)
    )


def _in_memory(picture):
    if isinstance(picture, Image.Image):
        return picture
    picture = np.asarray(picture)
    gray = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
    if picture.dtype != np.uint8 or not (gray.ndim == 2 or gray.shape[2:] in ((3,), (4,))):
        raise UserError(f"{picture.dtype} {picture.shape} is no picture: uint8 (h, w[, 3]) is")
    return Image.fromarray(gray)


@contextmanager
def open_inputs(source: str | Path, scratch: Path) -> Iterator[tuple[DataFolder, list[str]]]:
    """A folder and the names of the pictures in it that `source` means.

    source: a picture, a folder with all below it, an archive, or a pattern of pictures and folders.
    scratch: a folder in which an archive is unpacked for as long as it is looked at.
    Raises UserError where there is no picture.
    """
    path = resolve_path(source)
    if path.is_dir():
        yield _all_in(open_folder(path), source)
    elif not path.exists() and glob.has_magic(str(source)):
        yield _all_in(_matching(str(source)), source)
    elif not path.exists():
        raise UserError(f"--input={source}: there is no such picture, folder or archive")
    elif archives.is_archive(path.name):
        with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=scratch) as home:
            folder = archives.extract_once(path, Path(home), storage_flag="--output=DIR")
            yield _all_in(open_folder(folder), source)
    else:
        names = [path.name] if is_remote(path) else image_names(Path(path))
        yield select_files(path.parent, names), names


def _all_in(folder, source):
    if not (names := folder.images()):
        suffixes = ", ".join(sorted(SUFFIXES))
        raise UserError(f"--input={source}: no picture was found (looked for {suffixes})")
    return folder, names


def _matching(pattern: str) -> DataFolder:
    """The pictures that match, and those in folders that do, relative to where wildcards begin."""
    parts = Path(pattern).expanduser().parts
    plain = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = resolve_path(Path(*parts[:plain]))
    names = []
    for match in glob.glob(str(Path(*parts[plain:])), root_dir=root, recursive=True):
        inside = PurePosixPath(Path(match).as_posix())
        if (root / inside).is_dir():
            names += [(inside / name).as_posix() for name in open_folder(root / inside).images()]
        elif inside.name.lower().endswith(tuple(SUFFIXES)):
            names += [
                (inside.parent / name).as_posix() for name in image_names(Path(root / inside))
            ]
    return select_files(root, sorted(set(names)))
