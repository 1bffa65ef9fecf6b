"""Where data lie, here or in a bucket: a folder's files by name, and folders that appear whole."""

import os
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from etils import epath

from bigan_jax.data.files import medical
from bigan_jax.data.files.images import SUFFIXES, encoded, list_images, map_in_threads, read_all
from bigan_jax.data.files.medical import is_medical, split_slice
from bigan_jax.data.files.unreadable import UnreadableFile, try_read
from bigan_jax.errors import UserError
from bigan_jax.runtime.files import user_cache_dir

METADATA = "metadata.csv"

Stamp = tuple[int, int | str]  # bytes, and time of change or whatever a bucket has for it
# The files with these names, which are masks or not; slices of volumes are made pictures.
Contents = Callable[[Sequence[str], bool], list[bytes | UnreadableFile]]


class DataFolder(NamedTuple):
    """A data folder as the names in it: pictures, tables; read only when they are wanted."""

    root: epath.Path
    files: dict[str, Stamp]  # by relative path with forward slashes
    read: Contents

    def pictures(self, inside: str = "") -> list[str]:
        """The pictures below the folder `inside`, relative to it, sorted."""
        start = f"{inside}/" if inside else ""
        found = (file[len(start) :] for file in self.files if file.startswith(start))
        return sorted(file for file in found if not _is_table(file))

    def tables(self) -> list[str]:
        """The files named metadata.csv, sorted."""
        return sorted(filter(_is_table, self.files))

    def folders(self, inside: str = "") -> set[str]:
        """The names of the folders directly in `inside` that have pictures at any depth."""
        return {path.partition("/")[0] for path in self.pictures(inside) if "/" in path}

    def group(self, path: str) -> str:
        """What a picture belongs with (`medical.group`); for most files, only itself."""
        return path if is_remote(self.root) else medical.group(Path(self.root), path)

    def enter(self, inside: str) -> "DataFolder":
        """The folder `inside` of this one, "" for this one."""
        if not inside:
            return self
        start = f"{inside}/"
        files = {f[len(start) :]: stamp for f, stamp in self.files.items() if f.startswith(start)}
        return DataFolder(
            self.root / inside,
            files,
            lambda names, masks: self.read([start + name for name in names], masks),
        )


def as_path(given: str | os.PathLike) -> epath.Path:
    """An absolute path here, or one in a bucket: gs://, s3://, az:// or hf://.

    Raises UserError for other kinds, and for a bucket that cannot be reached.
    """
    try:
        path = epath.Path(given).expanduser()
    except KeyError as error:
        raise UserError(
            f"{given}: paths of this kind are not known; gs://, s3://, az:// and hf:// are"
        ) from error
    if not is_remote(path):
        return epath.Path(os.path.realpath(path))
    try:
        path.exists()
    except Exception as error:  # a login, a network, a package such as gcsfs or s3fs
        raise _unreachable(given, error) from error
    return path


def _unreachable(path, error) -> UserError:
    return UserError(
        f"{path} cannot be reached: {error or type(error).__name__}. Buckets want a login and a "
        "package: gcsfs (gs://), s3fs (s3://), adlfs (az://) or huggingface_hub (hf://)."
    )


def is_remote(path: epath.Path) -> bool:
    """Whether a path lies in a bucket."""
    return "://" in os.fspath(path)


def identity(path: epath.Path) -> str:
    """Twelve hexadecimal digits that stand for a path, there or not."""
    return blake2b(os.fsencode(path), digest_size=6).hexdigest()


def tfds_home(tfds_dir: str | os.PathLike) -> epath.Path:
    """Where prepared data go: `tfds_dir`, else TFDS_DATA_DIR, else TFDS's own default."""
    return as_path(tfds_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def _is_table(name):
    return name.rpartition("/")[2] == METADATA


def local_home(home: epath.Path) -> Path:
    """A folder of this machine for what `home` holds: `home`, or a cache where it is a bucket."""
    if not is_remote(home):
        return Path(home)
    return user_cache_dir() / identity(home)


def open_folder(root: epath.Path) -> DataFolder:
    """The pictures (`list_pictures`) and, in the folders above them, the tables of a folder; no
    files where there is none.

    Raises UserError for a bucket that cannot be listed.
    """
    if is_remote(root):
        return DataFolder(root, _list_bucket(os.fspath(root)), _reads_bucket(root))
    here = Path(root)
    names = list_images(here) if here.is_dir() else []
    holding = {PurePosixPath(folder) for folder in {name.rpartition("/")[0] for name in names}}
    above = {folder for path in holding for folder in (path, *path.parents)}
    tables = [(f / METADATA).as_posix() for f in above if (here / f / METADATA).is_file()]
    return some_files(root, [*names, *tables])


def some_files(root: epath.Path, names: Sequence[str]) -> DataFolder:
    """A folder of which only the files (or slices) with these names are seen."""
    stamps = {name: stamp(root / split_slice(name)[0]) for name in names}
    return DataFolder(root, stamps, _reads_bucket(root) if is_remote(root) else _reads(Path(root)))


def stamp(file: epath.Path) -> Stamp:
    """What changes when a file does."""
    # Not by epath: its stat() knows no time of change on S3, and here fails for a user without a
    # name, as containers have them.
    if is_remote(file):
        import fsspec

        system, path = fsspec.core.url_to_fs(os.fspath(file))
        return _bucket_stamp(system.info(path))
    try:
        status = os.stat(file)
    except OSError:  # a link to nowhere: reading it tells
        return (0, 0)
    return (status.st_size, status.st_mtime_ns)


def _reads(root):
    def read(names: Sequence[str], masks: bool) -> list[bytes | UnreadableFile]:
        contents, broken = read_all(lambda x, _: encoded(x, masks), root, names, "files")
        reason = {b.path: b for b in broken}
        return [reason.get(n, content) for n, content in zip(names, contents, strict=True)]

    return read


def _reads_bucket(root):
    def read(name: str) -> bytes:
        if is_medical(name):
            raise UserError("DICOM and NIfTI are not read from a bucket: copy the folder here")
        return (root / name).read_bytes()

    return lambda names, masks: map_in_threads(
        lambda name: try_read(name, lambda: read(name)), names, "files"
    )


def _list_bucket(root: str) -> dict[str, Stamp]:
    import fsspec

    try:
        system, top = fsspec.core.url_to_fs(root)
        found = system.find(top, detail=True)
    except FileNotFoundError:
        return {}
    except Exception as error:  # a login, a network, a package such as gcsfs or s3fs
        raise _unreachable(root, error) from error
    files = {}
    for path, info in sorted(found.items()):
        name = path[len(top) :].lstrip("/")
        hidden = any(p.startswith(".") or p == "__MACOSX" for p in PurePosixPath(name).parts)
        if not hidden and (_is_table(name) or name.lower().endswith(tuple(SUFFIXES))):
            files[name] = _bucket_stamp(info)
    return files


def _bucket_stamp(info):
    return info["size"], next((str(info[key]) for key in _CHANGED if info.get(key)), "")


# What a bucket says of a file's content or its last change.
_CHANGED = ("etag", "ETag", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified")
