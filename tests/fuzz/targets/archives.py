"""Archives as data folders or as input of predict."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st

from bigan_jax.data.files import archives
from bigan_jax.data.inputs import open_inputs
from bigan_jax.errors import UserError
from tests.fuzz.mutations import NUMBERS, corrupt, corrupt_inside, corruptions
from tests.fuzz.targets.images import SEEDS as IMAGES

archives.RATIO_EXEMPT_BYTES = 2**22  # a smaller limit than the default shows the same, and sooner
archives.MAX_FILES = 1000
MAX_BYTES = 2 * archives.RATIO_EXEMPT_BYTES  # of extracted files

_FILES = {"a/1.png": IMAGES["gray.PNG"], "a/b/2.jpg": IMAGES["gray.JPEG"], ".x/3.png": b"3"}
_PACKERS = {
    "tar": (bytes, bytes),
    "tar.gz": (gzip.compress, gzip.decompress),
    "tar.bz2": (bz2.compress, bz2.decompress),
    "tar.xz": (lzma.compress, lzma.decompress),
}
_METHODS = {"stored": 0, "deflated": 8, "bzip2": 12, "lzma": 14}


def _zip(files, method=zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(content := io.BytesIO(), "w", method) as out:
        for name, data in files:
            out.writestr(zipfile.ZipInfo(name), data, method)
    return content.getvalue()


def _tar(format=tarfile.GNU_FORMAT, **headers) -> bytes:
    with tarfile.open(fileobj=(content := io.BytesIO()), mode="w", format=format) as out:
        for name, data in _FILES.items():
            info = tarfile.TarInfo(name * 30 if headers else name)
            info.size, info.pax_headers = len(data), headers
            out.addfile(info, io.BytesIO(data))
    return content.getvalue()


SEEDS = {
    **{f"{name}.zip": _zip(_FILES.items(), method) for name, method in _METHODS.items()},
    **{f"gnu.{name}": pack(_tar()) for name, (pack, _) in _PACKERS.items()},
    "pax.tar": _tar(tarfile.PAX_FORMAT, comment="words"),
    "sparse.tar": _tar(tarfile.PAX_FORMAT, **{"GNU.sparse.major": "0", "GNU.sparse.size": "9"}),
}

_NAMES = ["a.png", "a", "a/b.png", "../a.png", "/tmp/a.png", "..\\a.png", "C:/a.png", "a\0b.png"]
_NAMES += ["a" * 300 + ".png", "\x1b[2Ja.png", "<b>.png", "a//b.png", "./a.png", ".", "", "\u202ea"]
_TYPES = b"0".join([b"", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"x", b"g", b"L", b"K"])
_SIZES = [0, 10, *NUMBERS, -1, -600, -(10**15)]
_RECORDS = ["path", "size", "linkpath", "GNU.sparse.realsize", "GNU.sparse.map", "GNU.sparse.major"]
_RECORDS += ["GNU.sparse.minor", "GNU.sparse.size", "GNU.sparse.numblocks", "hdrcharset", "mtime"]
_entries = st.lists(
    st.tuples(
        st.sampled_from(_NAMES),
        st.integers(0, len(_TYPES) - 1),
        st.none() | st.sampled_from(_SIZES),
        st.dictionaries(
            st.sampled_from(_RECORDS), st.sampled_from([*map(str, _SIZES), *_NAMES, "0,9"]),
            max_size=3,
        ),
    ),
    max_size=4,
)  # fmt: skip
cases = st.tuples(st.just("corrupt"), corruptions(SEEDS, ("plain", "inside"))) | st.tuples(
    st.sampled_from(["zip", "tar", "tar.gz"]), _entries
)
warm = [("corrupt", (name, "plain", [], name)) for name in SEEDS]


def attempt(case, folder: Path) -> Iterator[str]:
    kind, content_of = case
    if kind == "corrupt":
        name, wrapping, changes, other = content_of
        name, content = name.partition(".")[2], _corrupt(name, wrapping, changes, other)
    else:
        name, content = kind, _built(kind, content_of)
    (folder / "out").mkdir()
    (archive := folder / f"a.{name}").write_bytes(content)
    try:
        with open_inputs(archive, folder / "out") as (source, names, _):
            _check_extracted(folder / "out")
            contents = source.read(names, False)
            yield from (c.reason for c in contents if not isinstance(c, bytes))
    except UserError as error:
        yield str(error)
    remaining = list((folder / "out").rglob("*"))
    assert not remaining, f"not deleted: {remaining}"


def _corrupt(name, wrapping, changes, other):
    content, other = SEEDS[name], SEEDS[other]
    packer = _PACKERS.get(name.partition(".")[2])
    if wrapping == "inside" and packer:
        pack, unpack = packer
        return corrupt_inside(content, changes, other, unpack, lambda tar: pack(_checksummed(tar)))
    return corrupt(content, changes, other)


def _checksummed(tar):
    """The archive with correct checksums in everything that looks like a header."""
    tar = bytearray(tar)
    for at in range(0, len(tar) - 511, 512):
        if tar[at + 257 : at + 262] == b"ustar":
            tar[at + 148 : at + 156] = b" " * 8
            tar[at + 148 : at + 156] = b"%06o\0 " % sum(tar[at : at + 512])
    return bytes(tar)


def _built(kind, entries):
    if kind == "zip":
        content = bytearray(_zip((name, b"x" * 10) for name, *_ in entries))
        at = 0
        for _, choice, size, _ in entries:  # entries of the central directory
            at = content.find(b"PK\1\2", at + 1)
            if size is not None and at > 0:
                content[at + 24 : at + 28] = (size % 2**32).to_bytes(4, "little")
                content[at + 10] = list(_METHODS.values())[choice % 4]
        return bytes(content)
    parts = []
    for name, choice, size, headers in entries:
        info = tarfile.TarInfo(name)
        info.type, info.pax_headers = _TYPES[choice : choice + 1], headers
        info.size = 10 if size is None else size
        try:
            parts.append(info.tobuf(tarfile.PAX_FORMAT if headers else tarfile.GNU_FORMAT))
        except ValueError:
            continue
        parts.append(b"x" * 10 + bytes(502))
    tar = b"".join(parts) + bytes(1024)
    return gzip.compress(tar) if kind == "tar.gz" else tar


def _check_extracted(folder):
    """Checks that extracted files lie in the folder, are not links, and respect the limit."""
    total = 0
    for path in folder.rglob("*"):
        assert not path.is_symlink() and (path.is_dir() or path.is_file()), f"{path} is a link"
        total += path.lstat().st_size
    assert total < MAX_BYTES, f"{total} bytes were extracted"
    assert os.path.realpath(folder) == str(folder.resolve())
