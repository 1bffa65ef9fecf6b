"""Downloaded archives: checks and extracts each once, and never outside its folder."""

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, NamedTuple

from etils import epath
from tqdm import tqdm

from bigan_jax.data.files.folders import file_stamp, path_hash
from bigan_jax.data.files.medical import is_medical
from bigan_jax.errors import UserError, one_line
from bigan_jax.runtime.files import atomic_directory

MAX_FILES = 1_000_000
MAX_BYTES = 200 * 2**30
MAX_RATIO = 200  # extracted bytes per byte of archive; images hardly compress, bombs do
RATIO_EXEMPT_BYTES = 2**30  # extracted bytes below which the ratio is not checked
MAX_HEADER = 2**20  # bytes between two files of a tar, which tarfile reads at once
STORAGE_FLAG = "--config.data.tfds_dir=DIR"
STAMP_FILE = ".archive.json"
PROGRESS_BAR_MIN_BYTES = 50 * 2**20  # size of the archive

_OPENERS = {  # by the first bytes of the file
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_SUFFIX = re.compile(r"(\.tar)?\.(zip|tar|t?gz|tgz|t?bz2|tbz|t?xz|txz)$", re.IGNORECASE)
_READ_ERRORS = (EOFError, OSError, ValueError, NotImplementedError, zlib.error, lzma.LZMAError)
_READ_ERRORS += (MemoryError, OverflowError)  # raised for sizes that cannot be true
_READ_ERRORS += (tarfile.TarError, zipfile.BadZipFile)


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def is_archive(name: str) -> bool:
    """Whether a file is an archive according to its name; a volume (scan.nii.gz) is not."""
    return bool(_SUFFIX.search(name)) and not is_medical(name)


def extract_once(archive: epath.Path, base_dir: Path, storage_flag: str = STORAGE_FLAG) -> epath.Path | None:
    """Extract an archive to `base_dir`/extracted/<name>-<hash of its path>.

    This is done on first use, when the archive has changed, and when extracted files are missing. If the archive no
    longer exists, its earlier extraction is used, if it is complete. `storage_flag` is named in the message about a
    full disk.

    Returns the folder with the content; None if `archive` is a folder or has no extraction. Raises UserError if it is
    not an archive, is corrupt, or may do harm: by links, devices, paths out of the folder, too many or large files.
    """
    name = _SUFFIX.sub("", archive.name)
    target = base_dir / "extracted" / f"{name}-{path_hash(archive)}"
    content = epath.Path(target / name)
    if archive.is_dir():
        return None
    extracted = _read_extraction(target, content)
    if not archive.exists():
        return content if extracted else None
    stamp = file_stamp(archive)
    if extracted == [*stamp]:
        return content
    try:
        with archive.open("rb") as file, atomic_directory(target) as new:
            _extract(file, stamp.size, new / name, archive, storage_flag)
            (new / STAMP_FILE).write_text(json.dumps({"archive": stamp, "content": _content_digest(new / name)}))
    except _READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{archive} cannot be extracted because the disk is full: choose another folder with {storage_flag}."
            ) from error
        raise UserError(
            f"{archive} cannot be extracted ({one_line(error, 300)}). Check that it is complete, download it again, or "
            "extract it yourself and use the folder."
        ) from error
    return content


def _read_extraction(target, content) -> list | None:
    """Returns the stamp of the archive that was extracted to a folder; None if the folder or a part of it is missing.

    Programs that tidy up delete old files, and a user may free some space.
    """
    try:
        stamp = json.loads((target / STAMP_FILE).read_text())
        return stamp["archive"] if stamp["content"] == _content_digest(content) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _content_digest(folder) -> str:
    """Returns a hash of the names and sizes of the files in a folder; hidden ones, of file managers, do not count."""
    files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names if not name.startswith(".")]
    entries = sorted((file.relative_to(folder).as_posix(), file.lstat().st_size) for file in files)
    return blake2b(os.fsencode(json.dumps(entries)), digest_size=16).hexdigest()


