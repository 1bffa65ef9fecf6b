"""Files that are written atomically and read within limits, and the folder of the user's cache."""

import csv
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bigan_jax.errors import UserError, one_line

_PREFIX = "incomplete."  # of folders that are being written, as TFDS names its own
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # OWASP, CSV injection
_ABANDONED_AFTER = 86_400  # seconds; the process that wrote it has died


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Reads a file. Raises UserError, naming it without its folder, if it is larger or no readable regular file."""
    if not path.is_file():  # reading a pipe or a device would never end
        raise UserError(f"no {path.name}")
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror})") from error
    if len(content) > max_bytes:
        raise UserError(f"{path.name} is larger than {max_bytes // 2**20} MiB")
    return content


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file completely or not at all, even if the program or the machine stops.

    Its folder is created if needed. Text is written as UTF-8; surrogateescape restores the bytes of other file names.
    Raises UserError if the file cannot be written.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise write_error(path, error) from error


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file as `write_atomic` does."""
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Writes a CSV file as `write_atomic` does, with its cells escaped (`csv_cell`)."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(map(csv_cell, row) for row in rows)
    write_atomic(path, text.getvalue())


def csv_cell(value: object) -> object:
    """Returns a cell of a CSV file: text that a spreadsheet would run as a formula gets an apostrophe before it.

    File names and groups are untrusted. Numbers, also those that are formatted as text, stay as they are.
    """
    if not isinstance(value, str) or not value.startswith(_FORMULA_STARTS):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def write_error(path: Path, error: Exception) -> UserError:
    """Returns the UserError for a failed write: a full disk, a read-only folder, a quota."""
    reason = getattr(error, "strerror", None) or one_line(error, 300)
    return UserError(f"{path} cannot be written ({reason}). Free some space or use another folder, then try again.")


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yields a new folder that replaces `target` when the body ends without an exception.

    At any time `target` is unchanged, complete, or absent. If several processes fill one target, each writes a
    complete folder and one of them remains.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in target.parent.glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):  # another process has just deleted it
            if time.time() - abandoned.stat().st_mtime > _ABANDONED_AFTER:
                shutil.rmtree(abandoned, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=target.parent))
    try:
        new = temporary / "new"
        new.mkdir()
        yield new
        while new.exists():
            if target.exists():
                target.replace(Path(tempfile.mkdtemp(dir=temporary)) / "old")
            try:
                new.rename(target)
            except OSError:  # another process has just written the target
                if not target.exists():
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_links(workdir: Path) -> None:
    """Raises UserError if a link in a folder leads out of it, where files would be written and deleted.

    The folder itself may be a link.
    """
    root = os.path.realpath(workdir)
    for parent, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = os.path.join(parent, name)
            if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(root):
                raise UserError(f"{path} is a link that leads out of the workdir. Move its target there.")


def user_cache_dir() -> Path:
    """Returns the folder, which may not exist yet, of this user's files that can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or (sys.platform == "win32" and os.environ.get("LOCALAPPDATA"))
    default = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(base or default).expanduser() / "bigan_jax"
