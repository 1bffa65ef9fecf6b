"""train.jsonl: what a run tells of each epoch."""

import json
from collections.abc import Iterable
from pathlib import Path

from bigan_jax.runtime.files import read_bounded, write_atomic, write_error

MOST_BYTES = 2**28


class TrainLog:
    """train.jsonl: one object an epoch, each written as soon as the epoch ends."""

    def __init__(self, workdir: Path, text: str):
        """text: what is in the file, or should be: that of a checkpoint. Later rows go; they will
        be trained again."""
        self._path, self.text = workdir / "train.jsonl", text
        write_atomic(self._path, text)

    def append(self, row: dict) -> None:
        """Adds an epoch. Raises UserError where it cannot be written."""
        line = _line(row)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise write_error(self._path, error) from error
        self.text += line


def read_train_log(workdir: Path) -> list[dict]:
    """The rows of train.jsonl; none where there is no such file, and none after a torn line or one
    that no run writes."""
    path, rows = workdir / "train.jsonl", []
    text = read_bounded(path, MOST_BYTES).decode(errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not _is_row(row):
            break
        rows.append(row)
    return rows


def _is_row(row):
    if not isinstance(row, dict) or type(row.get("epoch")) is not int:
        return False
    row = {"phase": "", "health": [], "rollbacks": []} | row
    return (
        isinstance(row.pop("phase"), str)
        and _are(str, row.pop("health"))
        and are_rollbacks(row.pop("rollbacks"))
        and all(_are(int | float | None, v if isinstance(v, list) else [v]) for v in row.values())
    )


def are_rollbacks(values: object) -> bool:
    """Whether they tell when training diverged, of what, and where it went back to."""
    kinds = {"epoch": int, "objective": str, "back_to": int}
    return _are(dict, values) and all(
        isinstance(row.get(name), kind) for row in values for name, kind in kinds.items()
    )


def _are(kind, values):
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def train_log_until(workdir: Path, epochs: int) -> str:
    """The text of train.jsonl's first so many epochs, as far as it has them."""
    return "".join(_line(row) for row in read_train_log(workdir) if row["epoch"] <= epochs)


def rollbacks(rows: Iterable[dict]) -> list[dict]:
    """When a run diverged and what it went back to, as its rows tell: each tells of all before."""
    return next((row["rollbacks"] for row in reversed([*rows]) if "rollbacks" in row), [])


def _line(row: dict) -> str:
    return json.dumps(row) + "\n"
