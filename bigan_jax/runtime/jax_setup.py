"""What is kept between runs in the user's cache folder: converted weights, compiled programs."""

import ctypes
import os
import re
import stat
import sys
from contextlib import suppress
from pathlib import Path

from bigan_jax.errors import UserError
from bigan_jax.runtime.files import user_cache_dir

OFF = "off"
_PROGRAM = re.compile(r".+-[0-9a-f]{64}-cache")  # as JAX names them
_MOST = 2 * 2**30  # bytes of compiled programs; a run of the Improved BiGAN leaves a few million


def enable_compilation_cache(folder: str = "", most: int = _MOST) -> None:
    """Lets JAX keep compiled programs, so that only the first of like runs compiles them.

    Sets JAX's own variables in this process's environment, for itself and the processes it starts:
    call it before JAX is imported, in a program and not in a library. What the user has set there
    is left as it is.

    folder: where they go; "" is a folder of the user's cache, "off" keeps none.
    most: bytes; the programs not used for longest are deleted first. A run may add to that.
    Raises UserError for a named folder that cannot be used: what is kept there is executed, so that
    nobody else may be able to write to it. The user's cache is done without in that case.
    """
    if folder == OFF:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return
    if not folder and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    path = Path(folder).expanduser().absolute() if folder else user_cache_dir() / "programs"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = _unsafe(path)
        _prune(path, most)
    except OSError as error:
        reason = error.strerror
    if reason and folder:
        raise UserError(f"--compilation_cache={folder}: {reason}. Name another, or {OFF!r}")
    if not reason:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(path)
        # A start is made of many programs that take less than JAX's own second to compile.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _unsafe(folder):
    """Why a folder should not be trusted with programs; "" where it can be."""
    if not os.access(folder, os.W_OK):
        return "the folder cannot be written to"
    if sys.platform == "win32":  # its modes say nothing of other users
        return ""
    there = folder.stat()
    if there.st_uid != os.getuid():
        return "the folder is another user's, who could change the programs that are kept there"
    if there.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write there, and what is kept is executed: chmod 700 {folder}"
    return ""


def _prune(folder, most):
    """JAX has a bound of its own, but takes a lock for every program, which network folders may not
    have, and keeps no more once a run was killed while it wrote one."""
    files = {}
    for path in folder.glob("*-cache"):
        with suppress(OSError):  # another run's, which deletes as well
            there = path.lstat()
            if _PROGRAM.fullmatch(path.name) and stat.S_ISREG(there.st_mode):
                files[path] = max(there.st_atime, there.st_mtime), there.st_size
    size = sum(length for _, length in files.values())
    for path in sorted(files, key=files.get):
        if size <= most:
            break
        with suppress(OSError):
            path.unlink()
        size -= files[path][1]


_MIN_TRIM_BYTES = 2**31 - 1  # bytes free at the end of the heap before any go back


_MALLOC_SETTINGS = {
    -8: 1,
    -4: 0,
    -1: _MIN_TRIM_BYTES,
}  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h


def keep_freed_memory() -> bool:
    """Lets glibc keep what is freed for what is asked for next. Returns whether it could.

    A step's intermediate results lie in one allocation of hundreds of MiB. Left alone it is mapped
    anew for each step, and each of its pages faults and is zeroed when it is first written: a sixth
    of a step's time. Only where memory is glibc's and the user has not set its allocator up; call
    it before JAX is imported, in a program and not in a library.
    """
    chosen = "GLIBC_TUNABLES" in os.environ or any(x.startswith("MALLOC_") for x in os.environ)
    if sys.platform != "linux" or chosen:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*setting) for setting in _MALLOC_SETTINGS.items())
