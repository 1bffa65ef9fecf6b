"""The command `bigan-jax models`: what each model is, and when to use which.

Both are in the model's config file: the first line of its docstring, and USE. Nothing is imported but configs.
"""

import argparse
import runpy
import shutil
import textwrap
from pathlib import Path
from typing import NamedTuple

from bigan_jax.commands import config_files
from bigan_jax.configs import common  # pyright: ignore[reportMissingImports]  # the folder configs/

_MAX_WIDTH = 110


class Model(NamedTuple):
    """What a config file says about its model."""

    name: str
    summary: str
    use: str
    ablations: tuple[str, ...]


def read_model(name: str, file: Path) -> Model:
    """Returns what the config file of a model says about it."""
    content = runpy.run_path(str(file))
    summary = (content["__doc__"] or "").strip().partition("\n")[0]
    return Model(name, summary, content.get("USE", ""), tuple(content.get("ABLATIONS", ())))


def run(_: argparse.Namespace) -> None:
    """Prints the models, the datasets, and an example."""
    models = [read_model(*item) for item in config_files.find().items()]
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)
    indent = 2 + max(len(model.name) for model in models)
    for model in models:
        texts = {model.name: model.summary, "use": model.use, "ablations": ", ".join(model.ablations)}
        for label, text in texts.items():
            first = label.ljust(indent) if label == model.name else f"{'':{indent}}{label.capitalize()}: "
            if text:
                print(textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * indent))
    print(f"\nDatasets: {', '.join(common.DATASETS)}. A config is MODEL:DATASET[,quick][,ABLATION...], such as")
    print("  bigan-jax train cae:folder,quick --data.dir=DIR")
