"""The files of a run: its config, its history, its results."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from ml_collections import ConfigDict

from bigan_jax.errors import UserError

# What may change between two starts of one run: none of it has a part in training.
_FREE = (
    "score.",
    "sweep.",
    "threshold.",
    "checkpoint.",
    "data.dir",
    "data.tfds_dir",
    "data.stream",
    "vgg16.",
)

# What a config means that was written before these fields were there.
_BEFORE = {
    "augment.rotate": 0.0,
    "augment.brightness": 0.0,
    "data.duplicates": "stop",
    "data.skip_broken": False,
    "data.stream": False,
    "data.tfds_dir": "",
    "score.perceptual": 0.0,
    "score.standardise": False,
    "score.reduction": "mean",
    "vgg16.weights": "",
}


def default_name(config: ConfigDict) -> Path:
    """runs/<model>-<dataset>[-<category>][-quick][-<ablations>]-seed<k>"""
    category = config.data.category.replace(",", "+") if config.data.category else ""
    parts = [config.name, config.data.name, category, *["quick"] * config.quick]
    return Path("runs") / "-".join([*filter(None, parts), *config.ablations, f"seed{config.seed}"])


def check(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError when the folder holds a run of another config, naming what differs."""
    if (workdir / "config.json").exists():
        theirs, ours = _flat(read_config(workdir)), _flat(config)
        differing = [
            f"  {name}: {theirs.get(name)!r} there, {ours.get(name)!r} now"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name) and not name.startswith(_FREE)
        ]
        if differing:
            raise UserError(
                f"{workdir} holds a run with another config:\n"
                + "\n".join(differing)
                + "\nGive its values to go on with it, or another --workdir to start anew."
            )


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the folder, or joins the run of the same config that is in it."""
    check(workdir, config)
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", config.to_dict())


def read_config(workdir: Path) -> ConfigDict:
    """The config of the run in a folder. Raises UserError when there is none."""
    try:
        fields = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
        for name, value in _BEFORE.items():
            group, _, field = name.partition(".")
            fields.setdefault(group, {}).setdefault(field, value)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{workdir} holds no run: config.json cannot be read ({error})") from error
    return ConfigDict(fields, convert_dict=True).lock()


def _flat(config: ConfigDict) -> dict:
    """Fields by dotted name, as JSON would give them back."""

    def walk(node, prefix):
        for name, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    return dict(walk(json.loads(json.dumps(config.to_dict())), ""))


def write_json(path: Path, content: dict) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


class History:
    """train.jsonl: one object an epoch, each written as soon as the epoch ends."""

    def __init__(self, workdir: Path, epochs: int):
        """epochs: how many of the rows there still hold; later ones will be trained again."""
        self._path = workdir / "train.jsonl"
        kept = [row for row in read_history(workdir) if row["epoch"] <= epochs]
        part = self._path.with_name(self._path.name + ".part")
        part.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        os.replace(part, self._path)

    def append(self, row: dict) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(row))


def read_history(workdir: Path) -> list[dict]:
    """The rows of train.jsonl; none where there is no such file, and none after a torn line."""
    try:
        lines: Iterable[str] = (workdir / "train.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _line(row: dict) -> str:
    return json.dumps(row) + "\n"


def read_evaluation(workdir: Path) -> dict:
    """evaluation.json of a finished run. Raises UserError when there is none."""
    try:
        return json.loads((workdir / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{workdir} holds no finished run: {error}") from error
