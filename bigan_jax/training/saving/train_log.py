"""The training log train.jsonl: one JSON object per epoch."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bigan_jax.runtime.files import read_bounded, write_atomic, write_error

MAX_BYTES = 2**28


class TrainLog:
    """Appends rows to train.jsonl, each as soon as its epoch ends; `text` is the content of the file."""

    def __init__(self, workdir: Path, text: str):
        """Rewrites the file with the text of a checkpoint: the epochs of later rows are trained again."""
        self._path, self.text = workdir / "train.jsonl", text
        write_atomic(self._path, text)

    def append(self, row: dict) -> None:
        """Adds an epoch. Raises UserError if it could not be written."""
        line = json.dumps(row) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise write_error(self._path, error) from error
        self.text += line


def read_train_log(workdir: Path) -> list[dict]:
    """Returns the rows of train.jsonl, if it exists, up to the first that is truncated or that no run writes."""
    path, rows = workdir / "train.jsonl", []
    text = read_bounded(path, MAX_BYTES).decode(errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not _is_row(row):
            break
        rows.append(row)
    return rows


def rollbacks(rows: Iterable[dict]) -> list[dict]:
    """Returns all rollbacks of a run: the last row that has any lists the earlier ones, too."""
    return next((row["rollbacks"] for row in reversed([*rows]) if "rollbacks" in row), [])


def are_rollbacks(values: Any) -> bool:
    """Returns whether a value is a list of rollbacks as a run writes them."""
    types = {"epoch": int, "objective": str, "rolled_back_to": int}
    return _is_list_of(dict, values) and all(
        isinstance(row.get(name), of_type) for row in values for name, of_type in types.items()
    )


def _is_row(row):
    if not isinstance(row, dict) or type(row.get("epoch")) is not int:
        return False
    row = {"phase": "", "health": [], "rollbacks": []} | row
    return (
        isinstance(row.pop("phase"), str)
        and _is_list_of(str, row.pop("health"))
        and are_rollbacks(row.pop("rollbacks"))
        and all(_is_list_of(int | float | None, v if isinstance(v, list) else [v]) for v in row.values())
    )


def _is_list_of(of_type, values):
    return isinstance(values, list) and all(isinstance(value, of_type) for value in values)
