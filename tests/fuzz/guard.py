"""Detects what an attempt must not do: run code, start programs, write outside, exhaust resources.

Python's audit hook sees what Python code does. The folder around the sandbox, compared before and
after, shows what C libraries did. Limits on address space and CPU time apply to both.
"""

import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESS_SPACE = 3 * 2**29  # bytes in addition to those of the imports
MEMORY = 2**28  # bytes that one attempt may add to the previous peak
SECONDS = 60  # CPU time of one attempt; then the kernel ends the process

_PROGRAMS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile")
_PROGRAMS += ("subprocess.Popen", "pty.spawn", "socket.connect", "pickle.find_class")
_PROGRAMS += ("os.kill", "ctypes.dlopen", "cpython.run_file", "cpython.run_command")
_PATHS = {  # the number of leading arguments of an event that are changed paths
    "os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2,
    "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1, "shutil.rmtree": 1,
}  # fmt: skip
_RELATIVE = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.chmod", "os.utime")
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib"))
_REPOSITORY = str(Path(__file__).parents[2])


class Guard:
    """Watches the attempts of this process, which may write to the folder `sandbox` only."""

    def __init__(self, sandbox: Path):
        """Nothing else in the parent of the sandbox may change."""
        self.sandbox = os.path.realpath(sandbox)
        self._outside = sandbox.parent
        (self._outside / "canary").mkdir()
        (self._outside / "canary" / "file.txt").write_text("untouched")
        self._before = self._snapshot()
        self._armed, self._seen = False, []
        sys.addaudithook(self._on_event)

    def limit(self) -> None:
        """Limits the address space of the process from now on."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    @contextmanager
    def armed(self) -> Iterator[list[str]]:
        """Yields a list that holds the violations of the attempt once it is over."""
        violations: list[str] = []
        self._seen, peak = [], _peak()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        self._armed = True
        try:
            yield violations
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            violations += dict.fromkeys(self._seen)
            if (grown := _peak() - peak) > MEMORY:
                violations.append(f"memory: {grown // 2**20} MiB above the previous peak")
            if (now := self._snapshot()) != self._before:
                violations.append(f"changed outside: {sorted(now.items() ^ self._before.items())}")
                self._before = now

    def _snapshot(self):
        """Size and time of change of all files around the sandbox."""
        files_seen = {}
        for parent, folders, files in os.walk(self._outside):
            folders[:] = [f for f in folders if os.path.join(parent, f) != self.sandbox]
            for name in (*folders, *files):
                status = os.lstat(os.path.join(parent, name))
                changed = status.st_mtime_ns if name in files else 0
                files_seen[os.path.join(parent, name)] = (status.st_size, changed)
        return files_seen

    def _on_event(self, event, arguments):
        if not self._armed:
            return
        if event == "open":
            path, _, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            if writes and isinstance(path, str | bytes):
                self._check(event, path)
        elif event in _PATHS:
            count = _PATHS[event]
            # The last arguments are the folders of relative paths.
            folders = arguments[-count:] if event in _RELATIVE else [None] * count
            for path, inside in zip(arguments[:count], folders, strict=True):
                self._check(event, path, inside)
        elif event == "exec":
            name = getattr(arguments[0], "co_filename", "")
            name = name if name.startswith("<") else os.path.abspath(name)
            if not name.startswith(("<frozen", *_LIBRARIES, _REPOSITORY)) and not _makes_namedtuple():
                self._seen.append(f"exec: {name}")
        elif event.startswith(_PROGRAMS):
            self._seen.append(f"{event}: {arguments!r:.200}")

    def _check(self, event, path, inside=None):
        if isinstance(path, int) or path in ("/dev/null", b"/dev/null"):
            return
        path = os.fsdecode(path)
        if isinstance(inside, int) and inside >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{inside}"), path)
        real = os.path.realpath(path)
        if real != self.sandbox and not real.startswith(self.sandbox + os.sep):
            self._seen.append(f"{event}: {real!r:.200}")


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _makes_namedtuple():
    """Whether collections.namedtuple evaluates its own __new__, which is trusted code."""
    frame = sys._getframe(2)
    return frame is not None and frame.f_globals.get("__name__") in ("collections", "dataclasses")
