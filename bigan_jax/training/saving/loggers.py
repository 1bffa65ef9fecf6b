"""Loggers of a training's curves: the protocol, and the adapters that `config.loggers` names.

Further loggers are entries of LOGGERS (docs/how-to/extend.md).
"""

import importlib.util
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bigan_jax.errors import UserError, one_line, unknown_name
from bigan_jax.runtime.files import read_bounded, write_atomic
from bigan_jax.runtime.run_config import flatten
from bigan_jax.training.saving.tensorboard import TensorBoardWriter

DEFAULT_LOGGERS = ("tensorboard",)
PROJECT = "bigan_jax"  # of W&B, and the experiment of MLflow, unless their environment variables name another one
_MAX_CONFIG_BYTES = 4 * 2**20
_MAX_ID_BYTES = 200


@runtime_checkable
class MetricLogger(Protocol):
    """Receives the scalars of each finished epoch: losses, norms, seconds."""

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Logs the values of an epoch, counted from 1. A resumed run may log an epoch again."""
        ...

    def close(self) -> None:
        """Ends the log, also after an error."""
        ...


class WandbLogger:
    """Logs to Weights & Biases, as the environment says (WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY).

    The run has the name of the folder, where wandb.id has its id: a resumed training continues it.
    """

    def __init__(self, workdir: Path, first_epoch: int):
        """Starts or resumes the run. Raises UserError if W&B refuses, as without a login."""
        import wandb  # pyright: ignore[reportMissingImports]  # an extra

        id_file = workdir / "wandb.id"
        run_id = _read_id(id_file) or secrets.token_hex(4)
        settings: dict[str, Any] = {"project": os.environ.get("WANDB_PROJECT") or PROJECT, "name": workdir.name}
        try:
            self._run = wandb.init(
                **settings, dir=workdir, id=run_id, resume="allow", config=_config(workdir), reinit="create_new"
            )
        except Exception as error:  # of its own types, which depend on the version
            raise _refused("wandb", error, "Log in with `wandb login`, or set WANDB_MODE=offline.") from error
        # Epochs, in place of W&B's own steps, which may not be logged again.
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        write_atomic(id_file, run_id)

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Logs the values of an epoch; W&B sends them in the background."""
        self._run.log({**values, "epoch": epoch})

    def close(self) -> None:
        """Finishes the run; waits until it is sent."""
        self._run.finish()


class MlflowLogger:
    """Logs to MLflow, as the environment says (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME).

    The run has the name of the folder, where mlflow.id has its id: a resumed training continues it.
    """

    def __init__(self, workdir: Path, first_epoch: int):
        """Starts or resumes the run. Raises UserError if the tracking server or store cannot be used."""
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]  # an extra

        id_file = workdir / "mlflow.id"
        try:
            self._client = MlflowClient()
            self._id = _read_id(id_file) or self._create_run(workdir)
            self._client.update_run(self._id, status="RUNNING")
        except Exception as error:  # of its own types, or of its store
            raise _refused("mlflow", error, "Set MLFLOW_TRACKING_URI to a server or folder.") from error
        write_atomic(id_file, self._id)

    def _create_run(self, workdir):
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_id = self._client.create_run(number, run_name=workdir.name).info.run_id
        for field, value in flatten(_config(workdir)).items():
            self._client.log_param(run_id, field, str(value)[:500])  # the limit of some stores
        return run_id

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Logs the values of an epoch. Raises UserError if they cannot be stored."""
        try:
            for name, value in values.items():
                self._client.log_metric(self._id, name, value, step=epoch)
        except Exception as error:
            raise _refused("mlflow", error, "The training resumes with the same command.") from error

    def close(self) -> None:
        """Marks the run as finished; also after an error, since a resumed training continues it."""
        try:
            self._client.set_terminated(self._id)
        except Exception as error:
            raise _refused("mlflow", error, "The training resumes with the same command.") from error


# Each makes a logger from the run's folder and the first epoch that it will get.
LOGGERS: dict[str, Callable[[Path, int], MetricLogger]] = {
    "tensorboard": lambda workdir, first_epoch: TensorBoardWriter(workdir / "events", first_epoch),
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}  # of loggers that are extras


def parse_loggers(names: str) -> tuple[str, ...]:
    """Returns the names in a comma list, each once. Raises UserError if one is not in LOGGERS."""
    parsed = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in parsed:
        if name not in LOGGERS:
            raise unknown_name("config.loggers", name, LOGGERS)
    return parsed


def require_installed(names: Iterable[str]) -> None:
    """Raises UserError if the package of a logger is not installed; it is not imported."""
    for name in names:
        if name in _PACKAGES and importlib.util.find_spec(name) is None:
            raise UserError(
                f"config.loggers={name} requires the package {_PACKAGES[name]}, which is not installed: "
                f"pip install '.[{name}]'."
            )


def open_logger(name: str, workdir: Path, first_epoch: int) -> MetricLogger:
    """Returns the logger of that name. Raises UserError if it cannot be opened."""
    return LOGGERS[name](workdir, first_epoch)


def _read_id(file: Path) -> str:
    return read_bounded(file, _MAX_ID_BYTES).decode("ascii", "replace") if file.exists() else ""


def _config(workdir: Path) -> dict:
    file = workdir / "config.json"
    return json.loads(read_bounded(file, _MAX_CONFIG_BYTES)) if file.exists() else {}


def _refused(name, error, remedy) -> UserError:
    reason = one_line(error, 300)
    return UserError(f"config.loggers={name}: {reason or type(error).__name__}. {remedy}")
