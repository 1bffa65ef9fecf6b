"""Archives as they are downloaded: checked, unpacked once, and never outside their folder."""

import bz2
import errno
import gzip
import json
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from etils import epath
from tqdm import tqdm

from bigan_jax.data.files.folders import identity, stamp
from bigan_jax.data.files.medical import is_medical
from bigan_jax.errors import UserError, printable
from bigan_jax.runtime.files import atomic_directory

MAX_FILES = 1_000_000
MAX_BYTES = 200 * 2**30
MAX_RATIO = 200  # what comes out over what went in; pictures hardly shrink, bombs do
FREE = 2**30  # bytes unpacked that are not held against the ratio
MAX_HEADER = 2**20  # bytes between two files of a tar, which tarfile reads whole
ELSEWHERE = "--config.data.tfds_dir=DIR"
STAMP = ".archive.json"
BAR = 50 * 2**20  # bytes of archive from which on a progress bar is worth its line

_KINDS = {  # how the file begins
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_SUFFIX = re.compile(r"(\.tar)?\.(zip|tar|t?gz|tgz|t?bz2|tbz|t?xz|txz)$", re.IGNORECASE)
_DAMAGE = (EOFError, OSError, ValueError, NotImplementedError, zlib.error, lzma.LZMAError)
_DAMAGE += (MemoryError, OverflowError)  # of sizes that nothing has
_DAMAGE += (tarfile.TarError, zipfile.BadZipFile)


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    size: int
    open: Callable[[], BinaryIO]


def is_archive(name: str) -> bool:
    """Whether a file is an archive by its name; a compressed volume (scan.nii.gz) is none."""
    return bool(_SUFFIX.search(name)) and not is_medical(name)


def extract_once(archive: epath.Path, home: Path, elsewhere: str = ELSEWHERE) -> epath.Path | None:
    """The folder with what is in an archive; None where `archive` is a folder or never was there.

    It is `home`/extracted/<name>-<identity>, unpacked on first use and when the archive changed;
    where the archive is no longer there, what was unpacked from it stands in.
    elsewhere: the flag that names another place, for a full disk.
    Raises UserError for a file that is no archive, is damaged, or holds what may do harm: links,
    devices, paths that lead out, too many or too large files.
    """
    name = _SUFFIX.sub("", archive.name)
    target = home / "extracted" / f"{name}-{identity(archive)}"
    inside = epath.Path(target / name)
    if archive.is_dir() or not archive.exists():
        return inside if target.exists() and not archive.exists() else None
    size, changed = stamp(archive)
    known = json.dumps([size, changed])
    if (target / STAMP).exists() and (target / STAMP).read_text() == known:
        return inside
    try:
        with archive.open("rb") as file, atomic_directory(target) as new:
            _extract(file, size, new / name, archive, elsewhere)
            (new / STAMP).write_text(known)
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{archive} cannot be unpacked, as the disk is full: choose another place by "
                f"{elsewhere}."
            ) from error
        reason = printable(str(error)[:300]) or type(error).__name__
        raise UserError(
            f"{archive} cannot be unpacked ({reason}): is it complete? Compare its size with the "
            "original's, download it again, or unpack it yourself and give the folder."
        ) from error
    return inside


def _extract(file: BinaryIO, size: int, target: Path, archive: epath.Path, elsewhere: str) -> None:
    begin = file.read(512)
    file.seek(0)
    kind = next((kind for magic, kind in _KINDS.items() if begin.startswith(magic)), None)
    if kind == "zip":
        members = _zip_members(file, archive)
    elif kind or begin[257:262] == b"ustar":
        members = _tar_members(_LimitedStream(kind(file) if kind else file, size, archive))
        if not kind:
            file.seek(-1024, 2)
            if file.read().strip(b"\0"):
                raise EOFError("it has no end mark")
            file.seek(0)
    else:
        what = "a web page" if begin.lstrip()[:1] == b"<" else "not an archive that can be read"
        raise UserError(
            f"{archive} is {what}: a folder, .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz is wanted."
        )
    target.mkdir()
    room = shutil.disk_usage(target).free
    files = total = 0
    quiet = size < BAR or None
    title = f"unpacking {archive.name}"
    with tqdm(total=size, desc=title, unit="B", unit_scale=True, disable=quiet, leave=False) as bar:
        for member in members:
            files, total = files + 1, total + member.size
            _check_amount(files, total, size, archive)
            if total > room:
                raise UserError(
                    f"{archive} holds {_size(total)} or more, and there is room for "
                    f"{_size(room)}: choose another place by {elsewhere}."
                )
            if path := _safe(member.name, archive):
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                with member.open() as content, (target / path).open("wb") as out:
                    shutil.copyfileobj(content, out, 2**20)
            bar.update(file.tell() - bar.n)


