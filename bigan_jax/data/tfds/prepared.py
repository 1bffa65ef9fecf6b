"""Data folders as prepared TFDS datasets, without TensorFlow.

The encoded bytes of images and masks are stored in ArrayRecord files, which are read in any order. TFDS's
metadata.json has the listing and a fingerprint of the data folder.
"""

import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import array_record.python.array_record_module  # noqa: F401 (TFDS would import it late)
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from bigan_jax.data.files.folders import DataFolder, is_remote, local_folder
from bigan_jax.data.files.images import PROGRESS_BAR_MIN_ITEMS
from bigan_jax.data.files.unreadable import UnreadableFile
from bigan_jax.data.layouts.layout import Layout
from bigan_jax.data.records import ImageRecord, Listing
from bigan_jax.data.tfds.paths import VERSION
from bigan_jax.data.tfds.reader import serialized_examples
from bigan_jax.errors import UserError
from bigan_jax.runtime.files import atomic_directory

INDEX_FILE = "metadata.json"
SPLIT = "images"  # the only one: images are split by seed and group when they are loaded
CHUNK_SIZE = 128  # images read from the folder at a time


class PreparedDataset(NamedTuple):
    """A prepared dataset: its listing, and its examples in the same order, still serialized."""

    listing: Listing
    fingerprint: str
    unreadable: dict[str, str]  # by path: why a file could not be read
    examples: Sequence[bytes]

    def read(self, index: int, feature: str) -> bytes:
        """Returns the encoded "image" or "mask" of a record; b"" if there is none."""
        example = tf_example_pb2.Example.FromString(self.examples[index])  # pyright: ignore[reportAttributeAccessIssue]
        return example.features.feature[feature].bytes_list.value[0]


class EncodedImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds a dataset of encoded images and masks, in the order of the listing."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, layout: Layout, config: str, index: dict, examples: Iterator[dict], data_dir: Path):
        """Takes the name of the dataset as `config` and the content of metadata.json as `index`."""
        self.name = layout.builder  # pyright: ignore[reportAttributeAccessIssue]
        self._description, self._index, self._examples = layout.description, index, examples
        super().__init__(config=tfds.core.BuilderConfig(name=config), data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._description,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(self._index),
            features=tfds.features.FeaturesDict(
                {
                    "image": text(doc="the bytes of the file, in any format"),
                    "mask": text(doc="the same; empty if there is none"),
                    "path": text(doc="relative to the data folder"),
                    "mask_path": text(),
                    "label": tfds.features.ClassLabel(names=["normal", "anomalous"]),
                    "defect_type": text(doc="good for normal images"),
                    "group": text(doc="never divided: a patient, a camera block"),
                    "condition": text(doc="species or category"),
                    "camera_sequence": text(),
                    "camera_number": tfds.features.Scalar(np.int64, doc="-1 if unknown"),
                    "official_split": text(doc="train, test or empty"),
                }
            ),
        )

    def _split_generators(self, _) -> dict:
        return {SPLIT: enumerate(self._examples)}

    def _generate_examples(self):
        raise NotImplementedError  # _split_generators returns the examples


def fingerprint(listing: Listing, folder: DataFolder) -> str:
    """Returns a hash of a listing and of the stamps of its files."""
    stamps = [folder.files[file] for file in listing.files()]
    return blake2b(json.dumps([listing, stamps]).encode(), digest_size=16).hexdigest()


def reopen(path: epath.Path) -> PreparedDataset | None:
    """Opens the prepared dataset in a folder; None if it is missing, incomplete or invalid."""
    index = _read_index(path)
    if index is None:
        return None
    local = path
    if is_remote(path):  # ArrayRecord reads local files
        local = _local_copy(path)
        if _read_index(local) != index:
            _download(path, local)
    try:
        listing = index["listing"]
        records = [ImageRecord._make([*row[:-1], row[-1] and tuple(row[-1])]) for row in listing["records"]]
        listing = Listing._make([records, *(tuple(listing[field]) for field in Listing._fields[1:])])
        with _silence_tfds():
            examples = serialized_examples(local, SPLIT)
        if len(examples) != len(records) or not (examples[0] and examples[len(records) - 1]):
            return None
        return PreparedDataset(listing, index["fingerprint"], index["unreadable"], examples)
    except Exception:  # an invalid dataset is prepared again, whatever the reason
        return None


