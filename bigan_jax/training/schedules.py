"""The training schedule: which objectives are updated in which epoch, and their learning rates.

The active objectives are a function of the epoch alone, so that a resumed run continues as if it had never stopped.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import optax

from bigan_jax.errors import UserError, unknown_name
from bigan_jax.validation import DECAY, POSITIVE, require


class UpdateFrequency(NamedTuple):
    """How often an objective is updated.

    Attributes:
      every: the objective is active in every `every`-th epoch of its phase, from the first.
      times: its number of updates in each step of such an epoch.
    """

    every: int = 1
    times: int = 1


class Phase(NamedTuple):
    """A part of the schedule with one set of objectives.

    Attributes:
      name: its name in `config.phases`.
      epochs: its number of epochs.
      objectives: update frequency of each objective, in the order of the updates of a step.
    """

    name: str
    epochs: int
    objectives: dict[str, UpdateFrequency]


class ScheduledEpoch(NamedTuple):
    """An epoch's position in the schedule.

    Attributes:
      phase: its phase.
      phase_index: index of the phase, from 0.
      epoch: the epoch within the phase, from 0.
    """

    phase: Phase
    phase_index: int
    epoch: int


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
    """Returns the position of an epoch, counted from 0 over all phases.

    Raises:
      IndexError: the schedule has fewer epochs.
    """
    for index, phase in enumerate(phases):
        if epoch < phase.epochs:
            return ScheduledEpoch(phase, index, epoch)
        epoch -= phase.epochs
    raise IndexError("the schedule has ended")


def active_objectives(position: ScheduledEpoch) -> tuple[str, ...]:
    """Returns the objective of each update of a step of this epoch, in order.

    An objective is listed once for each of its updates.
    """
    return tuple(
        name
        for name, frequency in position.phase.objectives.items()
        if position.epoch % frequency.every == 0
        for _ in range(frequency.times)
    )


def updates_by_phase(phases: Iterable[Phase], objective: str, steps_per_epoch: int) -> list[int]:
    """Returns the number of an objective's updates in each phase."""
    counts = []
    for phase in phases:
        frequency = phase.objectives.get(objective, UpdateFrequency(times=0))
        active_epochs = -(-phase.epochs // frequency.every)
        counts.append(active_epochs * frequency.times * steps_per_epoch)
    return counts


@dataclass(frozen=True)
class OptimizerSettings:
    """The validated fields of `config.optimizers.<objective>`.

    Attributes:
      learning_rate: the constant learning rate, or the peak of the cycle.
      b1, b2: Adam's decay rates.
      rate: "constant"; or "one_cycle" (Smith and Topin 2018): in each phase the rate rises linearly from
        learning_rate / 25 to learning_rate over the first 30 % of the updates, then falls to zero along a cosine.
      objective: the objective, for messages.

    Raises:
      UserError: a value is out of range, or the schedule is unknown.
    """

    learning_rate: float
    b1: float = 0.9
    b2: float = 0.999
    rate: str = "constant"
    objective: str = "*"

    def __post_init__(self):
        require(f"optimizers.{self.objective}.learning_rate", self.learning_rate, POSITIVE)
        require(f"optimizers.{self.objective}.b1", self.b1, DECAY)
        require(f"optimizers.{self.objective}.b2", self.b2, DECAY)
        if self.rate not in ("constant", "one_cycle"):
            raise unknown_name("rate of an optimizer", self.rate, ["constant", "one_cycle"])


def make_optimizer(updates: list[int], settings: OptimizerSettings, scale: float = 1.0) -> optax.GradientTransformation:
    """Returns Adam (Kingma and Ba 2015) with the settings' learning rate schedule.

    Args:
      updates: the objective's number of updates in each phase.
      settings: learning rate, decay rates and learning rate schedule.
      scale: factor of the learning rate.
    """
    learning_rate = settings.learning_rate * scale
    if settings.rate == "constant":
        return optax.adam(learning_rate, settings.b1, settings.b2)
    counts = [n for n in updates if n] or [1]
    cycles = [_one_cycle(n, learning_rate) for n in counts]
    ends = [sum(counts[: i + 1]) for i in range(len(counts) - 1)]
    return optax.adam(optax.join_schedules(cycles, ends), settings.b1, settings.b2)


def _one_cycle(updates, peak):
    rise = max(1, round(0.3 * updates))
    return optax.warmup_cosine_decay_schedule(peak / 25, peak, rise, max(updates, rise + 1))
