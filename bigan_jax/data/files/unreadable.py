"""Files that cannot be read: the reason of each, and how they are reported."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import UnidentifiedImageError

from bigan_jax.errors import UserError, one_line, printable

MAX_LISTED = 20  # files reported with their reasons; others are reported by name
MAX_NAMED = 1000
MAX_REASON_LENGTH = 500  # characters: some decoders quote the content of the file

CONTENT_START = 512  # bytes that show what a file is

_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_MISNAMED = (  # position and first bytes, what the file is, and the suffix under which it is read
    (128, b"DICM", "DICOM", ".dcm"),
    (0, b"\x89PNG\r\n", "a PNG image", ".png"),
    (0, b"\xff\xd8\xff", "a JPEG image", ".jpg"),
    (0, b"II*\0", "a TIFF image", ".tif"),
    (0, b"MM\0*", "a TIFF image", ".tif"),
    (0, b"GIF8", "a GIF image", ".gif"),
    (344, b"n+1\0", "NIfTI", ".nii"),
)

Result = TypeVar("Result")


class UnreadableFile(NamedTuple):
    """A file that cannot be read, and the reason."""

    path: str
    reason: str


_REASONS = {
    StopIteration: "the file ends in an earlier slice",
    UnidentifiedImageError: "not an image, or its first bytes are corrupt",
    PermissionError: "no permission to read it",
    FileNotFoundError: "there is no such file",
    IsADirectoryError: "a folder, not a file",
    MemoryError: "needs more memory than is available",
}


def try_read(path: str, work: Callable[[], Result]) -> Result | UnreadableFile:
    """Returns `work()`, or an `UnreadableFile` with the reason if it raises an exception."""
    try:
        return work()
    except Exception as error:  # decoders raise nearly any exception for a corrupt file
        return unreadable_file(path, error)


def unreadable_file(path: str, error: Exception) -> UnreadableFile:
    """Returns the file with the exception's message as the reason."""
    return UnreadableFile(path, _REASONS.get(type(error)) or one_line(error, MAX_REASON_LENGTH))


def split_unreadable(results: Sequence[Result | UnreadableFile]) -> tuple[list[Result | None], list[UnreadableFile]]:
    """Returns the results with None in place of unreadable files, and the unreadable files."""
    unreadable = [result for result in results if isinstance(result, UnreadableFile)]
    return [None if isinstance(r, UnreadableFile) else r for r in results], unreadable


def is_within_folder(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Whether a path lies in `folder` after all links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def require_file(path: Path, folder: Path) -> None:
    """Raises a UserError unless `path` is a file below `folder`, or a link to one, and not empty or of another kind."""
    if any("\udc80" <= c <= "\udcff" for c in str(path)):  # bytes that are not UTF-8
        raise UserError("its name, or its folder's, is not UTF-8: rename it")
    if not is_within_folder(path, folder):
        raise UserError("a link or path out of the data folder: put the file itself there, as cp -rL does for folders")
    if not path.exists():
        raise UserError("a broken link" if path.is_symlink() else "there is no such file")
    if not path.is_file():
        raise UserError("not a file")  # reading a pipe would block forever
    if not path.stat().st_size:
        raise UserError("is empty (0 bytes)")
    with path.open("rb") as file:
        require_image_content(file.read(CONTENT_START))


def require_image_content(start: bytes) -> None:
    """Raises a UserError if the first bytes of a file show that it is no image, or of a kind that is not read."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    brands = start[8:64] if start[4:8] == b"ftyp" else b""
    if start.startswith(b"version https://git-lfs"):
        raise UserError("a Git LFS pointer, not an image: run git lfs pull in its repository")
    if b"/annex/objects/" in start[:200]:
        raise UserError("a git-annex pointer, not an image: run git annex get in its repository")
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        raise UserError("a web page (HTML), not an image: download the image itself")
    if text.startswith((b"<?xml", b"<svg", b"<error")):
        raise UserError("an XML or SVG text, not an image: download the image itself, or convert it to PNG")
    if brands[:4] in _HEIC_BRANDS and b"avif" not in brands:
        raise UserError("HEIC is not supported: convert it to PNG or JPEG")
    if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        raise UserError("JPEG XL is not supported: convert it to PNG or JPEG")
    if start.startswith(b"%PDF"):
        raise UserError("a PDF document, not an image: save its images as PNG")


def explain_kind(suffix: str, start: bytes) -> str:
    """Returns why a file is not read, by its suffix and its first bytes: b"" if they are unknown."""
    kind = suffix or "files without a suffix"
    for position, magic, name, right in _MISNAMED:
        if start[position:].startswith(magic):
            return f"{name} under another name ({kind}): let its name end in {right}"
    if start.startswith((b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")):
        return "an archive in a folder: extract it"
    return f"{kind}: not a supported image format. Convert images to PNG or JPEG"


def unreadable_error(
    unreadable: Sequence[UnreadableFile], root: str | os.PathLike, n_files: int, description: str
) -> UserError:
    """Returns the error that lists unreadable files, of `n_files` (what `description` calls them) to be read."""
    unreadable = sorted(unreadable)
    lines = [f"  {_format(file)}" for file in unreadable[:MAX_LISTED]]
    if len(unreadable) > MAX_LISTED:
        names = ", ".join(printable(file.path) for file in unreadable[MAX_LISTED:MAX_NAMED])
        more = f" and {len(unreadable) - MAX_NAMED} others" if len(unreadable) > MAX_NAMED else ""
        lines.append(f"  and {len(unreadable) - MAX_LISTED} more: {names}{more}")
    return UserError(
        f"{len(unreadable)} of {n_files} {description} in {root} cannot be read. Fix or remove "
        "them, or skip them with --config.data.skip_unreadable=true:\n" + "\n".join(lines)
    )


def unreadable_note(unreadable: Sequence[UnreadableFile]) -> tuple[str, ...]:
    """Returns the note of a dataset that was loaded without some files; () if there are none."""
    if not unreadable:
        return ()
    listed = "; ".join(map(_format, sorted(unreadable)[:MAX_LISTED]))
    more = f"; and {len(unreadable) - MAX_LISTED} more" if len(unreadable) > MAX_LISTED else ""
    return (f"{len(unreadable)} unreadable files skipped ({listed}{more})",)


def _format(file: UnreadableFile) -> str:
    return printable(f"{file.path}: {file.reason}")
