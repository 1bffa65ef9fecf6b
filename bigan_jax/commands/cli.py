"""The flags of launch.py, their checks, and the exit status of each mode. `console.py` sets the same flags.

JAX is imported only after all checks, so that a mistake is reported at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

import bigan_jax
from bigan_jax.commands import config_files
from bigan_jax.commands.exit_status import exit_with_message
from bigan_jax.errors import UserError, printable, unknown_name
from bigan_jax.runtime import stop_signals
from bigan_jax.runtime.jax_setup import enable_compilation_cache, keep_freed_memory
from bigan_jax.runtime.run_config import config_errors, default_name, flat_config, read_config

_DEFAULT_CONFIG = "configs/improved_bigan.py:phantom"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/<model>.py:<dataset>[,quick][,<ablation>...]", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; default: runs/<model>-<dataset>[-...]-seed<k>")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "predict", "compare", "sweep"],
    "train: train or resume a run, then evaluate it; evaluate: score the test images of a run again; predict: score "
    "the images of --input; compare: write tables of --workdirs; sweep: train and compare the runs of --config.sweep",
)
_INPUT = flags.DEFINE_string("input", None, "images to score: an image, folder, archive, or pattern like 'new/*.png'")
_CONDITION = flags.DEFINE_string("condition", "", "condition of the images; default: the name of their folder")
_MAPS = flags.DEFINE_bool(
    "maps", True, "whether predict writes error maps, overlays, masks, regions and a report in addition to scores"
)
_WORKDIRS = flags.DEFINE_multi_string("workdirs", [], "folders of runs, or a pattern like 'runs/*'; may be repeated")
_SYNTHETIC = flags.DEFINE_bool(
    "synthetic", False, "whether compare scores synthetic defects on the calibration images of each run, without labels"
)
_OUTPUT = flags.DEFINE_string("output", None, "folder for results; default: comparison (compare), runs (sweep)")
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "",
    "folder of compiled programs; default: JAX_COMPILATION_CACHE_DIR, else the user's cache folder; 'off': no cache",
)
_TIME_LIMIT = flags.DEFINE_float(
    "time_limit", 0.0, "minutes after which a run is saved and exits with status 75, to be restarted", lower_bound=0.0
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0 of several processes (docs/how-to/clusters.md)"
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "number of processes that train the run; 1: only this one; default: of SLURM or the pod"
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "index of this process, from 0")
_PEER_TIMEOUT = flags.DEFINE_float(
    "peer_timeout", 60.0, "seconds without heartbeat after which other processes exit with status 75", lower_bound=5.0
)

_REQUIRED = {  # by mode, flags with an example of their value
    "train": {"config": _DEFAULT_CONFIG},
    "evaluate": {"workdir": "DIR"},
    "predict": {"workdir": "DIR", "input": "IMAGES", "output": "DIR"},
    "compare": {"workdirs": "'runs/*'"},
    "sweep": {"config": _DEFAULT_CONFIG},
}
_REJECTED = {  # by mode, a flag and how to do without it
    "train": ("output", "Set the folder of the run with --workdir=DIR."),
    "evaluate": ("output", "Set the folder of the run with --workdir=DIR."),
    "predict": ("config", "The config of the run in --workdir is used."),
    "compare": ("workdir", "Set the runs with --workdirs='runs/*'."),
    "sweep": ("workdir", "It is the folder of one run. Set that of all with --output=DIR."),
}


def run(command: Sequence[str] = ()) -> None:
    """Runs the flags of `sys.argv` and exits; `command` is what resumes the run, by default `python` and `sys.argv`."""
    with exit_with_message(command or ["python", *sys.argv]):
        app.run(main, flags_parser=parse_flags)


def parse_flags(
    arguments: list[str], parse: Callable[[list[str]], list[str]] = app.parse_flags_with_usage
) -> list[str]:
    """Parses the command line and checks the names of its config file and config fields.

    Args:
      arguments: `sys.argv`. As `config_flags` reads it, it is changed: `--flag value` of --config and --mode becomes
        `--flag=value`, and a sweep gets a default config.
      parse: sets the flags of the arguments, and returns the other arguments.

    Raises:
      UserError: a config file or field does not exist, or a value cannot be parsed.
      absl.flags.Error: another flag is wrong.
    """
    for i, argument in reversed(list(enumerate(arguments[:-1]))):
        if argument.lstrip("-") in ("config", "mode") and argument.startswith("-"):
            arguments[i : i + 2] = [f"{argument}={arguments[i + 1]}"]
    if "--mode=sweep" in arguments and not any(a.startswith("--config=") for a in arguments):
        arguments.insert(1, f"--config={_DEFAULT_CONFIG}")
    _check_config_flags(arguments)
    try:
        return parse(arguments)
    except (UserError, flags.Error):
        raise
    except Exception as error:  # the parser of a field's value may raise anything
        raise UserError(f"A flag cannot be parsed: {error or type(error).__name__}") from error


def main(arguments: Sequence[str]) -> int | None:
    """Runs the command of the parsed flags and returns its exit status; None is 0.

    Raises:
      UserError: flags do not fit the mode, the data folder is missing, or the command failed.
    """
    logging.set_verbosity(logging.WARNING)  # JAX and Orbax log every backend and file they try
    if len(arguments) > 1:
        raise UserError(
            f"Unexpected argument {arguments[1]!r}. Options have the form --flag=value, and patterns must be quoted: "
            "--input='new/*.png'."
        )
    mode, config = _MODE.value, _CONFIG.value
    overrides = config_flags.get_override_values(flags.FLAGS["config"]) if config else {}
    _check_mode(mode, overrides)
    # Shells do not expand a ~ that follows "=".
    workdir, output, source = (
        value and os.path.expanduser(value) for value in (_WORKDIR.value, _OUTPUT.value, _INPUT.value)
    )

    stop_signals.install_handlers(_TIME_LIMIT.value)
    enable_compilation_cache(_COMPILATION_CACHE.value)
    keep_freed_memory()
    _check_folders(mode, config, workdir)

    if mode == "train":
        if not _PROCESS_ID.value:  # the import of JAX takes seconds
            source = config.data.dir and printable(f"Reading images from {config.data.dir}")
            print(f"{source or 'Drawing the images of the phantom'} ...", flush=True)
        from bigan_jax.runtime.watchdog import join_processes

        train = bigan_jax.train  # imported before heartbeats start, which an import may delay
        process = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
        with join_processes(*process, _PEER_TIMEOUT.value):
            train(config, workdir)
        return 0
    if mode == "evaluate":
        bigan_jax.evaluate(workdir, config)
        return 0
    if mode == "predict":
        result = bigan_jax.predict(workdir, source, output, _CONDITION.value, maps=_MAPS.value)
        return 2 if result.unreadable else 0
    if mode == "compare":
        result = bigan_jax.compare(_WORKDIRS.value, output or "comparison", _SYNTHETIC.value)
        return 2 if result.skipped else 0

    file = config_flags.get_config_filename(flags.FLAGS["config"])
    result = bigan_jax.sweep(config, file, overrides, output or "runs")
    complete = result.comparison and not result.failures and not result.comparison.skipped
    return 0 if complete else 2


def _check_mode(mode, overrides):
    required = _REQUIRED[mode]
    if not all(flags.FLAGS[name].value for name in required):
        examples = " ".join(f"--{name}={value}" for name, value in required.items())
        raise UserError(f"--mode={mode} requires {examples}")
    rejected, hint = _REJECTED[mode]
    if flags.FLAGS[rejected].value is not None:
        raise UserError(f"--mode={mode} does not accept --{rejected}. {hint}")
    if mode != "sweep" and any(name.startswith("sweep.") for name in overrides):
        raise UserError("The fields of config.sweep require --mode=sweep. Add it, or remove the fields.")


def _check_folders(mode, config, workdir):
    """Raises UserError where the run or its data are missing."""
    several_seeds = mode == "evaluate" and any(Path(workdir).glob("seed*/config.json"))
    if mode in ("evaluate", "predict") and not several_seeds:
        saved_config = read_config(Path(workdir))
        config = config or saved_config
    if mode in ("train", "evaluate") and config is not None:
        from bigan_jax.data.settings import DataSettings
        from bigan_jax.data.source import require_data_folder

        with config_errors(workdir or default_name(config)):
            settings = DataSettings(**config.data.to_dict())
        require_data_folder(settings)


def _check_config_flags(arguments):
    """Raises UserError for an unknown --config file or --config.<field>; Absl's parser would end in a traceback."""
    parts = [argument.lstrip("-").partition("=") for argument in arguments if argument.startswith("-")]
    values = {name: value for name, _, value in parts}
    if values.get("config") == "":
        raise UserError("--config is empty. Use --config=configs/<model>.py:<dataset>.")
    if "config" not in values:
        if fields := [name for name in values if name.startswith("config.")]:
            raise UserError(f"--{fields[0]} requires a config. Add one, such as --config=configs/cae.py:mvtec.")
        return
    file, _, argument = values["config"].partition(":")
    get_config = config_files.load(file)
    if get_config is None:
        files = [str(path) for path in config_files.find(Path("configs")).values()]
        if not files:
            raise UserError(f"There is no {file} here. Start launch.py in {Path(bigan_jax.__file__).parents[1]}.")
        raise unknown_name("config file", file, files, f"configs/{Path(file).stem.lower()}.py")
    config = get_config(argument or None)
    for name in values:
        group, _, field = name.partition(".")
        if group == "config":
            _check_field(config, name.split("."))
        elif field and group in config:
            raise UserError(f"Unknown flag --{name}. The config field is set by --config.{name}.")


def _check_field(config, path):
    """Raises UserError unless the path, from "config" on, leads to a value."""
    node = config
    for depth, field in enumerate(path[1:], 1):
        parent = ".".join(path[:depth])
        if not isinstance(node, ConfigDict):
            raise UserError(f"{parent} is a value and has no field {field!r}.")
        if field not in node:
            if nested := [name for name in flat_config(node) if name.rpartition(".")[2] == field]:
                raise UserError(f"Unknown field '{parent}.{field}'. Did you mean {parent}.{nested[0]}?")
            raise unknown_name("field", f"{parent}.{field}", [f"{parent}.{name}" for name in node])
        node = node[field]
    if len(path) > 1 and isinstance(node, ConfigDict):
        name = ".".join(path)
        fields = ", ".join(f"{name}.{field}" for field in node)
        raise UserError(f"{name} is a group of fields. Set one of them: {fields}.")


if __name__ == "__main__":  # a run of a sweep
    run(["python", "-m", "bigan_jax.commands.cli", *sys.argv[1:]])
