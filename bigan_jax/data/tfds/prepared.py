"""Data folders as TFDS data sets, without TensorFlow: each picture's and mask's bytes as they came,
in ArrayRecord files that are read in any order.

<tfds_dir>/<builder>/<name>-<identity of the folder>/1.0.0/: metadata.json is TFDS's own file for
what a builder wants to keep; here, the listing and a fingerprint of the folder.
"""

import io
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import array_record.python.array_record_module  # noqa: F401 (TFDS would miss it only later)
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from bigan_jax.data.files.folders import FileReader, FileStamp, is_remote, local_folder, path_hash
from bigan_jax.data.files.images import PROGRESS_BAR_MIN_ITEMS
from bigan_jax.data.files.unreadable import UnreadableFile
from bigan_jax.data.records import ImageRecord, Listing
from bigan_jax.data.tfds.reader import open_builder_safely
from bigan_jax.errors import UserError
from bigan_jax.runtime.files import atomic_directory

VERSION = "1.0.0"
INDEX = "metadata.json"
SPLIT = "pictures"  # the parts are dealt out when the data are loaded, by seed and group
CHUNK = 128  # pictures read from the folder at a time


class Prepared(NamedTuple):
    """A prepared set: its listing, and its examples in the same order, still serialized."""

    listing: Listing
    fingerprint: str
    broken: dict[str, str]  # by path: why a file could not be read
    examples: Sequence[bytes]

    def read(self, index: int, feature: str) -> bytes:
        """The encoded "image" or "mask" of a record, b"" where there is none."""
        # TFDS's own reading of an example, all features of it, takes a tenth of the decoding.
        example = tf_example_pb2.Example.FromString(self.examples[index])
        return example.features.feature[feature].bytes_list.value[0]


class EncodedImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Encoded pictures and masks with what is known of them, in the order of the listing."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, name: str, index: dict, examples: Iterator[dict], data_dir: Path):
        self._index, self._examples = index, examples
        config = tfds.core.BuilderConfig(name=name)
        super().__init__(config=config, data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(self._index),
            features=tfds.features.FeaturesDict(
                {
                    "image": text(doc="the file's bytes, in any format"),
                    "mask": text(doc="the same; empty where there is none"),
                    "path": text(doc="relative to the data folder"),
                    "mask_path": text(),
                    "label": tfds.features.ClassLabel(names=["normal", "anomalous"]),
                    "kind": text(doc="of defect, or good"),
                    "group": text(doc="what is never divided: a patient, a camera block"),
                    "condition": text(doc="species or category"),
                    "camera_sequence": text(),
                    "camera_number": tfds.features.Scalar(np.int64, doc="-1 where not known"),
                    "official_part": text(doc="train, test or nothing"),
                }
            ),
        )

    def _split_generators(self, _) -> dict:
        return {SPLIT: enumerate(self._examples)}

    def _generate_examples(self):
        raise NotImplementedError  # _split_generators gives them


class BrainMri(EncodedImages, skip_registration=True):
    """Brain MR slices, without a tumour and with one."""


class MvtecAd(EncodedImages, skip_registration=True):
    """A category of MVTec AD, or of a set in its layout."""


class PlantDisease(EncodedImages, skip_registration=True):
    """Leaves, healthy and diseased."""


class ImageFolder(EncodedImages, skip_registration=True):
    """A folder of somebody's own: normal pictures and, where there are any, anomalous ones."""


BUILDERS = {"brain": BrainMri, "mvtec": MvtecAd, "plant": PlantDisease, "folder": ImageFolder}


def fingerprint(listing: Listing, stamps: list[FileStamp]) -> str:
    """Stands for a listing and for its files: the stamps of `listing.files()`."""
    return blake2b(json.dumps([listing, stamps]).encode(), digest_size=16).hexdigest()


def prepared_path(source: str, home: epath.Path, name: str, data: epath.Path) -> epath.Path:
    """The folder of a set that is prepared from the folder `data`. name: of the set, for people;
    another name is another folder, also where file systems have no letters for it."""
    plain = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._")[:60] or "data"
    if plain != (name or "data"):
        plain += f"-{blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=4).hexdigest()}"
    return home / BUILDERS[source].name / f"{plain}-{path_hash(data)}" / VERSION


def reopen_all(source: str, home: epath.Path, data: epath.Path) -> list[Prepared]:
    """The sets that were prepared from the folder `data`, each once: older versions had other
    folders for some names."""
    folders = sorted((home / BUILDERS[source].name).glob(f"*-{path_hash(data)}"))
    found = [s for folder in folders if (s := reopen(folder / VERSION))]
    return list({s.fingerprint: s for s in found}.values())


