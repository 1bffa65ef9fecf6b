"""Data folders as prepared TFDS datasets, without TensorFlow.

The encoded bytes of images and masks are stored in ArrayRecord files, which are read in any order. TFDS's
metadata.json has the listing, a fingerprint of the data folder and the digests of these files.
"""

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import array_record.python.array_record_module  # noqa: F401 (TFDS would import it late)
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from bigan_jax.data.files.folders import DataFolder, is_remote, local_folder
from bigan_jax.data.files.images import PROGRESS_BAR_MIN_ITEMS, merge_masks
from bigan_jax.data.files.medical import is_dicom, is_medical, require_same_space, split_slice
from bigan_jax.data.files.unreadable import UnreadableFile, try_read
from bigan_jax.data.layouts.layout import Layout
from bigan_jax.data.records import ImageRecord, Listing
from bigan_jax.data.tfds.paths import VERSION
from bigan_jax.data.tfds.reader import serialized_examples
from bigan_jax.errors import UserError
from bigan_jax.runtime.files import atomic_directory

INDEX_FILE = "metadata.json"
SPLIT = "images"  # the only one: images are split by seed and group when they are loaded
CHUNK_SIZE = 128  # images read from the folder at a time, unless they are large
CHUNK_BYTES = 2**27

# TFDS writes more than a buffer of examples to buckets on the disk, for which it takes TensorFlow's functions of files.
shuffle.MAX_MEM_BUFFER_SIZE = 2**28  # bytes, in place of 1 GB
shuffle.tf = SimpleNamespace(
    io=SimpleNamespace(gfile=SimpleNamespace(GFile=open, exists=os.path.exists, remove=os.remove)),
    errors=SimpleNamespace(ResourceExhaustedError=()),
)


class PreparedDataset(NamedTuple):
    """A prepared dataset: its listing, and its examples in the same order, still serialized."""

    listing: Listing
    fingerprint: str
    unreadable: dict[str, str]  # by path: why a file could not be read
    examples: Sequence[bytes]
    path: Path

    def read(self, index: int, feature: str) -> bytes:
        """Returns the encoded "image" or "mask" of a record; b"" if there is none.

        Raises UserError if the prepared files were damaged after they were opened.
        """
        try:
            example = tf_example_pb2.Example.FromString(self.examples[index])  # pyright: ignore[reportAttributeAccessIssue]
            return example.features.feature[feature].bytes_list.value[0]
        except Exception as error:  # of ArrayRecord or protobuf
            raise UserError(
                f"the image itself was not read: the prepared data in {self.path} are damaged. Start again to prepare "
                "them again"
            ) from error


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
        # TFDS chooses a bucket by the highest bits of keys of 128 bits. With keys from 0 on, one bucket, which is read
        # at once, would hold everything. A sixteenth of its 1000 buckets is used, as each is an open file.
        step = 2**124 // max(1, len(self._index["listing"]["records"]))
        return {SPLIT: ((i * step, example) for i, example in enumerate(self._examples))}

    def _generate_examples(self):
        raise NotImplementedError  # _split_generators returns the examples


def fingerprint(listing: Listing, folder: DataFolder) -> str:
    """Returns a hash of a listing and of the stamps of its files."""
    stamps = [folder.files[file] for file in listing.files()]
    return blake2b(json.dumps([listing, stamps]).encode(), digest_size=16).hexdigest()


def reopen(path: epath.Path) -> PreparedDataset | None:
    """Opens the prepared dataset in a folder; None if it is missing, incomplete, invalid or damaged."""
    index = _read_index(path)
    if index is None:
        return None
    local = Path(path)
    try:
        if is_remote(path):  # ArrayRecord reads local files
            local = _local_copy(path)
            if _read_index(local) != index or _digests(local) != index["sha256"]:
                _download(path, local)
        if _digests(local) != index["sha256"]:
            logging.warning("The prepared data in %s are damaged, and are not used.", path)
            return None
        listing = index["listing"]
        records = [_record(row) for row in listing["records"]]
        listing = Listing._make([records, *(tuple(listing[field]) for field in Listing._fields[1:])])
        with _silence_tfds():
            examples = serialized_examples(local, SPLIT)
        if len(examples) != len(records):
            return None
        return PreparedDataset(listing, index["fingerprint"], index["unreadable"], examples, local)
    except Exception:  # an invalid dataset is prepared again, whatever the reason
        return None


