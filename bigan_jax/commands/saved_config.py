"""A config file like those in configs/ whose argument is a run's folder: `saved_config.py:runs/cae-phantom-seed0`."""

from pathlib import Path

from ml_collections import ConfigDict

from bigan_jax.errors import UserError
from bigan_jax.runtime.run_config import read_config


def get_config(workdir: str | None) -> ConfigDict:
    """Returns the config of a run, or of one of the seeds in the folder; raises UserError if there is none."""
    if not workdir:
        raise UserError("The folder of a run is missing.")
    folders = [Path(workdir), *sorted(Path(workdir).glob("seed*/"))]
    return read_config(next((folder for folder in folders if (folder / "config.json").exists()), folders[0]))
