"""The command `bigan-jax`: a table of subcommands, and the parser of their arguments.

A subcommand is an entry of COMMANDS. Those that train and use runs set the flags of launch.py (`console_runs.py`).
Nothing here imports JAX: a mistake is reported, and help is shown, at once.
"""

import argparse
import difflib
import importlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

import bigan_jax
from bigan_jax.commands import app, config_files, console_runs, export
from bigan_jax.commands.console_runs import ConfigFields
from bigan_jax.commands.exit_status import exit_with_message
from bigan_jax.errors import UserError, unknown_name

PROGRAM = "bigan-jax"
_COMPLETION = f'Completion by the Tab key, in bash and zsh: eval "$(register-python-argcomplete {PROGRAM})"'
# Messages name the flags of launch.py. These are the words of this command for them.
_PHRASES = (
    (r"flag (--\S+)=(.*): invalid literal for int\(\).*", r"\1 must be an integer (got \2)."),
    (r"flag (--\S+)=(.*): could not convert string to float.*", r"\1 must be a number (got \2)."),
    (r"--config=configs/<model>\.py", f"{PROGRAM} train MODEL"),
    (r"--config=configs/(\w+)\.py", r"\1"),
    (r"--mode=(\w+) --workdir=(\S+)", rf"{PROGRAM} \1 \2"),
    (r"--mode=", f"{PROGRAM} "),
    (r"--config\.", "--"),
    (r"--(workdirs|input)=", ""),
)


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations of options, whose errors are UserErrors."""

    def __init__(self, **arguments):
        super().__init__(**arguments, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        end = "" if message.endswith("?") else "."
        raise UserError(f"{message[0].upper()}{message[1:]}{end} See `{self.prog} --help`.")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Returns the values of the arguments. Raises UserError with the nearest option for an unknown one."""
        values, unknown = self.parse_known_args(arguments)
        if not unknown:
            return values
        name = unknown[0].partition("=")[0]
        if not name.startswith("-"):
            self.error(f"unexpected argument {name!r}")
        options = re.findall(r"^ +(--[\w.]+)", self.format_help(), re.MULTILINE)
        nested = [option for option in options if option.rpartition(".")[2] == name.lstrip("-")]
        nearest = [*nested, *difflib.get_close_matches(name, options, n=1)]
        self.error(f"unknown option {name}{f', did you mean {nearest[0]}?' if nearest else ''}")


class Command(NamedTuple):
    """A subcommand."""

    summary: str
    examples: Sequence[str]  # arguments
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]  # returns the exit status
    fields: ConfigFields | None = None  # which fields of a config are options


def _module(name: str) -> Callable[[argparse.Namespace], int | None]:
    """Returns the `run` of a command that is the function `run` of a module, imported when it runs."""
    return lambda arguments: importlib.import_module(f"bigan_jax.commands.{name}").run(arguments)


def _no_arguments(_: argparse.ArgumentParser) -> None:
    pass


COMMANDS = {
    "train": Command(
        "train a detector, or resume its training, then evaluate it",
        ("improved_bigan:phantom", "cae:folder --data.dir=DIR --quick", "my_config.py:brain --seed=3 --workdir=RUN"),
        console_runs.add_train,
        console_runs.run,
        ConfigFields("CONFIG", config_files.resolve),
    ),
    "evaluate": Command(
        "score the test images of a run again, also with another score or threshold",
        ("RUN", "RUN --score.name=paper", "RUN --threshold.false_alarm_rate=0.01"),
        console_runs.add_evaluate,
        console_runs.run,
        ConfigFields("RUN", console_runs.config_of_run),
    ),
    "predict": Command(
        "score new images and draw where they are anomalous",
        ("RUN IMAGES --output=DIR", "RUN 'new/*.png' --output=DIR --no-maps"),
        console_runs.add_predict,
        console_runs.run,
    ),
    "compare": Command(
        "write tables of runs over models, datasets and seeds",
        ("runs/*", "runs/cae-* runs/vae-* --output=tables"),
        console_runs.add_compare,
        console_runs.run,
    ),
    "sweep": Command(
        "train many runs, then compare them",
        ("cae:phantom --sweep.models=all --sweep.seeds=5 --output=DIR",),
        console_runs.add_sweep,
        console_runs.run,
        ConfigFields("CONFIG", config_files.resolve, sweep=True),
    ),
    "export": Command(
        "write a detector as one artifact that runs with JAX or onnxruntime alone",
        ("RUN --output=DIR", "RUN --format=onnx --output=detector.zip"),
        export.add_arguments,
        export.run,
    ),
    "app": Command(
        "score images on a page in the browser, from files or the camera",
        ("RUN", "RUN RUN2", "RUN --port=8000 --no-browser"),
        app.add_arguments,
        app.run,
    ),
    "models": Command("list the models and when to use which", ("",), _no_arguments, _module("models_table")),
    "doctor": Command(
        "check this machine: versions, devices, caches, weights, disk", ("",), _no_arguments, _module("doctor")
    ),
}