def reopen_or_prepare(
    layout: Layout, path: epath.Path, fingerprint: str, open_data: Callable[[], tuple[Listing, DataFolder]]
) -> PreparedDataset:
    """Opens a prepared dataset; if it is missing, damaged or of another fingerprint, it is written first.

    A new dataset replaces an earlier one once it is complete. Nothing is decoded, and a file that cannot be read is
    recorded as unreadable. Each time a dataset is opened such files are tried again, and if one can be read now, the
    dataset is written again. Raises UserError if the dataset cannot be written.
    """
    dataset = reopen(path)
    if dataset and dataset.fingerprint == fingerprint and not dataset.unreadable:
        return dataset
    listing, folder = open_data()
    if dataset and dataset.fingerprint == fingerprint:
        unreadable = _try_again(listing, folder, dataset.unreadable)
        if unreadable.keys() == dataset.unreadable.keys():
            return dataset._replace(unreadable=unreadable)
    unreadable = {}
    index = {"fingerprint": fingerprint, "listing": listing._asdict(), "unreadable": unreadable}
    config = path.parent.name
    local = _local_copy(path) if is_remote(path) else Path(path)
    examples = _encode_examples(listing, folder, unreadable, f"preparing {config.rpartition('-')[0]}")
    try:
        with atomic_directory(local) as new, _silence_tfds():
            data_dir = new.parent / "tfds"  # removed afterwards, with all else that TFDS writes
            builder = EncodedImages(layout, config, index, examples, data_dir)
            builder.download_and_prepare(file_format="array_record")
            new.rmdir()
            Path(builder.data_dir).rename(new)
            (new / INDEX_FILE).write_text(json.dumps({**index, "sha256": _digests(new)}))
        if is_remote(path):
            _upload(local, path)
    except OSError as error:
        raise UserError(
            f"{local} cannot be written ({error}). Choose another folder with --config.data.tfds_dir=DIR."
        ) from error
    if (dataset := reopen(path)) is None:
        raise UserError(f"{local} was replaced by another process while it was read. Start again.")
    return dataset


def _try_again(listing: Listing, folder: DataFolder, files: dict[str, str]) -> dict[str, str]:
    """Reads the records of files that were unreadable; returns those that still are, with the reasons."""
    records = [record for record in listing.records if record.path in files or record.mask in files]
    unreadable: dict[str, str] = {}
    for _ in _encode_examples(listing._replace(records=records), folder, unreadable, "trying unreadable files again"):
        pass
    return unreadable


def _chunks(records: list[ImageRecord], folder: DataFolder) -> Iterator[list[ImageRecord]]:
    """Divides records into chunks of at most CHUNK_SIZE and, if they are more than one, CHUNK_BYTES."""
    chunk, total = [], 0
    for record in records:
        size = sum(folder.files[path].size for path in (record.path, *record.masks))
        if chunk and (len(chunk) == CHUNK_SIZE or total + size > CHUNK_BYTES):
            yield chunk
            chunk, total = [], 0
        chunk.append(record)
        total += size
    if chunk:
        yield chunk


def _encode_examples(listing, folder, unreadable, title) -> Iterator[dict]:
    """Yields the examples of a listing; adds files that cannot be read to `unreadable`."""
    disable = len(listing.records) < PROGRESS_BAR_MIN_ITEMS or None  # None: without a terminal
    check_space = _space_check(folder.root)
    with tqdm(total=len(listing.records), desc=title, disable=disable, leave=False) as bar:
        for chunk in _chunks(listing.records, folder):
            images = folder.read([r.path for r in chunk], False)
            masked = {mask: r.path for r in chunk for mask in r.masks}
            masks = dict(zip(masked, folder.read(list(masked), True), strict=True))
            masks = {
                mask: content if isinstance(content, UnreadableFile) else check_space(masked[mask], mask) or content
                for mask, content in masks.items()
            }
            for record, image in zip(chunk, images, strict=True):
                mask = _merge([masks[path] for path in record.masks], record)
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


def _merge(masks: list[bytes | UnreadableFile], record) -> bytes | UnreadableFile:
    """Returns the union of the masks of an image; an only mask unchanged."""
    for path, mask in zip(record.masks, masks, strict=True):
        if isinstance(mask, UnreadableFile):  # all are known by the path of the first
            reason = mask.reason if path == record.mask else f"{path}: {mask.reason}"
            return UnreadableFile(record.mask, reason)
    contents = {path: mask for path, mask in zip(record.masks, masks, strict=True) if isinstance(mask, bytes)}
    if len(contents) < 2:
        return next(iter(contents.values()), b"")
    return try_read(record.mask, lambda: merge_masks(contents))


def _space_check(root) -> Callable[[str, str], UnreadableFile | None]:
    """Returns a function of an image and a mask, which returns the mask as unreadable if it is of another space."""
    known: dict[tuple[str, str], UnreadableFile | None] = {}

    def check(image: str, mask: str) -> UnreadableFile | None:
        if is_remote(root) or not is_medical(image):
            return None
        # All slices of a volume have one affine; the frames of a DICOM file may differ.
        files = (image, mask) if is_dicom(image) else (split_slice(image)[0], split_slice(mask)[0])
        if files not in known:
            known[files] = try_read(mask, lambda: require_same_space(Path(root, image), Path(root, mask)))
        failed = known[files]
        return failed and failed._replace(path=mask)

    return check


def _record(row: list) -> ImageRecord:
    """Returns the record of a row of metadata.json, where tuples are lists."""
    record = ImageRecord._make(row)
    if not isinstance(record.masks, list):
        raise ValueError("prepared by an earlier version")
    return record._replace(masks=tuple(record.masks), camera=record.camera and tuple(record.camera))


def _digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each ArrayRecord file in a folder: reading it takes far less time than decoding."""
    digests = {}
    for path in sorted(folder.glob("*array_record*")):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


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
