"""What an audit found, as a table for people and as JSON."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import TextWrapper
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32, Shaped, UInt8

from bigan_jax.errors import UserError, printable
from bigan_jax.runtime.files import read_bounded, write_csv, write_json

SPLITS = ("test", "calibration", "train")  # of two copies the one in the later part is left out
SPLIT = ("path", "label", "group", "condition", "part", "pixels")  # their digest
LEFT_OUT = "left out"
_MOST_SPLIT = 256 * 2**20  # bytes
WIDTH = 100  # of lines on the terminal


class AllImages(NamedTuple):
    """All pictures of a dataset, one row each, in the order of PARTS."""

    part: Shaped[np.ndarray, "n"]
    row: Int[np.ndarray, "n"]  # within the part
    path: Shaped[np.ndarray, "n"]
    label: Bool[np.ndarray, "n"]
    group: Shaped[np.ndarray, "n"]
    condition: Int32[np.ndarray, "n"]


class Finding(NamedTuple):
    """One line of the audit's table; `meaning` says what follows, where that is alarming."""

    check: str
    found: str
    meaning: str = ""


class AuditImage(NamedTuple):
    """A picture of a pair."""

    part: str
    path: str
    label: str
    image: UInt8[np.ndarray, "h w c"] | None = None  # of the first pairs


class Duplicate(NamedTuple):
    """Two pictures that are one; `distance` is 0 for the same pixels, at most `copies.NEAR`."""

    first: AuditImage
    second: AuditImage
    distance: float


class Audit(NamedTuple):
    """What was found in a set as it was loaded, and what the policy makes of it."""

    policy: str
    balance: list[dict]  # by part and condition: how many normal and anomalous pictures
    findings: list[Finding]
    facts: dict[str, float]  # AUROC of trivial facts on the test, best first
    copies: list[Duplicate]  # those across parts first, then the nearest
    exact: dict[str, Int[np.ndarray, "k"]]  # by part: rows with the same pixels in an earlier part
    left_out: dict[str, Int[np.ndarray, "k"]]  # by part: rows that the policy leaves out
    split: list[tuple[str, ...]]  # the rows of split.csv, under the names SPLIT

    @property
    def warnings(self) -> list[str]:
        """What is alarming, in a sentence or two each."""
        return [
            f"Leak audit, {f.check}: {f.found}. {f.meaning}" for f in self.findings if f.meaning
        ]

    def write(self, workdir: Path) -> None:
        """Writes audit.json. Raises UserError where it cannot be written."""
        write_json(workdir / "audit.json", self.as_dict())

    def write_split(self, workdir: Path) -> None:
        """Writes split.csv: where each file goes in a training that begins, or goes on; and what
        trained before and is here no more, so that it never tests.

        Raises UserError where it cannot be written.
        """
        ours = self._training()
        gone = [row for row in _trained(workdir / "split.csv") if row[-1] not in ours]
        write_csv(workdir / "split.csv", [SPLIT, *self.split, *gone])

    def count_trained(self, workdir: Path) -> int:
        """How many pictures trained the run in the folder; where its split.csv does not tell, how
        many would now."""
        return len(_trained(workdir / "split.csv")) or len(self._training())

    def count_added_later(self, workdir: Path) -> int:
        """How many pictures would train now that did not train the run in the folder."""
        theirs = {row[-1] for row in _trained(workdir / "split.csv")}
        return len(self._training() - theirs) if theirs else 0

    def require_same_training_images(self, workdir: Path) -> None:
        """Raises UserError where the run in the folder trained on other pictures, of which none is
        among these, or on some that would test it now. Its config would not tell: the folder of the
        pictures may move, and with their names the split; a table may tell what belongs together.
        Copies of what trains now are the audit's to tell."""
        theirs = {row[-1] for row in _trained(workdir / "split.csv")}
        ours = self._training()
        if theirs and ours.isdisjoint(theirs):
            raise UserError(
                f"{workdir} holds a run on other pictures: it trained on {len(theirs)}, none of "
                "which is among those that would train now. Give another --workdir."
            )
        left = theirs - ours
        known = [
            path
            for path, *_, part, pixels in self.split
            if part in ("calibration", "test") and pixels in left
        ]
        if known:
            raise UserError(
                f"{workdir} holds a run on another split: it trained on {len(known)} of the "
                f"pictures that would calibrate or test it now, such as {printable(known[0])}. "
                "Give another --workdir."
            )

    def _training(self) -> set[str]:
        return {pixels for *_, part, pixels in self.split if part == "train"}

    def as_dict(self, images: bool = False) -> dict:
        """The content of audit.json; with `images`, those that a report shows as well."""

        def picture(p: AuditImage) -> dict:
            shown = {"image": p.image} if images and p.image is not None else {}
            return {"part": p.part, "path": printable(p.path), "label": p.label, **shown}

        return {
            "policy": self.policy,
            "findings": [f._asdict() | {"alarming": bool(f.meaning)} for f in self.findings],
            "facts": self.facts,
            "balance": self.balance,
            "left_out": {part: len(rows) for part, rows in self.left_out.items()},
            "copies": [
                {"distance": c.distance, "first": picture(c.first), "second": picture(c.second)}
                for c in self.copies
            ],
        }

    def table(self) -> str:
        """The audit for a terminal: counts, findings, and what the alarming ones mean."""
        lines = ["Leak audit", *_columns([["", "normal", "anomalous"], *self._counts()]), ""]
        lines += _columns([["! " * bool(f.meaning) + f.check, f.found] for f in self.findings])
        if self.facts:
            some = ", ".join(f"{name} {v:.3f}" for name, v in self.facts.items() if v != 0.5)
            equal = ", ".join(name for name, v in self.facts.items() if v == 0.5)
            lines += ["", *_wrapped(f"AUROC of trivial facts on the test: {some or 'none'}", "  ")]
            lines += _wrapped(f"0.5, as chance has it: {equal}", "  ") if equal else []
        alarming = [f for f in self.findings if f.meaning]
        lines += [""] * bool(alarming)
        for f in alarming:
            lines += _wrapped(f"! {f.check}: {f.meaning}", "  ", first="")
        return "\n".join(map(printable, lines))

    def _counts(self) -> Iterator[list[str]]:
        several = len({line["condition"] for line in self.balance}) > 1
        for line in self.balance:
            name = f"{line['part']}, {line['condition']}" if several else line["part"]
            yield [name, str(line["normal"] or "-"), str(line["anomalous"] or "-")]


def _trained(path):
    """The rows of what a split.csv says trained; none where there is no such file, or one of an
    older version."""
    try:
        text = read_bounded(path, _MOST_SPLIT).decode("utf-8", "surrogateescape")
        rows = csv.DictReader(io.StringIO(text, newline=""))
        return [tuple(row[name] for name in SPLIT) for row in rows if row["part"] == "train"]
    except (UserError, KeyError, csv.Error):
        return []


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return [line if line.startswith("!") else f"  {line}" for line in lines]


def _wrapped(text: str, indent: str, first: str | None = None) -> list[str]:
    first = indent if first is None else first
    wrapper = TextWrapper(WIDTH, initial_indent=first, subsequent_indent=f"{indent}  ")
    return wrapper.wrap(text)
