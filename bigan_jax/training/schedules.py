"""The training schedule: which objectives are updated in which epoch, and their learning rates.

The active objectives are a function of the epoch alone, so that a resumed run continues as if it had never stopped.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import optax

from bigan_jax.errors import UserError, unknown_name
from bigan_jax.value_checks import DECAY, POSITIVE, require


class UpdateFrequency(NamedTuple):
    """How often an objective is updated."""

    every: int = 1  # the objective is active in every `every`-th epoch of its phase, from the first
    times: int = 1  # its number of updates in each step of such an epoch


class Phase(NamedTuple):
    """A part of the schedule with one set of objectives."""

    name: str
    epochs: int
    objectives: dict[str, UpdateFrequency]  # in the order of the updates of a step


class ScheduledEpoch(NamedTuple):
    """An epoch's position in the schedule."""

    phase: Phase
    epoch: int  # within the phase, from 0


def parse_phases(phases: Mapping[str, Mapping], objectives: Iterable[str]) -> tuple[Phase, ...]:
    """Returns the phases of a config, in the order of their names.

    Args:
      phases: {name: {epochs, objectives: {name: {every, times}}}}; an objective with `times` of 0 is not updated.
      objectives: those of the detector, in the order of the updates of a step.

    Raises:
      UserError: an objective is unknown, or a number is out of range.
    """
    parsed = []
    for name, phase in sorted(phases.items()):
        for objective in set(phase["objectives"]) - set(objectives):
            raise unknown_name(f"objective in config.phases.{name}.objectives", objective, objectives)
        frequencies = {n: UpdateFrequency(**phase["objectives"][n]) for n in objectives if n in phase["objectives"]}
        if phase["epochs"] < 0 or any(f.every < 1 or f.times < 0 for f in frequencies.values()):
            raise UserError(f"config.phases.{name}: epochs and times must be at least 0, every at least 1")
        parsed.append(Phase(name, phase["epochs"], frequencies))
    return tuple(parsed)


def total_epochs(phases: Iterable[Phase]) -> int:
    """Returns the number of epochs of the schedule."""
    return sum(phase.epochs for phase in phases)


def schedule_at(phases: Iterable[Phase], epoch: int) -> ScheduledEpoch:
    """Returns the position of an epoch, counted from 0 over all phases; raises IndexError after the last."""
    for phase in phases:
        if epoch < phase.epochs:
            return ScheduledEpoch(phase, epoch)
        epoch -= phase.epochs
    raise IndexError("the schedule has ended")


def active_objectives(position: ScheduledEpoch) -> tuple[str, ...]:
    """Returns the objective of each update of a step of this epoch, in order."""
    return tuple(
        name
        for name, frequency in position.phase.objectives.items()
        if position.epoch % frequency.every == 0
        for _ in range(frequency.times)
    )


def updates_by_phase(phases: Iterable[Phase], objective: str, steps_per_epoch: int) -> list[int]:
    """Returns the number of an objective's updates in each phase."""
    never = UpdateFrequency(times=0)
    frequencies = [(phase.epochs, phase.objectives.get(objective, never)) for phase in phases]
    return [-(-epochs // every) * times * steps_per_epoch for epochs, (every, times) in frequencies]


@dataclass(frozen=True)
class OptimizerSettings:
    """The validated fields of `config.optimizers.<objective>`; raises UserError for one out of range.

    With the rate "one_cycle" (Smith and Topin 2018), in each phase the rate rises linearly from learning_rate / 25 to
    learning_rate over the first 30 % of the updates, then falls to zero along a cosine.
    """

    learning_rate: float  # constant, or the peak of the cycle
    b1: float = 0.9  # decay rates of Adam
    b2: float = 0.999
    rate: str = "constant"  # or "one_cycle"
    objective: str = "*"  # for messages

    def __post_init__(self):
        for name, allowed in (("learning_rate", POSITIVE), ("b1", DECAY), ("b2", DECAY)):
            require(f"optimizers.{self.objective}.{name}", getattr(self, name), allowed)
        if self.rate not in ("constant", "one_cycle"):
            raise unknown_name("rate of an optimizer", self.rate, ["constant", "one_cycle"])


def make_optimizer(
    updates: Sequence[int], settings: OptimizerSettings, scale: float = 1.0
) -> optax.GradientTransformation:
    """Returns Adam (Kingma and Ba 2015) for a number of updates in each phase.

    The settings' learning rate is multiplied by `scale`.
    """
    learning_rate = settings.learning_rate * scale
    if settings.rate == "one_cycle":
        counts = [n for n in updates if n] or [1]
        cycles = [_one_cycle(n, learning_rate) for n in counts]
        learning_rate = optax.join_schedules(cycles, list(accumulate(counts[:-1])))
    return optax.adam(learning_rate, settings.b1, settings.b2)


def _one_cycle(updates, peak):
    rise = max(1, round(0.3 * updates))
    return optax.warmup_cosine_decay_schedule(peak / 25, peak, rise, max(updates, rise + 1))
