"""Divergence: which step first had a value that is not finite, and how a run rolls back from it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from bigan_jax.detector import TrainState
from bigan_jax.errors import UserError, printable, unknown_name
from bigan_jax.training import device_layout
from bigan_jax.training.epoch_runner import EpochRunner
from bigan_jax.training.saving.progress import Progress

POLICIES = ("stop", "rollback")
MAX_ROLLBACKS = 3
_IMAGES_IN_MESSAGE = 5  # nan.json lists all


class Divergence(NamedTuple):
    """Where training diverged."""

    epoch: int  # from 1
    step: int  # of the epoch, from 1
    objective: str  # the one with the first loss or update that is not finite; "" if unknown
    loss: float  # its loss in this step
    networks: list[str]  # those with values that are not finite after its update
    images: list[str]  # paths of the images of the step's batch

    def message(self) -> str:
        """Describes the divergence in one or two sentences."""
        networks = ", ".join(self.networks)
        if not self.objective:  # the last update before these steps did it
            return f"Training diverged before epoch {self.epoch}: the values of {networks} are not finite."
        images = ", ".join(map(printable, self.images[:_IMAGES_IN_MESSAGE]))
        others = len(self.images) - _IMAGES_IN_MESSAGE
        more = f" and {others} more" if others > 0 else ""
        return (
            f"Training diverged in epoch {self.epoch}, step {self.step}: the loss of {self.objective} is "
            f"{self.loss:.4g}; networks with values that are not finite after its update: {networks or 'none'}. "
            f"Images of this step: {images}{more}."
        )

    def as_dict(self) -> dict:
        """Returns the content of nan.json; the loss is a string, as JSON has no NaN."""
        return {**self._asdict(), "loss": str(self.loss), "message": self.message()}


def validate_policy(name: str) -> None:
    """Raises UserError for an unknown policy."""
    if name not in POLICIES:
        raise unknown_name("config.on_nan", name, POLICIES)


def roll_back(divergence: Divergence, rollbacks: Sequence[Mapping], policy: str, restored: Progress) -> Progress:
    """Returns the progress to resume from: that of the latest checkpoint, with one more than the earlier rollbacks.

    Raises:
      UserError: the policy is "stop", or the run has been rolled back MAX_ROLLBACKS times.
    """
    problem = f"{divergence.message()} nan.json lists all of them. The checkpoint after {restored.describe()} is kept"
    if policy == "stop":
        name = divergence.objective
        rate = f"config.optimizers.{name}.learning_rate" if name else "learning rate (config.optimizers)"
        raise UserError(
            f"{problem}. Start again in another --workdir with a lower {rate}, or resume from the checkpoint with "
            "--config.on_nan=rollback, which halves the learning rates."
        )
    if len(rollbacks) >= MAX_ROLLBACKS:
        raise UserError(
            f"{problem}, but the run was already rolled back {len(rollbacks)} times. Start again in another --workdir "
            "with lower learning rates."
        )
    epoch, step, objective, *_ = divergence
    rollback = {"epoch": epoch, "step": step, "objective": objective, "rolled_back_to": restored.epochs}
    return restored._replace(rollbacks=[*rollbacks, rollback])


def rate_scale(rollbacks: Sequence[Mapping]) -> float:
    """Returns the factor of the learning rates after these rollbacks: each halves them."""
    return 0.5 ** len(rollbacks)


def losses_are_finite(logs: Mapping[str, Float[Array | np.ndarray, "..."]]) -> bool:
    """Returns whether every loss among the logs is finite."""
    return all(np.isfinite(v).all() for name, v in logs.items() if name.endswith("/loss"))


def nonfinite_networks(state: TrainState) -> list[str]:
    """Returns the networks with a parameter or statistic that is not finite; the state is on one device."""
    return [name for name, finite in jax.device_get(finite_networks(state)).items() if not finite]


@jax.jit
def finite_networks(state: TrainState) -> dict[str, Bool[Array, ""]]:
    """Returns, by network, whether all parameters and statistics are finite, without waiting."""

    def all_finite(*trees):
        leaves = [x for x in jax.tree.leaves(trees) if jnp.issubdtype(x.dtype, jnp.inexact)]
        return jnp.all(jnp.array([jnp.isfinite(x).all() for x in leaves]))

    return {
        name: all_finite(state.params[name], state.collections[name], state.average.get(name, {}))
        for name in state.params
    }


def locate(
    make_runner: Callable[..., EpochRunner],
    initial_state: TrainState,
    objectives: tuple[str, ...],
    indices: Int[np.ndarray, "steps batch"],
    paths: Shaped[np.ndarray, "n"],
    progress: Progress,
    logs: Mapping[str, Float[np.ndarray, "done"]],
    state: TrainState,
) -> Divergence:
    """Repeats the steps of an epoch update by update until a value is not finite.

    Args:
      make_runner: from `scanned` to a runner.
      initial_state: the replicated state before these steps; its memory is donated.
      paths: those of all training images.
      progress: that before these steps.
      logs: those of these steps, when they were first taken. They locate the divergence if it does not occur again,
        on a device that does not add in the same order each time.
      state: the state after these steps or later, on one device.
    """
    epoch, first_step = progress.epochs + 1, progress.step + 1
    if networks := nonfinite_networks(device_layout.first(initial_state)):
        return Divergence(epoch, first_step, "", math.nan, networks, [])

    def divergence_at(step, objective, loss, networks):
        images = [str(paths[i]) for i in indices[step]]
        return Divergence(epoch, first_step + step, objective, loss, networks, images)

    runner = make_runner(scanned=False)
    for step, objective, new_state, update_logs in runner.step_by_step(initial_state, objectives, indices):
        loss = float(np.ravel(update_logs[f"{objective}/loss"])[0])
        networks = nonfinite_networks(device_layout.first(new_state))
        if networks or not math.isfinite(loss):
            return divergence_at(step, objective, loss, networks)
    finite = {name: np.isfinite(v) for name, v in logs.items() if name.endswith("/loss")}
    first_bad = {name: int(np.argmin(steps)) for name, steps in finite.items() if not steps.all()}
    name = min(first_bad, key=lambda name: first_bad[name], default="/loss")
    step = first_bad.get(name, len(indices) - 1)
    return divergence_at(step, name.removesuffix("/loss"), math.nan, nonfinite_networks(state))
