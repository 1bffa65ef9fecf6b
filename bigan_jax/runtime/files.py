"""TODO docstring."""

import csv
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bigan_jax.errors import UserError, one_line


def user_cache_dir() -> Path:
    """Where this user's programs keep what they could make again; it need not exist yet.

    $XDG_CACHE_HOME/bigan_jax where that is set, else in the place that the platform has for it.
    """
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        base = Path(os.environ["LOCALAPPDATA"])
    else:
        base = Path("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
    return base.expanduser() / "bigan_jax"


INCOMPLETE = "incomplete."  # TFDS's own name for what is being written


A_DAY = 86_400  # seconds after which what is incomplete was left by a process that died


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `target` when all went well.

    Whatever happens in between, `target` is as it was before, complete, or not there. Of several
    processes that fill one target, each gives a complete one, and one of them stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f"{INCOMPLETE}*"):
        with suppress(FileNotFoundError):  # another process takes it away as well
            if time.time() - left.stat().st_mtime > A_DAY:
                shutil.rmtree(left, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=INCOMPLETE, dir=target.parent))
    try:
        new = beside / "new"
        new.mkdir()
        yield new
        while new.exists():
            if target.exists():
                target.replace(Path(tempfile.mkdtemp(dir=beside)) / "old")
            try:
                new.rename(target)
            except OSError:  # another process was faster
                if not target.exists():
                    raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read_bounded(path: Path, most: int) -> bytes:
    """What a file holds. Raises UserError for more than `most` bytes, and for what is no file or
    cannot be read, without the folder's name."""
    if not path.is_file():  # a pipe or a device would never end
        raise UserError(f"no {path.name}")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror})") from error
    if len(content) > most:
        raise UserError(f"{path.name} is larger than {most // 2**20} MiB")
    return content


def refuse_links(workdir: Path) -> None:
    """Raises UserError for a link in the folder that leads out of it, where what is written to it,
    or deleted, would be somebody else's. The folder itself may be one."""
    home = os.path.realpath(workdir)
    for parent, folders, names in os.walk(home):
        for name in (*folders, *names):
            path = os.path.join(parent, name)
            if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(home):
                raise UserError(
                    f"{path} is a link that leads out of the workdir: put what it means there, or "
                    "make a link of the workdir itself"
                )


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, whenever the program or the machine stops.

    content: text is written as UTF-8; what came from file names may be none (surrogateescape).
    Raises UserError where it cannot be written.
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
    """Writes a file whole or not at all. Raises UserError where it cannot be written."""
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, rows: Iterable[Sequence]) -> None:
    """Writes a CSV file whole or not at all. Raises UserError where it cannot be written."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_atomic(path, text.getvalue())


def write_error(path: Path, error: Exception) -> UserError:
    """The error for a full disk, a folder that is read-only, a quota."""
    why = getattr(error, "strerror", None) or one_line(error, 300)
    return UserError(
        f"{path} cannot be written ({why}): make room or name another folder, and give the same "
        "command again. A run goes on from its last checkpoint."
    )
