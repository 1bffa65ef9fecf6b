"""The result of an audit, and its output as a message, as audit.json and as split.csv."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import TextWrapper
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32, Shaped, UInt8

from bigan_jax.data.dataset import Dataset
from bigan_jax.errors import UserError, printable
from bigan_jax.runtime.files import read_bounded, write_csv, write_json

SPLITS = ("test", "calibration", "train")  # of two duplicates, the one in the later split is dropped
DROPPED = "dropped"  # in place of the split, in split.csv
MAX_SPLIT_BYTES = 256 * 2**20
WIDTH = 100  # characters in a line of the terminal


class AllImages(NamedTuple):
    """A table of all images of a dataset, one row each, in the order of SPLITS."""

    split: Shaped[np.ndarray, "n"]
    row: Int[np.ndarray, "n"]  # in the split
    path: Shaped[np.ndarray, "n"]
    label: Bool[np.ndarray, "n"]
    group: Shaped[np.ndarray, "n"]
    condition: Int32[np.ndarray, "n"]

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> "AllImages":
        """Concatenate the splits of a dataset."""
        splits = [getattr(dataset, name) for name in SPLITS]
        sizes = [len(images.path) for images in splits]
        rows = np.concatenate([np.arange(size) for size in sizes])
        columns = (np.concatenate([getattr(images, name) for images in splits]) for name in cls._fields[2:])
        return cls(np.repeat(SPLITS, sizes), rows, *columns)


class Finding(NamedTuple):
    """The result of one check; an alarming one has a `meaning`: the consequence and the remedy."""

    check: str
    result: str
    meaning: str = ""


class AuditImage(NamedTuple):
    """An image of a pair."""

    split: str
    path: str  # printable
    label: str
    image: UInt8[np.ndarray, "h w c"] | None = None  # for the first pairs


class Duplicate(NamedTuple):
    """A pair of duplicates; `distance` is 0 for the same pixels, at most MAX_DISTANCE otherwise."""

    first: AuditImage
    second: AuditImage
    distance: float


class SplitRow(NamedTuple):
    """A row of split.csv."""

    path: str
    label: str
    group: str
    condition: str
    split: str  # one of SPLITS, or DROPPED
    pixel_hash: str


class Audit(NamedTuple):
    """The findings about a loaded dataset, and the images that the policy drops."""

    policy: str
    balance: list[dict]  # numbers of normal and anomalous images by split and condition
    findings: list[Finding]
    shortcut_aurocs: dict[str, float]  # of features of test images, best first
    duplicates: list[Duplicate]  # pairs across splits first, then by distance
    n_exact: int  # training and calibration images with exact duplicates in an earlier split
    dropped: dict[str, Int[np.ndarray, "k"]]  # rows that the policy drops, by split
    split: list[SplitRow]

    @property
    def warnings(self) -> list[str]:
        """The alarming findings, in one or two sentences each."""
        return [f"Leak audit, {f.check}: {f.result}. {f.meaning}" for f in self.findings if f.meaning]

    def write(self, workdir: Path) -> None:
        """Writes audit.json. Raises UserError if it cannot be written."""
        write_json(workdir / "audit.json", self.as_dict())

    def write_split(self, workdir: Path) -> None:
        """Writes split.csv when a run starts or resumes. Raises UserError if this fails.

        Rows of images that were trained on earlier, but are no longer, are kept: they are never used for a test.
        """
        current = self._training_hashes()
        removed = [row for row in _read_trained(workdir) if row.pixel_hash not in current]
        write_csv(workdir / "split.csv", [SplitRow._fields, *self.split, *removed])

    def count_trained(self, workdir: Path) -> int:
        """Counts the images the run was trained on: by its split.csv, else by the current split."""
        return len(_read_trained(workdir)) or len(self._training_hashes())

    def count_added_later(self, workdir: Path) -> int:
        """Counts the current training images that the run in `workdir` was not trained on."""
        trained = {row.pixel_hash for row in _read_trained(workdir)}
        return len(self._training_hashes() - trained) if trained else 0

    def require_same_training_images(self, workdir: Path) -> None:
        """Checks that the run in `workdir` can be resumed or evaluated with this split.

        The config alone cannot show this: names, metadata.csv and therefore the split may have changed. Images are
        compared by the hash of their pixels. Raises UserError if the run was trained on none of the current training
        images, or on images that are now used for calibration or test.
        """
        trained = {row.pixel_hash for row in _read_trained(workdir)}
        current = self._training_hashes()
        if trained and current.isdisjoint(trained):
            raise UserError(
                f"{workdir} was trained on {len(trained)} other images, none of which is in the current training set. "
                "Use another --workdir."
            )
        removed, others = trained - current, ("calibration", "test")
        if leaked := [r.path for r in self.split if r.split in others and r.pixel_hash in removed]:
            raise UserError(
                f"{workdir} was trained on {len(leaked)} images that are now used for calibration "
                f"or test, such as {printable(leaked[0])}. Use another --workdir."
            )

    def _training_hashes(self) -> set[str]:
        return {row.pixel_hash for row in self.split if row.split == "train"}

    def as_dict(self, images: bool = False) -> dict:
        """Returns the content of audit.json; with `images`, also the pixels shown in the report."""

        def image_dict(image: AuditImage) -> dict:
            *fields, pixels = image._asdict().items()
            return dict([*fields, pixels] if images and image.image is not None else fields)

        return {
            "policy": self.policy,
            "findings": [f._asdict() | {"alarming": bool(f.meaning)} for f in self.findings],
            "shortcut_aurocs": self.shortcut_aurocs,
            "balance": self.balance,
            "dropped": {split: len(rows) for split, rows in self.dropped.items()},
            "duplicates": [
                {"distance": distance, "first": image_dict(first), "second": image_dict(second)}
                for first, second, distance in self.duplicates
            ],
        }

    def message(self) -> str:
        """Formats the audit for a terminal: one line, or a table if a finding is alarming."""
        if any(f.meaning for f in self.findings):
            return self._table()
        n_dropped = sum(map(len, self.dropped.values()))
        dropped = f", {n_dropped} duplicates dropped" if n_dropped else ""
        return f"Data check: no leakage found{dropped} (details in report.html)"

    def _table(self) -> str:
        """Formats class counts, findings, and the meaning of those that are alarming."""
        lines = ["Data check", *_columns([["", "normal", "anomalous"], *self._class_counts()]), ""]
        lines += _columns([["! " * bool(f.meaning) + f.check, f.result] for f in self.findings])
        if aurocs := self.shortcut_aurocs:
            listed = ", ".join(f"{name} {value:.3f}" for name, value in aurocs.items() if value != 0.5)
            chance = ", ".join(name for name, value in aurocs.items() if value == 0.5)
            lines += ["", *_wrap(f"AUROC of shortcut features on the test: {listed or 'none'}", "  ")]
            lines += _wrap(f"0.5 (chance level): {chance}", "  ") if chance else []
        warnings = [line for f in self.findings if f.meaning for line in _wrap(f"! {f.check}: {f.meaning}", "")]
        return "\n".join(map(printable, [*lines, *[""] * bool(warnings), *warnings]))

    def _class_counts(self) -> Iterator[list[str]]:
        several = len({line["condition"] for line in self.balance}) > 1
        for line in self.balance:
            name = line["split"] + f", {line['condition']}" * several
            yield [name, str(line["normal"] or "-"), str(line["anomalous"] or "-")]


def trained_paths(workdir: Path) -> set[str]:
    """Returns the paths of the images that the run in `workdir` was trained on; none before its first start."""
    return {row.path for row in _read_trained(workdir)}


def _read_trained(workdir: Path) -> list[SplitRow]:
    """Reads the training images from split.csv; [] if it does not exist or has other columns."""
    try:
        text = read_bounded(workdir / "split.csv", MAX_SPLIT_BYTES).decode("utf-8", "surrogateescape")
        lines = csv.DictReader(io.StringIO(text, newline=""))
        rows = [SplitRow._make(line[name] for name in SplitRow._fields) for line in lines]
        return [row for row in rows if row.split == "train"]
    except (UserError, KeyError, csv.Error):
        return []


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return [line if line.startswith("!") else f"  {line}" for line in lines]


def _wrap(text: str, indent: str) -> list[str]:
    return TextWrapper(WIDTH, initial_indent=indent, subsequent_indent="    ").wrap(text)
