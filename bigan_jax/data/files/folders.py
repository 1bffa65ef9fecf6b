"""Data folders, local or in a bucket: their image and metadata files by name."""

import os
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from etils import epath

from bigan_jax.data.files import medical
from bigan_jax.data.files.images import SUFFIXES, image_names, map_in_threads, read_encoded, read_files
from bigan_jax.data.files.medical import is_medical, split_slice
from bigan_jax.data.files.unreadable import (
    CONTENT_START,
    UnreadableFile,
    explain_kind,
    is_within_folder,
    require_file,
    require_image_content,
    try_read,
    unreadable_file,
)
from bigan_jax.errors import UserError
from bigan_jax.runtime.files import user_cache_dir

METADATA = "metadata.csv"
LINKED_FOLDER = "a link to a folder of the data folder: not followed, as its files are read where they are"
# Metadata of a bucket's file that changes with its content; the first that it has is used.
_BUCKET_STAMPS = ("etag", "ETag", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified")

# Reads the files with these names; the flag says whether they are masks. Slices become PNG.
FileReader = Callable[[Sequence[str], bool], list[bytes | UnreadableFile]]


# What systems write into folders, in addition to hidden files. Some may not be listed by anyone.
_SYSTEM_FILES = {"__macosx", "thumbs.db", "desktop.ini", "lost+found", "$recycle.bin", "system volume information"}
_SYSTEM_FILES |= {"@eadir"}


class FileStamp(NamedTuple):
    """What changes when a file does, even if its size and its time of modification are restored."""

    size: int  # bytes
    modified: int | str  # nanoseconds, or what a bucket has for it
    changed: int = 0  # nanoseconds: when the inode changed, such as its content, name or permissions
    inode: int = 0


class DataFolder(NamedTuple):
    """The names of the images and metadata files in a folder; files are read on demand."""

    root: epath.Path
    files: dict[str, FileStamp]  # by relative path with forward slashes
    read: FileReader
    unread: tuple[str, ...] = ()  # other files, which are not hidden, and links to folders, which end in /
    unlistable: tuple[UnreadableFile, ...] = ()  # folders

    def images(self, inside: str = "") -> list[str]:
        """Lists the images below the folder `inside`, sorted, as paths relative to it."""
        prefix = f"{inside}/" if inside else ""
        names = (file[len(prefix) :] for file in self.files if file.startswith(prefix))
        return sorted(name for name in names if not _is_metadata(name))

    def metadata_files(self) -> list[str]:
        """Lists the files named metadata.csv, sorted."""
        return sorted(filter(_is_metadata, self.files))

    def subfolders(self, inside: str = "") -> set[str]:
        """Returns the names of the folders directly in `inside` with images at any depth."""
        return {path.partition("/")[0] for path in self.images(inside) if "/" in path}

    def group(self, path: str) -> str:
        """Returns the group of an image (`medical.image_group`); most are a group of their own."""
        return path if is_remote(self.root) else medical.image_group(Path(self.root), path)

    def subfolder(self, inside: str) -> "DataFolder":
        """Returns the folder `inside` of this one; "" is this folder itself."""
        if not inside:
            return self
        prefix = f"{inside}/"
        files = {f[len(prefix) :]: stamp for f, stamp in self.files.items() if f.startswith(prefix)}
        unread = tuple(name.removeprefix(prefix) for name in self.unread if name.startswith(prefix))

        def read(names: Sequence[str], masks: bool) -> list[bytes | UnreadableFile]:
            return self.read([prefix + name for name in names], masks)

        return DataFolder(self.root / inside, files, read, unread)


def resolve_path(path: str | os.PathLike) -> epath.Path:
    """Returns an absolute path, local or in a bucket. Raises UserError for unknown schemes and unreachable buckets."""
    try:
        resolved = epath.Path(path).expanduser()
    except KeyError as error:
        raise UserError(f"{path} has an unknown scheme: use a local path, gs://, s3://, az:// or hf://.") from error
    if not is_remote(resolved):
        return epath.Path(os.path.realpath(resolved))
    try:
        resolved.exists()
    except Exception as error:  # no login, network or package such as gcsfs or s3fs
        raise _unreachable_error(path, error) from error
    return resolved


def _unreachable_error(path, error) -> UserError:
    return UserError(
        f"{path} cannot be reached: {error or type(error).__name__}. Buckets require a login and a package: gcsfs "
        "(gs://), s3fs (s3://), adlfs (az://) or huggingface_hub (hf://)."
    )


def is_remote(path: epath.Path) -> bool:
    """Whether a path lies in a bucket."""
    return "://" in os.fspath(path)


def path_hash(path: epath.Path) -> str:
    """Returns twelve hexadecimal digits that identify a path; it need not exist."""
    return blake2b(os.fsencode(path), digest_size=6).hexdigest()


def tfds_data_dir(tfds_dir: str | os.PathLike) -> epath.Path:
    """Returns the folder of prepared data: `tfds_dir`, TFDS_DATA_DIR or the default of TFDS."""
    return resolve_path(tfds_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def local_folder(folder: epath.Path) -> Path:
    """Returns `folder` if it is local, and a local cache for its content if it is in a bucket."""
    return user_cache_dir() / path_hash(folder) if is_remote(folder) else Path(folder)


def open_folder(root: epath.Path) -> DataFolder:
    """Lists a folder as `walk` does, with metadata.csv in the folders above its images.

    A folder that does not exist has no files. Raises UserError if a bucket cannot be listed.
    """
    if is_remote(root):
        return _open_bucket(root)
    found = walk(Path(root))
    folders = {folder.as_posix() for name in found.images for folder in PurePosixPath(name).parents}
    tables = [file for file in found.tables if PurePosixPath(file).parent.as_posix() in folders]
    folder = select_files(root, [*found.images, *tables])
    return folder._replace(unread=tuple(found.unread), unlistable=tuple(found.unlistable))


class Walk(NamedTuple):
    """The files below a folder as relative paths with forward slashes, sorted; hidden and system files are left out."""

    images: list[str]
    tables: list[str]  # metadata.csv
    unread: list[str]  # other files, and links to folders inside, which end in /
    unlistable: list[UnreadableFile]  # folders


def walk(folder: Path) -> Walk:
    """Lists the files below a folder.

    A file with several slices is listed slice by slice (`medical`). Linked folders are not entered: what lies inside
    `folder` is listed where it is. A link that leads out is listed among the images, so that reading it reports the
    reason.
    """
    found = Walk([], [], [], [])

    def add_unlistable(error: OSError) -> None:
        path = Path(error.filename).relative_to(folder).as_posix()
        reason = f"a folder that cannot be listed ({error.strerror}): its images are missing"
        found.unlistable.append(UnreadableFile(path, reason))

    for parent, folders, files in os.walk(folder, onerror=add_unlistable if folder.is_dir() else None):
        folders[:] = [f for f in folders if not is_hidden(f)]
        relative = Path(parent).relative_to(folder)
        links = [f for f in folders if os.path.islink(Path(parent, f))]
        for f in links:
            is_inside = is_within_folder(Path(parent, f), folder)
            name = (relative / f).as_posix()
            (found.unread if is_inside else found.images).append(f"{name}/" if is_inside else name)
        for f in files:
            if is_hidden(f):
                continue
            if f.lower().endswith(tuple(SUFFIXES)):
                found.images.extend((relative / name).as_posix() for name in image_names(Path(parent, f)))
            else:
                (found.tables if f == METADATA else found.unread).append((relative / f).as_posix())
    return Walk(sorted(found.images), sorted(found.tables), sorted(found.unread), sorted(found.unlistable))


def unread_files(folder: DataFolder) -> list[UnreadableFile]:
    """Returns the files and folders that are not read, each with its reason; files of a bucket are not opened."""

    def explain(name: str) -> UnreadableFile:
        if name.endswith("/"):
            return UnreadableFile(name.rstrip("/"), LINKED_FOLDER)
        start = b""
        if not is_remote(folder.root):
            file = Path(folder.root, name)
            try:
                require_file(file, Path(folder.root))
                with file.open("rb") as stream:
                    start = stream.read(CONTENT_START)
            except Exception as error:
                return unreadable_file(name, error)
        return UnreadableFile(name, explain_kind(PurePosixPath(name).suffix, start))

    return [*folder.unlistable, *map(explain, folder.unread)]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or written by a system (Thumbs.db)."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def select_files(root: epath.Path, names: Sequence[str]) -> DataFolder:
    """Returns a data folder that contains only the files or slices with these names."""
    stamps = {name: file_stamp(root / split_slice(name)[0]) for name in names}
    return DataFolder(root, stamps, (_bucket_reader if is_remote(root) else _reader)(root))


def file_stamp(file: epath.Path) -> FileStamp:
    """Returns the stamp of a file; zeros if there is none."""
    # Not epath's stat(): it has no time of modification on S3, and fails for a user without a name, as in containers.
    if is_remote(file):
        import fsspec

        system, path = fsspec.core.url_to_fs(os.fspath(file))
        return _bucket_stamp(system.info(path))
    try:
        status = os.stat(file)
    except OSError:  # a broken link: reading it reports the reason
        return FileStamp(0, 0)
    return FileStamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _reader(root) -> FileReader:
    return lambda names, masks: read_files(lambda source, _: read_encoded(source, masks), Path(root), names, "files")


def _bucket_reader(root) -> FileReader:
    def read(name: str) -> bytes:
        if is_medical(name):
            raise UserError("DICOM and NIfTI in buckets are not supported: copy the folder here")
        content = (root / name).read_bytes()
        require_image_content(content[:CONTENT_START])
        return content

    return lambda names, masks: map_in_threads(lambda name: try_read(name, lambda: read(name)), names, "files")


def _open_bucket(root: epath.Path) -> DataFolder:
    import fsspec

    try:
        system, top = fsspec.core.url_to_fs(os.fspath(root))
        paths = system.find(top, detail=True)
    except FileNotFoundError:
        paths, top = {}, ""
    except Exception as error:  # no login, network or package such as gcsfs or s3fs
        raise _unreachable_error(root, error) from error
    files, unread = {}, []
    for path, info in sorted(paths.items()):
        name = path[len(top) :].lstrip("/")
        if any(map(is_hidden, PurePosixPath(name).parts)):
            continue
        if _is_metadata(name) or name.lower().endswith(tuple(SUFFIXES)):
            files[name] = _bucket_stamp(info)
        else:
            unread.append(name)
    return DataFolder(root, files, _bucket_reader(root), tuple(unread))


def _bucket_stamp(info):
    return FileStamp(info["size"], next((str(info[key]) for key in _BUCKET_STAMPS if info.get(key)), ""))


def _is_metadata(name):
    return name.rpartition("/")[2] == METADATA