def _extract(file, size, target, archive, storage_flag):
    start = file.read(512)
    file.seek(0)
    opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
    if opener == "zip":
        members = _zip_members(file, archive)
    elif opener or start[257:262] == b"ustar":
        members = _tar_members(_LimitedStream(opener(file) if opener else file, size, archive))
        if not opener:
            file.seek(-1024, 2)
            if file.read().strip(b"\0"):
                raise EOFError("it has no end mark")
            file.seek(0)
    else:
        description = "a web page" if start.lstrip()[:1] == b"<" else "not a supported archive"
        supported = "a folder, .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz"
        raise UserError(f"{archive} is {description}: use {supported}.")
    target.mkdir()
    free, n_bytes = shutil.disk_usage(target).free, 0
    quiet = size < PROGRESS_BAR_MIN_BYTES or None  # None: hidden without a terminal
    title = f"extracting {archive.name}"
    with tqdm(total=size, desc=title, unit="B", unit_scale=True, disable=quiet, leave=False) as bar:
        for n_files, member in enumerate(members, 1):
            n_bytes += member.size
            _check_limits(n_files, n_bytes, size, archive)
            if n_bytes > free:
                raise UserError(
                    f"{archive} needs {_format_bytes(n_bytes)} or more, and the disk has "
                    f"{_format_bytes(free)} free: choose another folder with {storage_flag}."
                )
            if path := _relative_path(member.name, archive):
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                with member.open() as content, (target / path).open("wb") as out:
                    shutil.copyfileobj(content, out, 2**20)
            bar.update(file.tell() - bar.n)


def _check_limits(n_files, n_bytes, size, archive):
    if n_files > MAX_FILES:
        raise UserError(f"{archive} has more than {MAX_FILES} files: extract it yourself.")
    if n_bytes > MAX_BYTES or n_bytes > max(RATIO_EXEMPT_BYTES, MAX_RATIO * size):
        raise UserError(
            f"{archive} has {_format_bytes(size)} and would extract to {_format_bytes(n_bytes)} or "
            "more, which looks like a decompression bomb. Extract it yourself if you trust it."
        )


def _format_bytes(n):
    return f"{n / 2**20:.1f} MiB" if n < 2**30 else f"{n / 2**30:.1f} GiB"


def _relative_path(name, archive) -> str | None:
    """Returns the path of a member in the target folder; None for hidden files (skipped)."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:/", path.as_posix()):
        raise UserError(
            f"{archive} refused: its member {name[:300]!r} would lie outside the folder. Extract "
            "it yourself if you trust it, and use the folder."
        )
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return None if hidden or not path.parts else path.as_posix()


def _link_error(name, archive) -> UserError:
    return UserError(
        f"{archive} refused: its member {name[:300]!r} is a link or a device. Pack the files "
        "themselves (tar --dereference)."
    )


def _zip_members(file: BinaryIO, archive: epath.Path) -> Iterator[Member]:
    zip_file = zipfile.ZipFile(file)
    infos = [info for info in zip_file.infolist() if not info.filename.endswith("/")]
    # The directory at the end of the file is checked first: a harmful archive is refused before anything is extracted.
    for info in infos:
        _relative_path(info.filename, archive)
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise _link_error(info.filename, archive)
        if info.flag_bits & 1:
            raise UserError(f"{archive} is protected by a password: extract it yourself.")
        # With other methods zipfile decompresses a block at once, however large the result is.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{archive} is not compressed by deflate: extract it yourself.")
    _check_limits(len(infos), sum(i.file_size for i in infos), file.seek(0, 2), archive)
    for info in infos:
        yield Member(info.filename, info.file_size, partial(zip_file.open, info))


class _LimitedStream:
    """Limits what a stream decompresses to, including the headers and the data after the end."""

    def __init__(self, stream: io.IOBase, size: int, archive: epath.Path):
        self.stream, self.size, self.archive = stream, size, archive
        self.n_read, self.next_header = 0, 0.0

    def read(self, n: int) -> bytes:
        content = self.stream.read(n)
        self.n_read += len(content)
        _check_limits(0, self.n_read, self.size, self.archive)
        if self.n_read > self.next_header + MAX_HEADER:
            raise UserError(f"{self.archive} has a header of more than {_format_bytes(MAX_HEADER)}.")
        return content

    def expect(self, n_bytes: int | float) -> None:
        """Allow `n_bytes`, of a file or of the padding at the end, before the next header."""
        self.next_header = self.n_read + n_bytes


def _tar_members(stream: _LimitedStream) -> Iterator[Member]:
    with tarfile.open(fileobj=stream, mode="r|") as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for info in tar:
            if info.size < 0 or info.issparse():
                raise UserError(
                    f"{stream.archive} refused: the size of its member {info.name[:300]!r} is not that of its content. "
                    "Pack it without --sparse."
                )
            _check_limits(0, info.size, stream.size, stream.archive)  # tarfile skips that far
            stream.expect(info.size)
            if not info.isdir():
                if not info.isfile():
                    raise _link_error(info.name, stream.archive)
                yield Member(info.name, info.size, partial(tar.extractfile, info))  # pyright: ignore[reportArgumentType]
    stream.expect(float("inf"))
    while stream.read(2**20):  # to the end, because only there a truncated file raises an error
        pass