def reopen(folder: epath.Path) -> Prepared | None:
    """A set that was prepared; None where there is none that is whole."""
    index = _read_index(folder)
    if index is None:
        return None
    here = folder
    if is_remote(folder):  # ArrayRecord reads local files
        here = local_folder(folder.parent.parent.parent).joinpath(*folder.parts[-3:])
        if _read_index(here) != index:
            _download(folder, Path(here))
    try:
        listing = index["listing"]
        with _silence():
            examples = open_builder_safely(here).as_data_source(
                SPLIT, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
        records = [ImageRecord(*row[:-1], row[-1] and tuple(row[-1])) for row in listing["records"]]
        if len(examples) != len(records) or not (examples[0] and examples[len(records) - 1]):
            return None
    except Exception:  # whatever is wrong with it, it will be prepared anew
        return None
    listing = Listing(records, *(tuple(listing[f]) for f in Listing._fields[1:]))
    return Prepared(listing, index["fingerprint"], index["broken"], examples)


def prepare(
    source: str, folder: epath.Path, listing: Listing, read: FileReader, fingerprint: str
) -> Prepared:
    """Writes a prepared set, whole or not at all, in place of the one that may be there.

    Nothing is decoded, and a file that cannot be read is kept as such: decoding names it.
    Raises UserError when it cannot be written.
    """
    index = {"fingerprint": fingerprint, "listing": listing._asdict(), "broken": {}}
    config, here = folder.parent.name, Path(folder)
    if is_remote(folder):
        here = local_folder(folder.parent.parent.parent).joinpath(*folder.parts[-3:])
    name = config.rpartition("-")[0]
    examples = _examples(listing, read, index["broken"], f"preparing {name}")
    try:
        with atomic_directory(here) as new, _silence():
            root = new.parent / "tfds"  # whatever else TFDS writes there goes when all is done
            builder = BUILDERS[source](name=config, index=index, examples=examples, data_dir=root)
            builder.download_and_prepare(file_format="array_record")
            new.rmdir()
            Path(builder.data_dir).rename(new)
        if is_remote(folder):
            _upload(here, folder)
    except OSError as error:
        raise UserError(
            f"{here} cannot be written ({error}): choose another place for prepared data by "
            "--config.data.tfds_dir=DIR"
        ) from error
    if (found := reopen(folder)) is None:
        raise UserError(f"{here} was replaced by another process while it was read: start again.")
    return found


def _examples(listing: Listing, read: FileReader, broken: dict, title: str) -> Iterator[dict]:
    quiet = len(listing.records) < PROGRESS_BAR_MIN_ITEMS or None
    with tqdm(total=len(listing.records), desc=title, disable=quiet, leave=False) as bar:
        for start in range(0, len(listing.records), CHUNK):
            part = listing.records[start : start + CHUNK]
            images = read([r.path for r in part], False)
            masked = [r.mask for r in part if r.mask]
            masks = dict(zip(masked, read(masked, True), strict=True))
            for record, image in zip(part, images, strict=True):
                mask = masks.get(record.mask, b"")
                failed = [
                    content for content in (image, mask) if isinstance(content, UnreadableFile)
                ]
                broken.update((b.path, b.reason) for b in failed)
                condition = listing.conditions[record.condition] if listing.conditions else ""
                sequence, number = record.camera or ("", -1)
                yield {
                    "image": b"" if isinstance(image, UnreadableFile) else image,
                    "mask": b"" if isinstance(mask, UnreadableFile) else mask,
                    "path": os.fsencode(record.path),
                    "mask_path": os.fsencode(record.mask or ""),
                    "label": int(record.label),
                    "kind": os.fsencode(record.defect_type),
                    "group": os.fsencode(record.group),
                    "condition": os.fsencode(condition),
                    "camera_sequence": os.fsencode(sequence),
                    "camera_number": number,
                    "official_part": record.official or "",
                }
                bar.update()


def _read_index(folder) -> dict | None:
    try:
        return json.loads((epath.Path(folder) / INDEX).read_text())
    except (OSError, ValueError):
        return None


def _download(bucket: epath.Path, here: Path) -> None:
    with atomic_directory(here) as new:
        for file in tqdm(
            list(bucket.iterdir()), f"from {bucket.parent}", disable=None, leave=False
        ):
            (new / file.name).write_bytes(file.read_bytes())


def _upload(here: Path, bucket: epath.Path) -> None:
    """Copies a prepared set; its index, without which it does not count, goes first and comes
    last: a bucket cannot rename a folder."""
    if bucket.exists():
        (bucket / INDEX).unlink(missing_ok=True)
        bucket.rmtree()
    bucket.mkdir(parents=True, exist_ok=True)
    files = sorted(here.iterdir(), key=lambda file: file.name == INDEX)
    for file in tqdm(files, f"to {bucket.parent}", disable=None, leave=False):
        (bucket / file.name).write_bytes(file.read_bytes())


@contextmanager
def _silence() -> Iterator[None]:
    """TFDS tells of each step on stdout, in bars and as warnings."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
