"""The subcommands of `bigan-jax` that train and use runs. They set the flags of launch.py.

Each argument has a flag's name as its destination, so that a command line becomes flags without a table. The help of
an option is that of its flag, and fields of a config are described by the comments of configs/common.py.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from absl import app, flags

from bigan_jax.commands import cli, config_files, saved_config
from bigan_jax.errors import UserError
from bigan_jax.runtime.run_config import flat_config

_QUICK = "quick"
_SET_BY_ARGUMENT = (_QUICK, "ablations", "model_name")  # fields that a config's argument or file decides

_SHORT = {"data.roi": ("roi",)}  # further names of options


class ConfigFields(NamedTuple):
    """Which fields of which config are options of a command."""

    metavar: str  # of the positional argument that names the config
    config: Callable[[str], str]  # returns the config, as launch.py takes it, that the argument names
    sweep: bool = False  # whether config.sweep is part of it

    def add_to(self, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
        """Adds the fields of the first config in the arguments, if there is one."""
        names = (argument for argument in arguments if not argument.startswith("-"))
        name, config = next(self._configs(names), (self.metavar, ""))
        parser.usage = f"{parser.prog} {self.metavar} [--OPTION=VALUE ...] [--FIELD=VALUE ...]"
        group = parser.add_argument_group(f"fields of {name}")
        file, _, argument = config.partition(":")
        get_config = config_files.load(file)
        if get_config is None:
            group.description = f"listed by {parser.prog} {name} --help"
            return
        comments = config_files.field_comments()
        for field, value in flat_config(get_config(argument or None)).items():
            if field in _SET_BY_ARGUMENT or (field.startswith("sweep.") and not self.sweep):
                continue
            value = tuple(value) if isinstance(value, list) else value
            text = f"{comments.get(field, '')} (default: {value if value != '' else repr(value)})".strip()
            is_switch = isinstance(value, bool)
            group.add_argument(
                *(f"--{name}" for name in (field, *_SHORT.get(field, ()))),
                dest=f"config.{field}",
                metavar=type(value).__name__.upper(),
                help=text.replace("%", "%%"),
                nargs="?" if is_switch else None,
                const="true" if is_switch else None,
            )

    def _configs(self, names) -> Iterator[tuple[str, str]]:
        for name in names:
            with suppress(UserError):
                yield name, self.config(name)


def config_of_run(workdir: str) -> str:
    """Returns the config of the run in a folder. Raises UserError if there is none."""
    saved_config.get_config(workdir)
    return f"{saved_config.__file__}:{workdir}"


def add_train(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of train."""
    _add_config(parser)
    _add_options(parser, "workdir", "time_limit", "compilation_cache")
    _add_options(parser, "coordinator", "num_processes", "process_id", "peer_timeout", title="several processes")


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of evaluate."""
    _add_run(parser)
    _add_options(parser, "compilation_cache")


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of predict."""
    _add_run(parser)
    parser.add_argument("input", metavar="IMAGES", help=_help("input"))
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for results, new or empty")
    _add_options(parser, "condition", "time_limit", "compilation_cache")
    parser.add_argument("--maps", action=argparse.BooleanOptionalAction, help=_help("maps"))


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of compare."""
    parser.add_argument("workdirs", nargs="+", metavar="RUN", help=_help("workdirs"))
    parser.add_argument("--synthetic", action=argparse.BooleanOptionalAction, help=_help("synthetic"))
    _add_options(parser, "output")


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of sweep."""
    _add_config(parser)
    _add_options(parser, "output")


def run(values: argparse.Namespace) -> None:
    """Sets the flags of launch.py and runs its code, which exits with a status.

    Raises:
      UserError: a value is wrong, or the command failed.
    """
    given = {name: value for name, value in vars(values).items() if value is not None}
    mode, quick = given.pop("command"), given.pop(_QUICK, False)
    has_fields = any(name.startswith("config.") for name in given)
    if mode == "evaluate" and has_fields:
        given = {"config": config_of_run(values.workdir), **given}
    if quick:
        given["config"] = _shortened(given["config"])
    sys.argv[1:] = [f"--mode={mode}"]
    for name, value in given.items():
        sys.argv += [f"--{name}={item}" for item in (value if isinstance(value, list) else [value])]
    app.run(cli.main, flags_parser=partial(cli.parse_flags, parse=_parse))


def _parse(arguments):
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        raise UserError(f"{error}.") from error


def _shortened(config):
    file, _, argument = config.partition(":")
    parts = (argument or "phantom").split(",")
    return f"{file}:{','.join(parts if _QUICK in parts else [*parts, _QUICK])}"


def _add_config(parser):
    action = parser.add_argument(
        "config",
        metavar="CONFIG",
        type=config_files.resolve,
        help="MODEL:DATASET[,quick][,ABLATION...]; MODEL is one of `bigan-jax models` or your own config file",
    )
    action.completer = config_files.complete  # pyright: ignore[reportAttributeAccessIssue]  # of argcomplete
    parser.add_argument(f"--{_QUICK}", action="store_true", help="64x64 images and a tenth of the epochs; as ,quick")


def _add_run(parser):
    parser.add_argument("workdir", metavar="RUN", type=_run_folder, help="folder of the run")


def _run_folder(workdir):
    config_of_run(workdir)  # before other arguments are checked
    return workdir


def _add_options(parser, *names, title=""):
    group = parser.add_argument_group(title) if title else parser
    for name in names:
        flag = flags.FLAGS[name]
        group.add_argument(f"--{name}", metavar=flag.parser.flag_type().upper(), help=_help(name))


def _help(name):
    return str(flags.FLAGS[name].help).replace("%", "%%")
