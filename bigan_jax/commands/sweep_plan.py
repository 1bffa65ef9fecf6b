"""Which runs a sweep is made of, and which of them are finished."""

import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from bigan_jax.errors import UserError, unknown_name
from bigan_jax.evaluation.finished_run import flat_fields, read_run
from bigan_jax.evaluation.paper_results import MODELS
from bigan_jax.runtime.run_config import default_name, require_same_config

_EVALUATION_FIELDS = ("score.", "threshold.")  # another value asks for another evaluation


class PlannedRun(NamedTuple):
    """One run of a sweep: its folder, the flags of its command, its config."""

    workdir: Path
    arguments: list[str]
    config: ConfigDict

    @property
    def epochs(self) -> int:
        """Of the whole schedule."""
        return sum(phase.epochs for phase in self.config.phases.values())


def plan(
    config: ConfigDict, file: str, overrides: Mapping[str, object], output: str | Path
) -> list[PlannedRun]:
    """The runs that `config.sweep` asks for: the first seed of all before the second of any.

    config: as the command line gave it. file: its "configs/<model>.py:<dataset>,...".
    overrides: fields set on the command line, for every run.
    Raises UserError for a model, dataset, ablation or field that there is not.
    """
    path, _, argument = file.partition(":")
    own, *modifiers = (argument or "phantom").split(",")
    there = {p.stem: p for p in Path(path).parent.glob("*.py")}
    there = {name: there[name] for name in [*MODELS, *sorted(there)] if name in there}
    models = {k: v for k, v in there.items() if k not in ("__init__", "common")}
    names = _chosen("model", config.sweep.models, models, Path(path).stem)
    datasets = _listed(config.sweep.datasets) or [own]
    folders = _folders(config.sweep.dirs, datasets)
    kept = {k: v for k, v in overrides.items() if k != "seed" and not k.startswith("sweep.")}
    if config.sweep.seeds < 1 or config.sweep.parallel < 1:
        raise UserError("config.sweep.seeds and config.sweep.parallel must be at least 1")
    if config.sweep.splits and "data.split_seed" in kept:
        raise UserError("config.sweep.splits gives each seed its data.split_seed: leave one out")
    if config.seeds != 1:
        raise UserError("config.seeds is one run's: a sweep has config.sweep.seeds")
    variants = {name: _variants(config, models[name]) for name in names}
    wanted = set(_listed(config.sweep.ablations)) - {"all"}
    if none := wanted - {variant for found in variants.values() for variant in found}:
        raise UserError(
            f"config.sweep.ablations={','.join(sorted(none))}: no model of the sweep "
            f"({', '.join(names)}) has it"
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
                    run = _planned(f"{models[name]}:{','.join(parts)}", fields, Path(output))
                    if runs.setdefault(run.workdir, run) is not run:
                        raise UserError(f"two runs of the sweep would share {run.workdir}")
    return list(runs.values())


def _planned(file, fields, output):
    arguments = [f"--config={file}", *(f"--config.{k}={v}" for k, v in fields.items())]
    config = _parsed(arguments)
    workdir = output / default_name(config).name
    return PlannedRun(workdir, [*arguments, f"--workdir={workdir}"], config)


def _parsed(arguments):
    """The config that the command makes of these flags."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", lock_config=True, flag_values=values, sys_argv=arguments
    )
    try:
        values(["launch.py", *arguments])
    except (AttributeError, KeyError) as error:
        field = str(error).strip("\"'").partition("\\n")[0]
        raise UserError(f"{arguments[0]} has no field {field}: sweep it apart") from error
    except flags.Error as error:
        raise UserError(str(error)) from error
    return values["config"].value


def _listed(words):
    return [word.strip() for word in words.split(",") if word.strip()]


def _chosen(kind, words, there, default):
    names = list(there) if words == "all" else _listed(words) or [default]
    for name in names:
        if name not in there:
            raise unknown_name(kind, name, there)
    return names


def _folders(words, datasets):
    folders = {}
    for part in _listed(words):
        dataset, equals, folder = part.partition("=")
        if not equals or not folder:
            raise UserError(f"config.sweep.dirs={part}: write DATASET=DIR,DATASET=DIR")
        if dataset not in datasets:
            raise UserError(
                f"config.sweep.dirs={part}: the sweep has no dataset {dataset!r}, but "
                f"{', '.join(datasets)} (config.sweep.datasets)"
            )
        folders[dataset] = folder
    return folders


def _variants(config, path):
    """What to run of a model: "" for itself, and such ablations as it has ("no_se+no_ssim")."""
    asked = _listed(config.sweep.ablations)
    if not asked:
        return [""]
    has = runpy.run_path(str(path)).get("ABLATIONS", {})
    asked = list(has) if asked == ["all"] else asked
    return ["", *(name for name in asked if all(part in has for part in name.split("+")))]


def is_finished(run: PlannedRun) -> bool:
    """Whether the folder holds this very run, trained to the end and evaluated by this config.

    Raises UserError when it holds a run of another config.
    """
    try:
        require_same_config(run.workdir, run.config)
    except UserError as error:
        raise UserError(f"{error} For a sweep that is another --output.") from error
    try:
        found = read_run(run.workdir)
    except UserError:
        return False
    ours = flat_fields(json.loads(json.dumps(run.config.to_dict())))
    same = all(
        found.fields.get(name) == value
        for name, value in ours.items()
        if name.startswith(_EVALUATION_FIELDS)
    )
    total = found.total_epochs
    return same and total is not None and found.result.epochs >= total
