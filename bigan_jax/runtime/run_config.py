"""The files of a run: its config, its history, its results."""

import importlib.metadata
import json
from pathlib import Path

from ml_collections import ConfigDict

from bigan_jax.errors import UserError
from bigan_jax.runtime.files import read_bounded, write_json

FORMAT = 2  # of a workdir; a change that an older version would misread adds one

# What may change between two starts of one run: none of it has a part in training.
_CHANGEABLE_FIELDS = (
    "score.",
    "sweep.",
    "threshold.",
    "checkpoint.",
    "data.dir",
    "data.tfds_dir",
    "data.stream",
    "data.skip_unreadable",  # which pictures trained, split.csv tells
    "on_nan",
    "vgg16.",  # where the weights are; whether they are the same, task.FROZEN tells
)

# What a config means that was written before these fields were there.
_BEFORE = {
    "augment.rotate": 0.0,
    "augment.brightness": 0.0,
    "data.duplicates": "stop",
    "data.skip_unreadable": False,
    "data.stream": False,
    "data.tfds_dir": "",
    "data.window": False,
    "checkpoint.keep_every": 0,
    "on_nan": "stop",
    "seeds": 1,
    "score.perceptual": 0.0,
    "score.standardize": False,
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


def require_same_config(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError when the folder holds a run of another config, naming what differs."""
    if (workdir / "config.json").exists():
        theirs, ours = _flat(read_config(workdir)), _flat(config)
        differing = [
            f"  {name}: {theirs.get(name)!r} there, {ours.get(name)!r} now"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name) and not name.startswith(_CHANGEABLE_FIELDS)
        ]
        if differing:
            raise UserError(
                f"{workdir} holds a run with another config:\n"
                + "\n".join(differing)
                + "\nGive its values to go on with it, or another --workdir to start anew."
            )


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes the config, or joins the run of the same config that is in the folder.

    An evaluation by other fields goes: what reads it may not take it for one by these.
    """
    require_same_config(workdir, config)
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
        fill_missing_fields(fields)
        for name, kind in _TYPES.items():
            if type(fields.get(name)) is not kind:
                raise ValueError(f"its {name} is missing or wrong")
        return ConfigDict(fields, convert_dict=True).lock()
    except _UNREADABLE as error:
        raise UserError(f"{workdir} holds no run: config.json cannot be read ({error})") from error


def fill_missing_fields(fields: dict) -> None:
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


def package_version(package: str) -> str:
    """Of an installed package; "not installed" of one that is only there, such as a checkout of
    this project whose folder is on the path."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
