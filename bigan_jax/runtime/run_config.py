"""config.json, the config of a run in its folder: written, read, and compared with a new one."""

import importlib.metadata
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from bigan_jax.errors import UserError, one_line
from bigan_jax.runtime.files import read_bounded, write_json

FORMAT = 3  # of a run's folder; raise it with each change that other versions would misread

# Fields, and groups of them, that may change between two starts of one run: training does not depend on them, or the
# change is checked elsewhere.
_CHANGEABLE_FIELDS = (
    "score.",
    "sweep.",
    "threshold.",
    "checkpoint.",
    "data.dir",
    "data.tfds_dir",
    "data.stream",
    "data.skip_unreadable",  # split.csv lists the training images
    "on_nan",
    "vgg16.",  # the file; vgg16.sha256 has the digest of the weights
)

_GROUPS = ("data", "augment", "score", "vgg16", "threshold", "checkpoint", "model", "optimizers")
_TYPES = {
    **dict.fromkeys((*_GROUPS, "phases"), dict),
    **dict.fromkeys(("name", "model_name", "dtype"), str),
    **dict.fromkeys(("seed", "batch_size"), int),
}

_MAX_CONFIG_BYTES = 4 * 2**20

# Exceptions that parsing and using untrusted JSON can raise.
_UNREADABLE = (ValueError, LookupError, AttributeError, TypeError, RecursionError)


def default_name(config: ConfigDict) -> Path:
    """runs/<model>-<dataset>[-<category>][-quick][-<ablations>]-seed<k>, or -seeds<k>-<l>"""
    category = config.data.category.replace(",", "+") if config.data.category else ""
    last = config.seed + config.seeds - 1
    seeds = f"seed{config.seed}" if config.seeds == 1 else f"seeds{config.seed}-{last}"
    parts = [config.name, config.data.name, category, *["quick"] * config.quick]
    return Path("runs") / "-".join([*filter(None, parts), *map(str, config.ablations), seeds])


def require_same_config(workdir: Path, config: ConfigDict) -> None:
    """Checks that a run's folder is empty or holds a run with the same config.

    Fields on which training does not depend may differ.

    Raises:
      UserError: other fields differ; the message lists them.
    """
    if (workdir / "config.json").exists():
        saved, current = _flat(read_config(workdir)), _flat(config)
        differing = [
            f"  {name}: {saved.get(name)!r} there, {current.get(name)!r} now"
            for name in sorted(saved.keys() | current.keys())
            if saved.get(name) != current.get(name) and not name.startswith(_CHANGEABLE_FIELDS)
        ]
        if differing:
            raise UserError(
                f"{workdir} holds a run with another config:\n"
                + "\n".join(differing)
                + "\nUse its values to resume it, or another --workdir to start a new run."
            )


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes a new run's config, or updates that of a run to resume.

    An evaluation of another config is deleted, so that it is not taken for one of this config.

    Raises:
      UserError: the folder holds a run with another config (`require_same_config`), or cannot be written.
    """
    require_same_config(workdir, config)
    if (workdir / "config.json").exists() and _flat(read_config(workdir)) != _flat(config):
        (workdir / "evaluation.json").unlink(missing_ok=True)
    write_json(workdir / "config.json", {"format": FORMAT, **config.to_dict()})


def read_config(workdir: Path) -> ConfigDict:
    """Reads the config of the run in a folder.

    Returns:
      The config, locked.

    Raises:
      UserError: the folder holds no run, its config.json cannot be read, or another version of this package wrote it.
    """
    try:
        content = read_bounded(workdir / "config.json", _MAX_CONFIG_BYTES)
    except UserError as error:
        if not workdir.exists():
            raise UserError(f"{workdir} does not exist. Train a run there first.") from error
        raise UserError(
            f"{workdir} holds no run: {error}. Use the folder of one run; the runs of several "
            "seeds and of a sweep are in its subfolders."
        ) from error
    try:
        fields = json.loads(content)
        require_format(fields.pop("format", FORMAT), workdir)
        for name, expected in _TYPES.items():
            if type(fields.get(name)) is not expected:
                raise ValueError(f"{name} is missing or has the wrong type")
        return ConfigDict(fields, convert_dict=True).lock()
    except _UNREADABLE as error:
        raise UserError(f"{workdir} holds no run: config.json cannot be read ({error})") from error


@contextmanager
def config_errors(workdir: Path) -> Iterator[None]:
    """Turns any error into a UserError that names the run's config.json, which may be edited."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error, 300)}"
        raise UserError(f"{workdir}/config.json is invalid ({reason}). Restore the file that the run wrote.") from error


def require_format(number: object, name: Path | str) -> None:
    """Raises UserError, which names the folder or file, for another format than `FORMAT`."""
    if type(number) is not int or number != FORMAT:
        raise UserError(
            f"{name} was written by another version of bigan_jax (format {number!r:.20}, this "
            f"version reads {FORMAT}). Train again in another --workdir."
        )


def _flat(config: ConfigDict) -> dict:
    """Fields by dotted name, with values as JSON returns them."""

    def walk(node, prefix):
        for name, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    return dict(walk(json.loads(json.dumps(config.to_dict())), ""))


def package_version(package: str) -> str:
    """Returns a package's version, or "not installed", as for a checkout that is on the path."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
