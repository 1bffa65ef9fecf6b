"""The runs of a sweep, and whether they are finished."""

import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

from absl import flags
from ml_collections import ConfigDict, config_flags

from bigan_jax.commands import config_files
from bigan_jax.errors import UserError, unknown_name
from bigan_jax.evaluation.finished_run import read_run
from bigan_jax.evaluation.paper_results import MODELS
from bigan_jax.runtime.run_config import default_name, flat_config, require_same_config

_EVALUATION_FIELDS = ("score.", "threshold.")  # if one of them changes, a run is evaluated again


class PlannedRun(NamedTuple):
    workdir: Path
    arguments: list[str]  # flags of its command
    config: ConfigDict  # that the flags give

    @property
    def epochs(self) -> int:
        """The number of epochs of the schedule."""
        return sum(phase.epochs for phase in self.config.phases.values())


def plan(config: ConfigDict, file: str, overrides: Mapping[str, object], output: str | Path) -> list[PlannedRun]:
    """Returns the runs of `config.sweep`, seed by seed; the arguments are those of `commands.sweep.sweep`.

    Raises:
      UserError: a model, dataset, ablation or field does not exist, or two runs have one folder.
    """
    path, _, argument = file.partition(":")
    config_dataset, *modifiers = (argument or "phantom").split(",")
    files = config_files.find(Path(path).parent)
    files = {name: files[name] for name in [*MODELS, *files] if name in files}
    names = list(files) if config.sweep.models == "all" else _split(config.sweep.models) or [Path(path).stem]
    for name in names:
        if name not in files:
            raise unknown_name("model", name, files)
    datasets = _split(config.sweep.datasets) or [config_dataset]
    folders = _data_folders(config.sweep.dirs, datasets)
    kept = {k: v for k, v in overrides.items() if k != "seed" and not k.startswith("sweep.")}
    for field in ("seeds", "parallel"):
        if config.sweep[field] < 1:
            raise UserError(f"config.sweep.{field} must be at least 1 (got {config.sweep[field]}).")
    if config.sweep.splits and "data.split_seed" in kept:
        raise UserError("config.sweep.splits sets data.split_seed to each seed. Remove one of the two.")
    if config.seeds != 1:
        raise UserError(f"config.seeds must be 1 in a sweep (got {config.seeds}). Use config.sweep.seeds.")
    variants = {name: _variants(config.sweep.ablations, files[name], kept) for name in names}
    unused = {*_split(config.sweep.ablations)} - {"all"}.union(*variants.values())
    if unused:
        wrong = ",".join(sorted(unused))
        raise UserError(
            f"config.sweep.ablations={wrong}: no model of the sweep ({', '.join(names)}) has this ablation."
        )
    runs = {}
    for seed in range(config.seed, config.seed + config.sweep.seeds):
        for dataset in datasets:
            fields = kept | {"seed": seed}
            if config.sweep.splits:
                fields["data.split_seed"] = seed
            if dataset in folders:
                fields["data.dir"] = folders[dataset]
            for name in names:
                for variant in variants[name]:
                    parts = [dataset, *modifiers, *filter(None, variant.split("+"))]
                    run = _plan_run(f"{files[name]}:{','.join(parts)}", fields, Path(output))
                    if runs.setdefault(run.workdir, run) is not run:
                        raise UserError(f"Two runs of the sweep have the same folder {run.workdir}.")
    return list(runs.values())


def _plan_run(file, fields, output):
    arguments = [f"--config={file}", *(f"--config.{k}={v}" for k, v in fields.items())]
    config = _parse_config(arguments)
    workdir = output / default_name(config).name
    return PlannedRun(workdir, [*arguments, f"--workdir={workdir}"], config)


def _parse_config(arguments):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=arguments)
    try:
        values(["launch.py", *arguments])
    except (AttributeError, KeyError) as error:
        field = str(error).strip("\"'").partition("\\n")[0]
        raise UserError(f"{arguments[0]} has no field {field}. Run another sweep for this model.") from error
    except flags.Error as error:
        raise UserError(str(error)) from error
    return cast(ConfigDict, values["config"].value)  # set by the first argument


def _split(names):
    return [name.strip() for name in names.split(",") if name.strip()]


def _data_folders(dirs, datasets):
    folders = {}
    for item in _split(dirs):
        dataset, _, folder = item.partition("=")
        if not folder:
            raise UserError(f"config.sweep.dirs must be DATASET=DIR,DATASET=DIR,... (got {item}).")
        if dataset not in datasets:
            known = ", ".join(datasets)
            raise UserError(
                f"config.sweep.dirs={item}: the sweep has no dataset {dataset!r}. Its datasets are {known}."
            )
        folders[dataset] = folder
    return folders


def _variants(ablations, file, overrides):
    """Returns "" for the full model, and those ablations ("no_se+no_ssim") that the model has.

    Raises UserError if an override sets a field of an ablation, which would undo it.
    """
    names = _split(ablations)
    if not names:
        return [""]
    available = runpy.run_path(str(file)).get("ABLATIONS", {})
    names = list(available) if names == ["all"] else names
    names = [name for name in names if all(part in available for part in name.split("+"))]
    for part in dict.fromkeys(part for name in names for part in name.split("+")):
        if undone := sorted(available[part].keys() & overrides.keys()):
            raise UserError(
                f"config.{undone[0]} is set for all runs, which undoes the ablation {part}. Leave one of them out."
            )
    return ["", *names]


def is_finished(run: PlannedRun) -> bool:
    """Returns whether the run's folder holds this run, trained to the end and evaluated with this config.

    Raises UserError if it holds another run.
    """
    try:
        require_same_config(run.workdir, run.config)
    except UserError as error:
        raise UserError(f"{error} A sweep sets the folders by --output.") from error
    try:
        finished = read_run(run.workdir)
    except UserError:
        return False
    fields = {k: v for k, v in flat_config(run.config).items() if k.startswith(_EVALUATION_FIELDS)}
    same = all(finished.fields.get(name) == json.dumps(value) for name, value in fields.items())
    total = finished.total_epochs
    return same and total is not None and finished.result.epochs >= total
