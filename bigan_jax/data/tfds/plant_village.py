"""TFDS's own plant_village, where somebody has prepared it, as a data folder of class folders."""

import io
import json
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b

import tensorflow_datasets as tfds
from etils import epath
from tqdm import tqdm

from bigan_jax.data.files.folders import DataFolder, file_stamp, is_remote
from bigan_jax.data.files.unreadable import UnreadableFile
from bigan_jax.data.tfds.reader import open_builder_safely
from bigan_jax.errors import UserError

NAME = "plant_village"
INFO = "dataset_info.json"
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*")


def find_plant_village(home: epath.Path) -> epath.Path | None:
    """The newest version of it below `home`."""
    found = [] if is_remote(home) else [v for v in (home / NAME).glob("*") if is_plant_village(v)]
    versions = [v for v in found if _VERSION.fullmatch(v.name)]  # a copy may be called otherwise
    return max(versions, key=lambda v: [int(n) for n in v.name.split(".")], default=None)


def is_plant_village(folder: epath.Path) -> bool:
    """Whether TFDS's plant_village lies in `folder`."""
    return folder.parent.name == NAME and (folder / INFO).exists()


def fingerprint(folder: epath.Path) -> str:
    """Stands for names, sizes and times of change of its files."""
    stamps = [(f.name, file_stamp(f)) for f in sorted(folder.iterdir())]
    return blake2b(json.dumps(stamps).encode(), digest_size=16).hexdigest()


def open_plant_village(folder: epath.Path) -> DataFolder:
    """Its pictures as <class>/<file name>, which give species, state and camera numbers.

    Reads the whole set once, for the names. Raises UserError where it cannot be read.
    """
    try:
        info = open_builder_safely(folder).info
        keep = {"image": tfds.decode.SkipDecoding()}
        files, raw_of = {}, {}
        for raw in tqdm(list(_examples(info)), f"names in {folder}", disable=None, leave=False):
            example = info.features.deserialize_example_np(raw(), decoders=keep)
            name = os.fsdecode(example["image/filename"])
            path = f"{info.features['label'].int2str(example['label'])}/{name}"
            files[path], raw_of[path] = (len(example["image"]), 0), raw
    except Exception as error:  # TFDS's, protobuf's, those of files
        raise UserError(
            f"{folder} cannot be read: {error or type(error).__name__}. Prepare it with TFDS "
            "again, or give a folder of pictures."
        ) from error

    def read(names: Sequence[str], masks: bool) -> list[bytes | UnreadableFile]:
        raws = (raw_of[name]() for name in names)
        return [info.features.deserialize_example_np(raw, decoders=keep)["image"] for raw in raws]

    return DataFolder(folder, files, read)


def _examples(info: tfds.core.DatasetInfo) -> Iterator[Callable[[], bytes]]:
    """What reads each example, still serialized."""
    for split in info.splits.values():
        if info.file_format is tfds.core.FileFormat.TFRECORD:
            for file in split.filepaths:
                yield from _records(file)
        else:
            method = tfds.decode.DeserializeMethod.RAW_BYTES
            source = open_builder_safely(info.data_dir).as_data_source(
                split.name, deserialize_method=method
            )
            yield from (partial(source.__getitem__, i) for i in range(len(source)))


def _records(file: epath.Path) -> Iterator[Callable[[], bytes]]:
    """A TFRecord: length (8 bytes), its checksum (4), the record, its checksum (4), and again.

    What prepares the record is TFDS's default, and its own reader of it is TensorFlow.
    """

    def read(start: int, length: int) -> bytes:
        with file.open("rb") as opened:
            opened.seek(start)
            return opened.read(length)

    with file.open("rb") as opened:
        size = opened.seek(0, io.SEEK_END)
        start = 0
        while start < size:
            opened.seek(start)
            (length,) = struct.unpack("<Q", opened.read(8))
            yield partial(read, start + 12, length)
            start += 8 + 4 + length + 4
