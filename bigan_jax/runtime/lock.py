"""An exclusive lock on a run's folder, so that two runs do not write the same files."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bigan_jax.errors import UserError
from bigan_jax.runtime.files import refuse_links, write_error

NAME = "lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def exclusive_lock(workdir: Path) -> Iterator[None]:
    """Holds the lock of a run's folder; a folder that it creates and that stays empty is deleted.

    The operating system releases the lock when the process ends in any way, so no lock is ever stale.

    Raises:
      UserError: another run holds the lock, the folder cannot be written or has a link that leads out of it, or its
        file system has no locks.
    """
    created = not workdir.exists()
    refuse_links(workdir)
    path = workdir / NAME
    with _acquire(workdir, path):
        try:
            _write_holder(workdir, path)
            yield
        finally:
            if created and [*workdir.iterdir()] == [path]:
                with suppress(OSError):  # another run has just written there; Windows: file in use
                    path.unlink()
                    workdir.rmdir()


def _acquire(workdir, path):
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # The file is kept on release: if it were deleted and created again, two could be locked.
        return FileLock(path, timeout=0, preserve_lock_file=True).acquire()
    except Timeout as error:
        raise UserError(
            f"{workdir} is in use by another run ({_holder(path)}). Wait for it, end it, or use another --workdir."
        ) from error
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise UserError(
                f"{workdir} is on a file system without locks ({error.strerror}). Use a --workdir on another one."
            ) from error
        raise write_error(workdir, error) from error


def _write_holder(workdir, path):
    content = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
    try:
        with path.open("r+b") as file:
            file.seek(1)  # the lock of Windows is on byte 0, which nobody else can then read
            file.write(content)
            file.truncate()
    except OSError as error:
        raise write_error(workdir, error) from error


def _holder(path):
    try:
        with path.open("rb") as file:
            file.seek(1)
            holder = json.loads(file.read(1000))
        return f"process {int(holder['pid'])} on {ascii(str(holder['host']))[1:-1]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has just started"
