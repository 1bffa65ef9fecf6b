"""The files of a run: its config, its history, its results."""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from bigan_jax.errors import UserError, reason

FORMAT = 2  # of a workdir; a change that an older version would misread adds one

# What may change between two starts of one run: none of it has a part in training.
_FREE = (
    "score.",
    "sweep.",
    "threshold.",
    "checkpoint.",
    "data.dir",
    "data.tfds_dir",
    "data.stream",
    "data.skip_broken",  # which pictures trained, split.csv tells
    "on_nan",
    "vgg16.",  # where the weights are; whether they are the same, task.FROZEN tells
)

# What a config means that was written before these fields were there.
_BEFORE = {
    "augment.rotate": 0.0,
    "augment.brightness": 0.0,
    "data.duplicates": "stop",
    "data.skip_broken": False,
    "data.stream": False,
    "data.tfds_dir": "",
    "data.window": False,
    "checkpoint.keep_every": 0,
    "on_nan": "stop",
    "seeds": 1,
    "score.perceptual": 0.0,
    "score.standardise": False,
    "score.reduction": "mean",
    "vgg16.weights": "",
}

_GROUPS = ("data", "augment", "score", "vgg16", "threshold", "checkpoint", "model", "optimizers")
_TYPES = {
    **dict.fromkeys((*_GROUPS, "phases"), dict),
    **dict.fromkeys(("name", "model_name", "dtype"), str),
    **dict.fromkeys(("seed", "batch_size"), int),
}

_MOST_CONFIG = 4 * 2**20  # bytes

# What reading a stranger's JSON, and making sense of it, may raise.
_UNREADABLE = (ValueError, LookupError, AttributeError, TypeError, RecursionError)


def default_name(config: ConfigDict) -> Path:
    """runs/<model>-<dataset>[-<category>][-quick][-<ablations>]-seed<k>, or -seeds<k>-<l>"""
    category = config.data.category.replace(",", "+") if config.data.category else ""
    last = config.seed + config.seeds - 1
    which = f"seed{config.seed}" if config.seeds == 1 else f"seeds{config.seed}-{last}"
    parts = [config.name, config.data.name, category, *["quick"] * config.quick]
    return Path("runs") / "-".join([*filter(None, parts), *map(str, config.ablations), which])


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
    """Writes the config, or joins the run of the same config that is in the folder.

    An evaluation by other fields goes: what reads it may not take it for one by these.
    """
    check(workdir, config)
    if (workdir / "config.json").exists() and _flat(read_config(workdir)) != _flat(config):
        (workdir / "evaluation.json").unlink(missing_ok=True)
    write_json(workdir / "config.json", {"format": FORMAT, **config.to_dict()})


def read_config(workdir: Path) -> ConfigDict:
    """The config of the run in a folder. Raises UserError when there is none, or one of a version
    to come."""
    try:
        content = read_bounded(workdir / "config.json", _MOST_CONFIG)
    except UserError as error:
        if not workdir.exists():
            raise UserError(f"there is no {workdir}: train a run there first") from error
        raise UserError(
            f"{workdir} holds no run: {error}. Give the folder of one run; those of several seeds "
            "and of a sweep lie one deeper"
        ) from error
    try:
        fields = json.loads(content)
        check_format(fields.pop("format", FORMAT), workdir)
        complete(fields)
        for name, kind in _TYPES.items():
            if type(fields.get(name)) is not kind:
                raise ValueError(f"its {name} is missing or wrong")
        return ConfigDict(fields, convert_dict=True).lock()
    except _UNREADABLE as error:
        raise UserError(f"{workdir} holds no run: config.json cannot be read ({error})") from error


def complete(fields: dict) -> None:
    """Gives a config, as JSON has it, the fields that are newer than it, with what it meant.

    Raises what reading a stranger's JSON may where its groups are none.
    """
    before = dict(_BEFORE)
    if "perceptual_layers" in fields.get("model", {}):
        before["model.unit_features"] = False
    # Of a score without the term neither is meant.
    before["score.unit_features"] = not fields.get("score", {}).get("perceptual")
    for name, value in before.items():
        *groups, field = name.split(".")
        node = fields
        for group in groups:
            node = node.setdefault(group, {})
        node.setdefault(field, value)


def read_bounded(path: Path, most: int) -> bytes:
    """What a file holds. Raises UserError for more than `most` bytes, and for what is no file or
    cannot be read, without the folder's name."""
    if not path.is_file():  # a pipe or a device would never end
        raise UserError(f"no {path.name}")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror})") from error
    if len(content) > most:
        raise UserError(f"{path.name} is larger than {most // 2**20} MiB")
    return content


def refuse_links(workdir: Path) -> None:
    """Raises UserError for a link in the folder that leads out of it, where what is written to it,
    or deleted, would be somebody else's. The folder itself may be one."""
    home = os.path.realpath(workdir)
    for parent, folders, names in os.walk(home):
        for name in (*folders, *names):
            path = os.path.join(parent, name)
            if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(home):
                raise UserError(
                    f"{path} is a link that leads out of the workdir: put what it means there, or "
                    "make a link of the workdir itself"
                )


def check_format(number: object, what: object) -> None:
    """Raises UserError where the format of a workdir, `what` in the message, is not known."""
    if type(number) is not int or not 0 < number <= FORMAT:
        raise UserError(
            f"{what} was written by a newer version of bigan_jax (format {number!r:.20}, this one "
            f"knows 1 to {FORMAT}): update bigan_jax, or give another --workdir"
        )


def _flat(config: ConfigDict) -> dict:
    """Fields by dotted name, as JSON would give them back."""

    def walk(node, prefix):
        for name, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    return dict(walk(json.loads(json.dumps(config.to_dict())), ""))


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, whenever the program or the machine stops.

    content: text is written as UTF-8; what came from file names may be none (surrogateescape).
    Raises UserError where it cannot be written.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_json(path: Path, content: dict) -> None:
    """Writes a file whole or not at all. Raises UserError where it cannot be written."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_table(path: Path, rows: Iterable[Sequence]) -> None:
    """Writes a CSV file whole or not at all. Raises UserError where it cannot be written."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_whole(path, text.getvalue())


def cannot_write(path: Path, error: Exception) -> UserError:
    """The error for a full disk, a folder that is read-only, a quota."""
    why = getattr(error, "strerror", None) or reason(error, 300)
    return UserError(
        f"{path} cannot be written ({why}): make room or name another folder, and give the same "
        "command again. A run goes on from its last checkpoint."
    )
