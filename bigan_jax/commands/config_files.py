"""Config files: those that are installed, by name (`cae:folder,quick`), and those of users (`my_config.py:folder`)."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bigan_jax.configs import common  # pyright: ignore[reportMissingImports]  # the folder configs/
from bigan_jax.errors import UserError, unknown_name

_INSTALLED = Path(common.__file__).parent
_NOT_MODELS = ("__init__", "common")
_COMMENT = re.compile(r"^ +config\.([\w.]+) = [^#\n]+  # (.+)$", re.MULTILINE)


def find(folder: Path | None = None) -> dict[str, Path]:
    """Returns the config files of a folder by the name of the model; by default those that are installed."""
    files = sorted((folder or _INSTALLED).glob("*.py"))
    return {path.stem: path for path in files if path.stem not in _NOT_MODELS}


def resolve(name: str) -> str:
    """Returns a config as launch.py takes it, "FILE:ARGUMENT".

    Args:
      name: "MODEL" or "FILE", followed by ":DATASET[,quick][,ABLATION...]" or nothing. MODEL is an installed config,
        FILE a Python file that has a function `get_config`.

    Raises:
      UserError: there is no such config. The argument is not checked.
    """
    model, colon, argument = name.partition(":")
    if model.endswith(".py"):
        path = Path(model).expanduser()
        if load(str(path)) is None:
            raise UserError(f"{model} is no config: there is no such file with a function get_config.")
    else:
        files = find()
        if model not in files:
            if Path(f"{model}.py").is_file():
                raise UserError(f"unknown config {model!r}. Did you mean '{model}.py{colon}{argument}'?")
            raise unknown_name("config", model, files, model.lower())
        path = files[model]
    return f"{path}{colon}{argument}"


def load(file: str) -> Callable[[str | None], ConfigDict] | None:
    """Returns the function `get_config` of a file; None if there is no such file or function."""
    return runpy.run_path(file).get("get_config") if Path(file).is_file() else None


def field_comments() -> dict[str, str]:
    """Returns the comments of configs/common.py, which describe the fields, by the field's dotted name."""
    source = Path(common.__file__).read_text(encoding="utf-8")
    return dict(_COMMENT.findall(source))


def complete(prefix: str, **_: Any) -> list[str]:
    """Returns the configs that the shell offers for what was typed so far: models, then datasets, then ablations."""
    model, colon, argument = prefix.partition(":")
    if not colon:
        return [f"{name}:" for name in [*find(), *(path.name for path in Path().glob("*.py"))]]
    done, comma, _last = argument.rpartition(",")
    modifiers = [common.QUICK, *runpy.run_path(resolve(model)).get("ABLATIONS", {})]
    return [f"{model}:{done}{comma}{name}" for name in (modifiers if comma else common.DATASETS)]
