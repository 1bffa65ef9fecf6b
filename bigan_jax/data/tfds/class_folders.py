"""TFDS datasets of labeled images, such as plant_village, read as folders of class folders."""

import io
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b

import tensorflow_datasets as tfds
from etils import epath
from tqdm import tqdm

from bigan_jax.data.files.folders import DataFolder, file_stamp
from bigan_jax.data.files.unreadable import UnreadableFile
from bigan_jax.data.tfds.reader import open_builder_safely
from bigan_jax.errors import UserError


def fingerprint(folder: epath.Path) -> str:
    """Returns a hash of the names, sizes and times of modification of a dataset's files."""
    stamps = [(f.name, file_stamp(f)) for f in sorted(folder.iterdir())]
    return blake2b(json.dumps(stamps).encode(), digest_size=16).hexdigest()


def open_class_folders(folder: epath.Path) -> DataFolder:
    """Opens a dataset as a folder of images <class>/<file name>.

    All examples are read once, for the names.

    Args:
      folder: a version of a TFDS dataset with the features image, image/filename and label.

    Raises:
      UserError: the dataset cannot be read.
    """
    try:
        info = open_builder_safely(folder).info
        decoders = {"image": tfds.decode.SkipDecoding()}
        files, reader_of = {}, {}
        readers = list(_example_readers(info))
        for read_example in tqdm(readers, f"names in {folder}", disable=None, leave=False):
            example = info.features.deserialize_example_np(read_example(), decoders=decoders)
            name = os.fsdecode(example["image/filename"])
            path = f"{info.features['label'].int2str(example['label'])}/{name}"
            files[path], reader_of[path] = (len(example["image"]), 0), read_example
    except Exception as error:  # of TFDS, protobuf or the file system
        raise UserError(
            f"{folder} cannot be read: {error or type(error).__name__}. Prepare it with TFDS "
            "again, or use a folder of images."
        ) from error

    def read(names: Sequence[str], masks: bool) -> list[bytes | UnreadableFile]:
        examples = (reader_of[name]() for name in names)
        return [info.features.deserialize_example_np(example, decoders=decoders)["image"] for example in examples]

    return DataFolder(folder, files, read)


def _example_readers(info: tfds.core.DatasetInfo) -> Iterator[Callable[[], bytes]]:
    """Yields a function for each example that returns it, still serialized."""
    for split in info.splits.values():
        if info.file_format is tfds.core.FileFormat.TFRECORD:
            for file in split.filepaths:
                yield from _tfrecord_readers(file)
        else:
            method = tfds.decode.DeserializeMethod.RAW_BYTES
            source = open_builder_safely(info.data_dir).as_data_source(split.name, deserialize_method=method)
            yield from (partial(source.__getitem__, i) for i in range(len(source)))


def _tfrecord_readers(file: epath.Path) -> Iterator[Callable[[], bytes]]:
    """The same for a TFRecord file, the default of TFDS, which itself reads it by TensorFlow.

    Each record is stored as its length (8 bytes), a checksum (4), the data, and a checksum (4).
    """

    def read(start: int, length: int) -> bytes:
        with file.open("rb") as records:
            records.seek(start)
            return records.read(length)

    with file.open("rb") as records:
        size = records.seek(0, io.SEEK_END)
        start = 0
        while start < size:
            records.seek(start)
            (length,) = struct.unpack("<Q", records.read(8))
            yield partial(read, start + 12, length)
            start += 8 + 4 + length + 4
