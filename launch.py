"""Train, evaluate and report one anomaly detector.

python launch.py --config=configs/improved_bigan.py:phantom
python launch.py --config=configs/cae.py:mvtec,quick --config.data.dir=DIR --workdir=runs/try
python launch.py --mode=predict --workdir=runs/try --input=PICTURES --output=DIR
python launch.py --mode=compare --workdirs='runs/*' --output=DIR
python launch.py --mode=sweep --config.sweep.models=all --config.sweep.seeds=5 --output=DIR
"""

import os
import shlex
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from bigan_jax.configs import common
from bigan_jax.errors import UserError, printable_lines
from bigan_jax.runtime import preemption
from bigan_jax.runtime.jax_setup import enable_compilation_cache, keep_freed_memory

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/<model>.py:<dataset>[,quick][,<ablation>...]", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "where the run's files go; default runs/<model>-<dataset>[-...]-seed<k>"
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "predict", "compare", "sweep"],
    "train: train or go on, then evaluate; evaluate: score and report again from the workdir; "
    "predict: score the new pictures of --input; "
    "compare: tables over the runs in --workdirs; sweep: the runs of --config.sweep, then compare",
)
_INPUT = flags.DEFINE_string(
    "input", None, "new pictures: a picture, a folder, an archive, or a pattern such as 'new/*.png'"
)
_CONDITION = flags.DEFINE_string(
    "condition", "", "what they show, for a conditional model; default: what their folder is called"
)
_MAPS = flags.DEFINE_bool(
    "maps", True, "whether predict draws error maps and overlays; --maps=false: scores.csv alone"
)
_WORKDIRS = flags.DEFINE_multi_string(
    "workdirs", [], "folders to compare, or a pattern such as 'runs/*'; may be given again"
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "where results go; default of compare: comparison, of sweep: runs"
)
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "",
    "where compiled programs are kept for later runs; by default in the user's cache folder, or "
    "where JAX_COMPILATION_CACHE_DIR says; 'off': nowhere",
)
_TIME_LIMIT = flags.DEFINE_float(
    "time_limit",
    0.0,
    "minutes after which a run is saved and ends with status 75, for a queue to start it again",
    lower_bound=0.0,
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0, to train in several (docs/cluster.md)",
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "how many train together; 1: this one alone; default: SLURM's, a pod's"
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "which of them this is, from 0")
_PEER_TIMEOUT = flags.DEFINE_float(
    "peer_timeout",
    60.0,
    "seconds without a sign of life after which a process is lost and the others end, status 75",
    lower_bound=5.0,
)
_SWEEP_DEFAULT = "configs/improved_bigan.py:phantom"


def parse_flags(arguments, parse=app.parse_flags_with_usage):
    for place, flag in reversed(list(enumerate(arguments[:-1]))):
        if flag.lstrip("-") in ("config", "mode") and flag.startswith("-"):  # as one: --flag=value
            arguments[place : place + 2] = [f"{flag}={arguments[place + 1]}"]
    if "--mode=sweep" in arguments and not any(a.startswith("--config=") for a in arguments):
        arguments.insert(1, f"--config={_SWEEP_DEFAULT}")  # in sys.argv, where overrides look
    common.check_arguments(arguments)
    try:
        return parse(arguments)
    except (UserError, flags.Error):
        raise
    except Exception as error:  # what a value of a field is made of, the parsers raise over
        raise UserError(f"the flags cannot be read: {error or type(error).__name__}") from error


def main(arguments):
    logging.set_verbosity(logging.WARNING)  # JAX and Orbax report every backend and file they try
    if len(arguments) > 1:
        raise UserError(
            f"unexpected argument {arguments[1]!r}: every option is a --flag=value, and a pattern "
            "is quoted, as in --input='new/*.png'"
        )
    if _MODE.value == "train" and _CONFIG.value is None:
        raise UserError("say what to train: --config=configs/improved_bigan.py:phantom")
    if _MODE.value == "evaluate" and _WORKDIR.value is None:
        raise UserError("say what to evaluate: --workdir=DIR")
    if _MODE.value == "predict" and not (_WORKDIR.value and _INPUT.value and _OUTPUT.value):
        raise UserError("say what goes where: --workdir=DIR --input=PICTURES --output=DIR")
    if _MODE.value == "predict" and _CONFIG.value is not None:
        raise UserError("leave --config out: predict goes by the config of the --workdir")
    if _MODE.value == "compare" and not _WORKDIRS.value:
        raise UserError("say what to compare: --workdirs='runs/*'")
    if _MODE.value == "sweep" and _CONFIG.value is None:
        raise UserError(f"say what to sweep: --config={_SWEEP_DEFAULT}")
    if _MODE.value == "sweep" and _WORKDIR.value is not None:
        raise UserError("--workdir is for one run: say where a sweep's runs go by --output=DIR")
    if _MODE.value in ("train", "evaluate") and _OUTPUT.value is not None:
        raise UserError(f"--output is not for {_MODE.value}: say where a run is by --workdir=DIR")
    overrides = config_flags.get_override_values(flags.FLAGS["config"]) if _CONFIG.value else {}
    if _MODE.value != "sweep" and any(name.startswith("sweep.") for name in overrides):
        raise UserError("config.sweep is for --mode=sweep: add it, or leave these fields out")
    if _MODE.value == "compare" and _WORKDIR.value is not None:
        raise UserError("say what to compare by --workdirs='runs/*', not by --workdir")
    workdir, output, given = map(_place, (_WORKDIR.value, _OUTPUT.value, _INPUT.value))

    preemption.install_handlers(_TIME_LIMIT.value)
    enable_compilation_cache(_COMPILATION_CACHE.value)
    keep_freed_memory()
    import bigan_jax  # JAX is imported only once the flags are known to be right

    if _MODE.value == "train":
        from bigan_jax.runtime.watchdog import join_processes

        train = bigan_jax.train  # imports, which may hold up the signs of life, come before them
        process = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
        with join_processes(*process, _PEER_TIMEOUT.value):
            train(_CONFIG.value, workdir)
    elif _MODE.value == "predict":
        found = bigan_jax.predict(workdir, given, output, _CONDITION.value, maps=_MAPS.value)
        return 2 if found.unreadable else 0
    elif _MODE.value == "compare":
        found = bigan_jax.compare(_WORKDIRS.value, output or "comparison")
        return 2 if found.left_out else 0
    elif _MODE.value == "sweep":
        from bigan_jax.commands.sweep import run_command

        flag = flags.FLAGS["config"]
        file = config_flags.get_config_filename(flag)
        command = run_command(sys.argv[0])
        found = bigan_jax.sweep(_CONFIG.value, file, overrides, output or "runs", command)
        return 2 if found.failures or not found.comparison or found.comparison.left_out else 0
    else:
        bigan_jax.evaluate(workdir, _CONFIG.value)


def _place(path):
    """A path of the command line, where shells leave a ~ after "=" as it is."""
    return path and os.path.expanduser(path)


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        sys.exit(f"error: {printable_lines(error)}")
    except OSError as error:  # a folder that one may not enter, a name too long for the disk
        if error.filename is None:
            raise
        sys.exit(f"error: {printable_lines(f'{error.filename}: {error.strerror}')}")
    except KeyboardInterrupt as stopped:
        again = f"go on with: {shlex.join(['python', *sys.argv])}"
        told = "--output holds what was finished" if "--mode=predict" in sys.argv else again
        print(f"{str(stopped) or 'interrupted'}; {told}", file=sys.stderr)
        sys.exit(getattr(stopped, "status", 130))
