"""When numbers go wrong: which step was the first whose loss or weights are not finite, by whose
move, on which pictures; and how often a run may go back and try more slowly."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bigan_jax.detector import TrainState
from bigan_jax.errors import UserError, printable, unknown_name
from bigan_jax.training import epoch_runner
from bigan_jax.training.epoch_runner import EpochRunner
from bigan_jax.training.saving.progress import Progress

POLICIES = ("stop", "rollback")
MOST_ROLLBACKS = 3
_NAMED = 5  # pictures in a message; the file has all


class Divergence(NamedTuple):
    """Where training diverged."""

    epoch: int  # from 1
    step: int  # of the epoch, from 1
    objective: str  # whose loss or update was the first; "" where that could not be told
    loss: float  # its loss in this step
    networks: list[str]  # whose parameters or statistics are not finite after its update
    pictures: list[str]  # of the step's batch

    def sentence(self) -> str:
        """The finding in words."""
        if not self.objective:  # by the last update before
            lost = ", ".join(self.networks)
            return f"Training diverged before epoch {self.epoch}: {lost} are not finite."
        where = f"Training diverged in epoch {self.epoch}, step {self.step}"
        named = ", ".join(map(printable, self.pictures[:_NAMED]))
        others = len(self.pictures) - _NAMED
        more = f" and {others} more" if others > 0 else ""
        lost = ", ".join(self.networks) or "none"
        return (
            f"{where}: the loss of {self.objective} is {self.loss:.4g}; networks whose parameters "
            f"are not finite after its update: {lost}. Its pictures: {named}{more}."
        )

    def as_dict(self) -> dict:
        """The content of nan.json; a loss that is no number is its name, which JSON can hold."""
        return {**self._asdict(), "loss": str(self.loss), "message": self.sentence()}


def validate_policy(name: str) -> None:
    """Raises UserError for a policy that there is not."""
    if name not in POLICIES:
        raise unknown_name("config.on_nan", name, POLICIES)


def roll_back(
    finding: Divergence, rollbacks: Sequence[Mapping], policy: str, to: Progress
) -> Progress:
    """The progress to go on from, with one rollback more than there were.

    Raises UserError where the policy is to stop, or where there were enough.
    """
    told = f"{finding.sentence()} nan.json has them all. What was saved after {to.describe()} stays"
    if policy == "stop":
        whose = f"config.optimizers.{finding.objective}.learning_rate"
        raise UserError(
            f"{told}. Start in another --workdir with a lower "
            f"{whose if finding.objective else 'learning rate (config.optimizers)'}, or go on from "
            "there with --config.on_nan=rollback, which halves the learning rates."
        )
    if len(rollbacks) >= MOST_ROLLBACKS:
        raise UserError(
            f"{told}, and it went back {len(rollbacks)} times: start in another --workdir with "
            "lower learning rates."
        )
    this = {"epoch": finding.epoch, "step": finding.step, "objective": finding.objective}
    return to._replace(rollbacks=[*rollbacks, {**this, "back_to": to.epochs}])


def rate_scale(rollbacks: Sequence[Mapping]) -> float:
    """What learning rates are multiplied by after these rollbacks."""
    return 0.5 ** len(rollbacks)


def losses_are_finite(logs: Mapping[str, Sequence[float]]) -> bool:
    """Whether every loss among the logs of some steps is finite."""
    return all(np.isfinite(v).all() for name, v in logs.items() if name.endswith("/loss"))


def nonfinite_networks(state: TrainState) -> list[str]:
    """The networks with a parameter or statistic that is not finite, of one device's state."""
    return [name for name, finite in jax.device_get(finite_networks(state)).items() if not finite]


@jax.jit
def finite_networks(state: TrainState) -> dict[str, Bool[Array, ""]]:
    """Whether all parameters and statistics are finite, by network, of one device's state; it is
    not waited for."""

    def all_finite(*trees):
        leaves = [x for x in jax.tree.leaves(trees) if jnp.issubdtype(x.dtype, jnp.inexact)]
        return jnp.all(jnp.array([jnp.isfinite(x).all() for x in leaves]))

    return {
        name: all_finite(state.params[name], state.collections[name], state.average.get(name, {}))
        for name in state.params
    }


def locate(
    make_runner: Callable[..., EpochRunner],
    start: TrainState,
    due: tuple[str, ...],
    order: Int[np.ndarray, "steps batch"],
    paths: Sequence[str],
    progress: Progress,
    logs: Mapping[str, Float[np.ndarray, "done"]],
    state: TrainState,
) -> Divergence:
    """Takes the steps of an epoch again, update by update, until something is not finite.

    start: replicated, before the first of these steps; it is used up. order: theirs.
    paths: of all training pictures. progress: before these steps.
    logs: of these steps, when they were taken first. state: after them or later, on one device.
    """
    epoch, step = progress.epochs + 1, progress.step + 1
    if lost := nonfinite_networks(epoch_runner.first(start)):
        return Divergence(epoch, step, "", math.nan, lost, [])
    for at, name, moved, seen in make_runner(scanned=False).updates(start, due, order):
        loss, lost = (
            float(np.ravel(seen[f"{name}/loss"])[0]),
            nonfinite_networks(epoch_runner.first(moved)),
        )
        if lost or not math.isfinite(loss):
            batch = [str(paths[i]) for i in order[at]]
            return Divergence(epoch, step + at, name, loss, lost, batch)
    # Where the device does not add in the same order each time, what was seen has to do.
    losses = {name: np.isfinite(v) for name, v in logs.items() if name.endswith("/loss")}
    bad = {name: int(np.argmin(fine)) for name, fine in losses.items() if not fine.all()}
    first = min(bad, key=bad.get, default="/loss")
    at = bad.get(first, len(order) - 1)
    batch = [str(paths[i]) for i in order[at]]
    name = first.removesuffix("/loss")
    return Divergence(epoch, step + at, name, math.nan, nonfinite_networks(state), batch)
