"""Small runs: their configs, and the command that trains them."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = {
    "data.image_size": 32,
    "data.phantom_normal": 60,
    "data.phantom_anomalous": 10,
    "model.latent": 16,
    "model.widths": (8, 16),
    "batch_size": 16,
    "checkpoint.every": 1,
}
SMALL_BIGAN = SMALL | {
    "data.image_size": 16,
    "model.widths": (4,),  # several networks of one stage take as long to trace as a CAE of two
    "model.discriminator_widths": (4,),
    "model.discriminator_hidden": 16,
    "phases.phase1.epochs": 3,
    "phases.phase2.epochs": 3,
}
TINY_FCAE = {
    "data.image_size": 16,
    "data.phantom_normal": 40,
    "data.phantom_anomalous": 6,
    "model.hidden": (8, 4),
    "batch_size": 16,
    "checkpoint.every": 1,
    "phases.phase1.epochs": 4,
}


def configured(module, argument, fields):
    """Returns the config of a config module with fields set by dotted name."""
    config = module.get_config(argument)
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(fields)
    return config


def write_config_of_run(parent, dataset="phantom"):
    """Writes the config of a CAE's run, without the run, and returns its folder."""
    from bigan_jax.configs import cae

    (folder := parent / "run").mkdir()
    (folder / "config.json").write_text(json.dumps({"format": 4, **cae.get_config(dataset).to_dict()}))
    return folder


def flags(fields):
    """Returns the command-line flags that set config fields."""
    return [f"--config.{name}={value}" for name, value in fields.items()]


def command(arguments):
    """Returns the command line of launch.py with some arguments."""
    return [sys.executable, "launch.py", *map(str, arguments)]


def environment():
    """Returns the environment without the tests' XLA flags: one CPU device."""
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def launch(*arguments, check=True):
    """Runs launch.py as a user does, on one CPU device."""
    return subprocess.run(command(arguments), cwd=ROOT, env=environment(), capture_output=True, text=True, check=check)
