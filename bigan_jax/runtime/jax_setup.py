"""Settings of the process that must be made before JAX is imported: program cache, allocator."""

import ctypes
import functools
import os
import re
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from bigan_jax.errors import UserError
from bigan_jax.runtime.files import user_cache_dir

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

OFF = "off"
_PROGRAM = re.compile(r".+-[0-9a-f]{64}-cache")  # JAX's names of compiled programs
_MAX_CACHE_BYTES = 2 * 2**30  # a run of the Improved BiGAN adds a few million

# M_ARENA_MAX, M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h: one heap, no mapped blocks, and a heap that never shrinks.
_MALLOC_SETTINGS = {-8: 1, -4: 0, -1: 2**31 - 1}


def enable_compilation_cache(folder: str = "", max_bytes: int = _MAX_CACHE_BYTES) -> None:
    """Makes JAX keep compiled programs on disk, so that a similar run need not compile them again.

    Sets environment variables of JAX for this process and its children, except those that the user has set. Call it
    before JAX is imported, in a program and not in a library.

    Args:
      folder: "" is a folder in the user's cache, "off" disables the cache.
      max_bytes: the least recently used programs beyond this size are deleted now; the run may add others.

    Raises:
      UserError: `folder` is a path and cannot be used: cached programs are executed, so nobody else may write there.
        The user's own cache is skipped silently in that case.
    """
    if folder == OFF:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return
    if not folder and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    path = Path(folder).expanduser().absolute() if folder else user_cache_dir() / "programs"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = _why_unsafe(path)
        _prune(path, max_bytes)
    except OSError as error:
        reason = error.strerror
    if reason and folder:
        raise UserError(f"--compilation_cache={folder}: {reason}. Use another folder or {OFF!r}.")
    if not reason:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(path)
        # JAX's default of one second would skip the many small programs of a start.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def fast_compilation() -> dict[str, int] | None:
    """Returns the `compiler_options` of `jax.jit` for a program that runs once, which takes less time than to compile.

    On a CPU, LLVM optimizes less, in a third of the time; the results are the same, bit by bit.
    """
    import jax

    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None


def unavailable_platforms() -> str:
    """Returns the message for a JAX_PLATFORMS of which there is no device here; "" if JAX has one or is not used."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if not platforms or "jax" not in sys.modules:
        return ""
    import jax

    try:
        jax.devices()
    except Exception:
        return (
            f"JAX_PLATFORMS={platforms}: JAX finds no such device here. Use JAX_PLATFORMS=cpu, or install the driver "
            "of the device and the JAX that supports it, such as pip install 'jax[cuda12]'."
        )
    return ""


def require_platforms(command: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Lets a function raise a UserError in place of JAX's error if JAX_PLATFORMS names a device that is not here."""

    @functools.wraps(command)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        try:
            return command(*args, **kwargs)
        except UserError:
            raise
        except Exception as error:  # of any kind: JAX fails in several ways without a device
            if not (problem := unavailable_platforms()):
                raise
            raise UserError(problem) from error

    return checked


def _why_unsafe(folder):
    """Returns why a folder cannot be trusted with programs, or ""."""
    if not os.access(folder, os.W_OK):
        return "the folder is not writable"
    if sys.platform == "win32":  # its file modes do not show the rights of other users
        return ""
    status = folder.stat()
    if status.st_uid != os.getuid():
        return "the folder belongs to another user, who could change the programs in it"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it, and its programs are executed (chmod 700 {folder})"
    return ""


def _prune(folder, max_bytes):
    # JAX's own limit needs a lock for each program, which network folders may not have, and JAX stops caching when a
    # run is killed while it writes one.
    files: dict[Path, tuple[float, int]] = {}
    for path in folder.glob("*-cache"):
        with suppress(OSError):  # another run has just deleted it
            status = path.lstat()
            if _PROGRAM.fullmatch(path.name) and stat.S_ISREG(status.st_mode):
                files[path] = max(status.st_atime, status.st_mtime), status.st_size
    size = sum(length for _, length in files.values())
    for path in sorted(files, key=files.__getitem__):
        if size <= max_bytes:
            break
        with suppress(OSError):
            path.unlink()
        size -= files[path][1]


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for the next allocation, and returns whether it does.

    By default each training step maps hundreds of MiB again, whose pages fault and are zeroed on first use: a sixth of
    a step's time. Nothing is changed on other systems, or if the user's environment sets the allocator. Call it before
    JAX is imported, in a program and not in a library.
    """
    configured = "GLIBC_TUNABLES" in os.environ or any(x.startswith("MALLOC_") for x in os.environ)
    if sys.platform != "linux" or configured:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*setting) for setting in _MALLOC_SETTINGS.items())
