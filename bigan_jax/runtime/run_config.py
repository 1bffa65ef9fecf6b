"""config.json, the config of a run in its folder: written, read, and compared with a new one."""

import importlib.metadata
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from bigan_jax.errors import UserError, one_line
from bigan_jax.runtime.files import read_bounded, write_json

FORMAT = 4  # of a run's folder; raise it with each change that other versions would misread

# Fields, and groups of them, that may change between two starts of one run: training does not depend on them, or the
# change is checked elsewhere (split.csv lists the training images, vgg16.sha256 has the digest of frozen networks,
# roi.png is the region of interest).
_CHANGEABLE_FIELDS = (
    *("score.", "sweep.", "checkpoint.", "vgg16.", "on_nan", "loggers"),
    *("threshold.rule", "threshold.false_alarm_rate", "threshold.pixel_rate", "threshold.value"),
    *("data.dir", "data.tfds_dir", "data.stream", "data.skip_unreadable", "data.roi", "model.network"),
)

_GROUPS = ("data", "augment", "score", "vgg16", "threshold", "checkpoint", "model", "optimizers", "phases")
_TYPES = {
    **dict.fromkeys(_GROUPS, dict),
    **dict.fromkeys(("name", "model_name", "dtype"), str),
    **dict.fromkeys(("seed", "batch_size"), int),
}

_MAX_CONFIG_BYTES = 4 * 2**20


def default_name(config: ConfigDict) -> Path:
    """runs/<model>-<dataset>[-<category>][-quick][-<ablations>]-seed<k>, or -seeds<k>-<l>"""
    category = config.data.category.replace(",", "+") if config.data.category else ""
    last = config.seed + config.seeds - 1
    seeds = f"seed{config.seed}" if config.seeds == 1 else f"seeds{config.seed}-{last}"
    parts = [config.name, config.data.name, category, *["quick"] * config.quick]
    return Path("runs") / "-".join([*filter(None, parts), *map(str, config.ablations), seeds])


def require_same_config(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError if a folder holds a run whose config differs in fields on which training depends."""
    if (workdir / "config.json").exists():
        saved, current = flat_config(read_config(workdir)), flat_config(config)
        differing = [
            f"  {name}: {saved.get(name)!r} there, {current.get(name)!r} now"
            for name in sorted(saved.keys() | current.keys())
            if saved.get(name) != current.get(name) and not name.startswith(_CHANGEABLE_FIELDS)
        ]
        if differing:
            hint = "Use its values to resume it, or another --workdir to start a new run."
            raise UserError("\n".join([f"{workdir} holds a run with another config:", *differing, hint]))


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes a new run's config, or updates that of a run to resume and deletes an evaluation of another config.

    Raises UserError if the folder holds another run (`require_same_config`) or cannot be written.
    """
    require_same_config(workdir, config)
    if (workdir / "config.json").exists() and flat_config(read_config(workdir)) != flat_config(config):
        (workdir / "evaluation.json").unlink(missing_ok=True)
    write_json(workdir / "config.json", {"format": FORMAT, **config.to_dict()})


def read_config(workdir: Path) -> ConfigDict:
    """Returns the config, locked, of the run in a folder.

    Raises:
      UserError: the folder holds no run, its config.json cannot be read, or another version of this package wrote it.
    """
    try:
        content = read_bounded(workdir / "config.json", _MAX_CONFIG_BYTES)
    except UserError as error:
        if not workdir.exists():
            raise UserError(f"{workdir} does not exist. Train a run there first.") from error
        raise UserError(
            f"{workdir} holds no run: {error}. The runs of several seeds and of a sweep are in its subfolders."
        ) from error
    try:
        fields = json.loads(content)
        require_format(fields.pop("format", FORMAT), workdir)
        for name, expected in _TYPES.items():
            if type(fields.get(name)) is not expected:
                raise ValueError(f"{name} is missing or has the wrong type")
        return ConfigDict(fields, convert_dict=True).lock()
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
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
            f"{name} was written by another version of bigan_jax (format {number!r:.20}, this version reads {FORMAT}). "
            "Train again in another --workdir."
        )


def flat_config(config: ConfigDict) -> dict[str, object]:
    """Returns a config's fields by dotted name, with values as JSON returns them."""
    return flatten(json.loads(json.dumps(config.to_dict())))


def flatten(fields: dict, prefix: str = "") -> dict[str, object]:
    """Returns nested fields by dotted name."""
    flat = {}
    for name, value in fields.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def package_version(package: str) -> str:
    """Returns a package's version, or "not installed", as for a checkout that is on the path."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