def _check_amount(files, total, size, archive):
    if files > MAX_FILES:
        raise UserError(f"{archive} holds more than {MAX_FILES} files: unpack it yourself.")
    if total > MAX_BYTES or total > max(FREE, MAX_RATIO * size):
        raise UserError(
            f"{archive} would grow from {_size(size)} to {_size(total)} or more, which is not what "
            "pictures do: it looks like a bomb. Unpack it yourself if you trust it."
        )


def _size(n):
    return f"{n / 2**20:.1f} MiB" if n < 2**30 else f"{n / 2**30:.1f} GiB"


def _safe(name, archive) -> str | None:
    """The path of a member inside the target; None for hidden ones, which are left out."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:/", path.as_posix()):
        raise UserError(
            f"{archive} holds {name[:300]!r}, which would lie outside its folder: refused. "
            "Unpack it yourself, if you trust it, and give the folder."
        )
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return None if hidden or not path.parts else path.as_posix()


def _link(name) -> UserError:
    return UserError(
        f"The archive holds {name[:300]!r}, which is a link or a device: refused. Pack the files "
        "themselves (tar --dereference)."
    )


def _zip_members(file: BinaryIO, archive: epath.Path) -> Iterator[Member]:
    opened = zipfile.ZipFile(file)
    infos = [info for info in opened.infolist() if not info.filename.endswith("/")]
    # All is told at the end of the file, so that nothing is unpacked when something is wrong.
    for info in infos:
        _safe(info.filename, archive)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _link(info.filename)
        if info.flag_bits & 1:
            raise UserError(f"{archive} is locked by a password: unpack it yourself.")
        # Of other methods zipfile unpacks a piece whole, however much comes out.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{archive} is packed otherwise than by deflating: unpack it yourself.")
    total, size = sum(info.file_size for info in infos), file.seek(0, 2)
    _check_amount(len(infos), total, size, archive)
    for info in infos:
        yield Member(info.filename, info.file_size, lambda info=info: opened.open(info))


class _LimitedStream:
    """Stops a stream that unpacks to more than a tar of pictures would: also in its headers, which
    tarfile reads whole, and after its end."""

    def __init__(self, stream: BinaryIO, size: int, archive: epath.Path):
        self.stream, self.size, self.archive, self.total = stream, size, archive, 0
        self.next_header = 0

    def read(self, n: int) -> bytes:
        content = self.stream.read(n)
        self.total += len(content)
        _check_amount(0, self.total, self.size, self.archive)
        if self.total > self.next_header + MAX_HEADER:
            raise UserError(f"{self.archive} has a header of more than {_size(MAX_HEADER)}.")
        return content

    def expect(self, size: float) -> None:
        """So many bytes, of a file or of the padding at the end, come before the next header."""
        self.next_header = self.total + size


def _tar_members(file: _LimitedStream) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r|") as opened:
        for info in opened:
            if info.size < 0 or info.issparse():
                raise UserError(
                    f"{file.archive} holds {info.name[:300]!r}, whose size is not that of its "
                    "content: refused. Pack it without --sparse."
                )
            _check_amount(0, info.size, file.size, file.archive)  # tarfile passes over it
            file.expect(info.size)
            if not info.isdir():
                if not info.isfile():
                    raise _link(info.name)
                yield Member(info.name, info.size, lambda info=info: opened.extractfile(info))
    file.expect(float("inf"))
    while file.read(2**20):  # to the end, where a file that is cut short shows itself
        pass
