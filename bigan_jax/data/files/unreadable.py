"""Files that cannot be read: why, and how they are told."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import UnidentifiedImageError

from bigan_jax.errors import UserError, one_line, printable

MAX_LISTED = 20  # files told with their reasons; of the others, the names
MAX_NAMED = 1000
MAX_REASON = 500  # characters: some decoders quote what they found

Result = TypeVar("Result")


class UnreadableFile(NamedTuple):
    """A file that cannot be read."""

    path: str
    reason: str


def try_read(path: str, work: Callable[[], Result]) -> Result | UnreadableFile:
    """What `work()` gives, or why it fails: decoders of broken files raise nearly anything."""
    try:
        return work()
    except Exception as error:
        return UnreadableFile(path, _REASONS.get(type(error)) or one_line(error, MAX_REASON))


_REASONS = {
    StopIteration: "the file breaks off in an earlier slice",
    UnidentifiedImageError: "not a picture, or damaged in its first bytes",
    PermissionError: "no permission to read it",
    FileNotFoundError: "there is no such file",
    MemoryError: "takes more memory than there is",
}


def is_inside(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Whether a path lies in `folder` once all links are followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def check_file(path: Path, folder: Path) -> None:
    """Raises UserError for what is no file below `folder`, or an empty one.

    A link may lead to another place in `folder`, not out of it.
    """
    if any("\udc80" <= c <= "\udcff" for c in str(path)):  # bytes that are not UTF-8
        raise UserError("its name, or its folder's, is not UTF-8: rename it")
    if not is_inside(path, folder):
        raise UserError("leads out of the data folder: put the file itself there, not a link")
    if not path.exists():
        raise UserError(
            "a link that leads nowhere" if path.is_symlink() else "there is no such file"
        )
    if not path.is_file():
        raise UserError("not a file")  # a pipe would be waited for without end
    if not path.stat().st_size:
        raise UserError("is empty (0 bytes)")


def unreadable(
    broken: Sequence[UnreadableFile], root: str | os.PathLike, of: int, what: str
) -> UserError:
    """The error that names the `broken` ones of `of` files of `root`, with the remedies."""
    broken = sorted(broken)
    lines = ["  " + _told(b) for b in broken[:MAX_LISTED]]
    if len(broken) > MAX_LISTED:
        names = ", ".join(printable(b.path) for b in broken[MAX_LISTED:MAX_NAMED])
        more = f" and {len(broken) - MAX_NAMED} others" if len(broken) > MAX_NAMED else ""
        lines.append(f"  and {len(broken) - MAX_LISTED} more: {names}{more}")
    return UserError(
        f"{len(broken)} of {of} {what} in {root} cannot be read; mend or remove them, or leave "
        "them out by --config.data.skip_unreadable=true:\n" + "\n".join(lines)
    )


def unreadable_note(broken: Sequence[UnreadableFile]) -> tuple[str, ...]:
    """The note of a data set that was loaded without its `broken` files; none if there are none."""
    named = "; ".join(map(_told, sorted(broken)[:MAX_LISTED]))
    more = f"; and {len(broken) - MAX_LISTED} more" if len(broken) > MAX_LISTED else ""
    return (f"{len(broken)} files left out that cannot be read ({named}{more})",) if broken else ()


def _told(broken: UnreadableFile) -> str:
    return printable(f"{broken.path}: {broken.reason}")