def main() -> None:
    """Runs the command line and exits with the status of `launch.py`."""
    arguments = sys.argv[1:]
    program = ["python", "-m", "bigan_jax"] if Path(sys.argv[0]).name == "__main__.py" else [PROGRAM]
    with exit_with_message([*program, *arguments], rephrase):
        sys.exit(run(arguments))


def run(arguments: Sequence[str]) -> int | None:
    """Runs a command and returns its exit status; None is 0.

    Raises:
      UserError: a name is unknown, an argument is missing, or the command failed.
    """
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    name, *rest = arguments or ["--help"]
    if name in COMMANDS:
        # Fields are also accepted as launch.py, notes and documents write them.
        rest = [re.sub(r"^--config\.", "--", argument) for argument in rest]
        return COMMANDS[name].run(make_command_parser(name, rest, Parser).parse(rest))
    if not name.startswith("-"):
        raise unknown_name("command", name, COMMANDS)
    make_parser().parse(arguments or ["--help"])
    return None


def make_command_parser(name: str, arguments: Sequence[str], make: Callable[..., Parser]) -> Parser:
    """Returns the parser of a command. If the arguments name a config, its fields are options.

    Args:
      make: makes a parser from arguments of `Parser`.
    """
    command = COMMANDS[name]
    examples = [f"{PROGRAM} {name} {example}".rstrip() for example in command.examples]
    description = f"{command.summary[0].upper()}{command.summary[1:]}."
    parser = make(prog=f"{PROGRAM} {name}", description=description, epilog=_epilog(examples))
    parser.set_defaults(command=name)
    command.add_arguments(parser)
    if command.fields:
        command.fields.add_to(parser, arguments)
    return parser


def make_parser(command_line: Sequence[str] = ()) -> Parser:
    """Returns the parser of all commands; the fields of a config that the command line names are options."""
    examples = [f"{PROGRAM} {name} {command.examples[0]}".rstrip() for name, command in COMMANDS.items()]
    description = (bigan_jax.__doc__ or "").partition("\n")[0]
    parser = Parser(prog=PROGRAM, description=description, epilog=_epilog([*examples, "", _COMPLETION]))
    parser.add_argument("--version", action="version", version=f"bigan_jax {bigan_jax.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        arguments = command_line[1:] if name in command_line[:1] else ()
        make_command_parser(name, arguments, partial(subparsers.add_parser, name, help=command.summary))
    return parser


def rephrase(message: str) -> str:
    """Returns a message, which names flags of launch.py, in the words of this command."""
    for pattern, words in _PHRASES:
        message = re.sub(pattern, words, message)
    return message


def _epilog(lines):
    return "\n".join(["examples:", *(f"  {line}" for line in lines)])


def _complete():
    """Prints completions of the command line that the shell sent, and exits."""
    import argcomplete

    try:
        parser = make_parser(shlex.split(os.environ.get("COMP_LINE", ""))[1:])
    except (ValueError, UserError):  # a quotation mark is open, or a name is incomplete
        parser = make_parser()
    argcomplete.autocomplete(parser)
