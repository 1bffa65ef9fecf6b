"""One run at a time in a workdir."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bigan_jax.errors import UserError
from bigan_jax.runtime.files import refuse_links, write_error

try:
    import fcntl
except ImportError:  # Windows: whoever starts two runs in one folder there is on their own
    fcntl = None

NAME = "lock"


@contextmanager
def exclusive_lock(workdir: Path) -> Iterator[None]:
    """Holds a workdir. It is made where it is not there, and goes again where nothing was put in.

    The system lets go of the lock with the process, however that ends: nothing stale remains.
    Raises UserError, naming process and host, while another run holds it.
    """
    new = not workdir.exists()
    refuse_links(workdir)
    path = workdir / NAME
    with _locked(path, workdir) as file:
        try:
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
            file.flush()
            yield
        finally:
            if new and [*workdir.iterdir()] == [path]:
                path.unlink()
                with suppress(OSError):  # another run has come in meanwhile
                    workdir.rmdir()


def _locked(path: Path, workdir: Path) -> BinaryIO:
    while True:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        except OSError as error:
            raise write_error(workdir, error) from error
        try:
            _take(file, workdir)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # of a run that just ended, and took its folder with it


def _take(file: BinaryIO, workdir: Path) -> None:
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{workdir} is in use by another run ({_holder(file)}): wait for it, end it, or give "
            "another --workdir"
        ) from error
    except OSError as error:
        raise UserError(
            f"{workdir} lies on a file system without locks ({error}), where two runs could spoil "
            "each other's files: give a --workdir on another one"
        ) from error


def _holder(file: BinaryIO) -> str:
    try:
        file.seek(0)
        said = json.loads(file.read(1000))
        return f"process {int(said['pid'])} on {ascii(str(said['host']))[1:-1]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has only just started"
