"""TFDS datasets of labeled images, such as plant_village, read as folders of class folders."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tqdm import tqdm

from bigan_jax.data.files.folders import DataFolder, FileStamp, file_stamp
from bigan_jax.data.files.unreadable import UnreadableFile
from bigan_jax.data.tfds.reader import open_builder_safely, serialized_examples
from bigan_jax.errors import UserError


def fingerprint(folder: epath.Path) -> str:
    """Returns a hash of the names, sizes and times of modification of a dataset's files."""
    stamps = [(f.name, file_stamp(f)) for f in sorted(folder.iterdir())]
    return blake2b(json.dumps(stamps).encode(), digest_size=16).hexdigest()


def open_class_folders(folder: epath.Path) -> DataFolder:
    """Opens a TFDS dataset (image, image/filename and label) as a folder of images <class>/<file name>.

    All examples are read once, for the names. Raises UserError if the dataset cannot be read.
    """
    try:
        info = open_builder_safely(folder).info
        features: Any = info.features  # a FeaturesDict, which TFDS annotates as any feature or None

        def parse(example: bytes) -> dict[str, Any]:
            return features.deserialize_example_np(example, decoders={"image": tfds.decode.SkipDecoding()})

        files, reader_of = {}, {}
        for read_example in tqdm([*_example_readers(info)], f"names in {folder}", disable=None, leave=False):
            example = parse(read_example())
            path = f"{features['label'].int2str(example['label'])}/{os.fsdecode(example['image/filename'])}"
            files[path], reader_of[path] = FileStamp(len(example["image"]), 0), read_example
    except Exception as error:  # of TFDS, protobuf or the file system
        raise UserError(
            f"{folder} cannot be read: {error or type(error).__name__}. Prepare it with TFDS again, or use a folder "
            "of images."
        ) from error

    def read(names: Sequence[str], masks: bool) -> list[bytes | UnreadableFile]:
        return [parse(reader_of[name]())["image"] for name in names]

    return DataFolder(folder, files, read)


def _example_readers(info: tfds.core.DatasetInfo) -> Iterator[Callable[[], bytes]]:
    """Yields a function for each example that returns it, still serialized."""
    for split in info.splits.values():
        if info.file_format is tfds.core.FileFormat.TFRECORD:
            for file in split.filepaths:
                yield from _tfrecord_readers(file)
        else:
            source = serialized_examples(info.data_dir, split.name)
            yield from (partial(source.__getitem__, i) for i in range(len(source)))


def _tfrecord_readers(file: epath.Path) -> Iterator[Callable[[], bytes]]:
    """The same for a TFRecord file: each record is its length (8 bytes), a checksum (4), the data, a checksum (4)."""

    def read(start: int, length: int) -> bytes:
        with file.open("rb") as records:
            records.seek(start)
            return records.read(length)

    with file.open("rb") as records:
        size, start = records.seek(0, os.SEEK_END), 0
        while start < size:
            records.seek(start)
            length = int.from_bytes(records.read(8), "little")
            yield partial(read, start + 12, length)
            start += 8 + 4 + length + 4