def reopen_or_prepare(
    layout: Layout, path: epath.Path, fingerprint: str, open_data: Callable[[], tuple[Listing, DataFolder]]
) -> PreparedDataset:
    """Opens a prepared dataset; if it is missing or of another fingerprint, it is written first.

    A new dataset replaces an earlier one once it is complete. Nothing is decoded, and a file that cannot be read is
    recorded as unreadable. Raises UserError if the dataset cannot be written.
    """
    dataset = reopen(path)
    if dataset and dataset.fingerprint == fingerprint:
        return dataset
    listing, folder = open_data()
    unreadable = {}
    index = {"fingerprint": fingerprint, "listing": listing._asdict(), "unreadable": unreadable}
    config = path.parent.name
    local = _local_copy(path) if is_remote(path) else Path(path)
    examples = _encode_examples(listing, folder.read, unreadable, f"preparing {config.rpartition('-')[0]}")
    try:
        with atomic_directory(local) as new, _silence_tfds():
            data_dir = new.parent / "tfds"  # removed afterwards, with all else that TFDS writes
            builder = EncodedImages(layout, config, index, examples, data_dir)
            builder.download_and_prepare(file_format="array_record")
            new.rmdir()
            Path(builder.data_dir).rename(new)
        if is_remote(path):
            _upload(local, path)
    except OSError as error:
        raise UserError(
            f"{local} cannot be written ({error}). Choose another folder with --config.data.tfds_dir=DIR."
        ) from error
    if (dataset := reopen(path)) is None:
        raise UserError(f"{local} was replaced by another process while it was read. Start again.")
    return dataset


def _encode_examples(listing, read, unreadable, title) -> Iterator[dict]:
    """Yields the examples of a listing; adds files that cannot be read to `unreadable`."""
    disable = len(listing.records) < PROGRESS_BAR_MIN_ITEMS or None  # None: without a terminal
    with tqdm(total=len(listing.records), desc=title, disable=disable, leave=False) as bar:
        for start in range(0, len(listing.records), CHUNK_SIZE):
            chunk = listing.records[start : start + CHUNK_SIZE]
            images = read([r.path for r in chunk], False)
            mask_paths = [r.mask for r in chunk if r.mask]
            masks = dict(zip(mask_paths, read(mask_paths, True), strict=True))
            for record, image in zip(chunk, images, strict=True):
                mask = masks.get(record.mask, b"")
                failed = [file for file in (image, mask) if isinstance(file, UnreadableFile)]
                unreadable.update((file.path, file.reason) for file in failed)
                condition = listing.conditions[record.condition] if listing.conditions else ""
                sequence, number = record.camera or ("", -1)
                yield {
                    "image": b"" if image in failed else image,
                    "mask": b"" if mask in failed else mask,
                    "path": os.fsencode(record.path),
                    "mask_path": os.fsencode(record.mask or ""),
                    "label": int(record.label),
                    "defect_type": os.fsencode(record.defect_type),
                    "group": os.fsencode(record.group),
                    "condition": os.fsencode(condition),
                    "camera_sequence": os.fsencode(sequence),
                    "camera_number": number,
                    "official_split": record.official_split or "",
                }
                bar.update()


def _read_index(folder) -> dict | None:
    try:
        return json.loads((epath.Path(folder) / INDEX_FILE).read_text())
    except (OSError, ValueError):
        return None


def _local_copy(path: epath.Path) -> Path:
    return local_folder(path.parent.parent.parent).joinpath(*path.parts[-3:])


def _download(bucket: epath.Path, local: Path) -> None:
    files = list(bucket.iterdir())
    with atomic_directory(local) as new:
        for file in tqdm(files, f"from {bucket.parent}", disable=None, leave=False):
            (new / file.name).write_bytes(file.read_bytes())


def _upload(local: Path, bucket: epath.Path) -> None:
    """Copies a prepared dataset to a bucket, which cannot rename a folder.

    A dataset without its index counts as missing, so the old index is removed first and the new one is written last.
    """
    if bucket.exists():
        (bucket / INDEX_FILE).unlink(missing_ok=True)
        bucket.rmtree()
    bucket.mkdir(parents=True, exist_ok=True)
    files = sorted(local.iterdir(), key=lambda file: file.name == INDEX_FILE)
    for file in tqdm(files, f"to {bucket.parent}", disable=None, leave=False):
        (bucket / file.name).write_bytes(file.read_bytes())


@contextmanager
def _silence_tfds() -> Iterator[None]:
    """Suppresses TFDS's messages on stdout, progress bars and warnings."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
