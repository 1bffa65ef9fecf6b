"""Which objective acts when, and how fast: the schedule as data.

What is due is a function of the epoch alone, so a resumed run does as one never stopped.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import optax

from bigan_jax.errors import UserError, unknown_name
from bigan_jax.validation import DECAY, POSITIVE, require


class UpdateFrequency(NamedTuple):
    """How often an objective acts: `times` in each step of every `every`-th epoch of its phase."""

    every: int = 1
    times: int = 1


class Phase(NamedTuple):
    """So many epochs in which these objectives take part."""

    name: str
    epochs: int
    objectives: dict[str, UpdateFrequency]


class ScheduledEpoch(NamedTuple):
    """An epoch's place in the schedule."""

    phase: Phase
    index: int  # of the phase
    epoch: int  # within the phase, from 0


def parse(phases: Mapping[str, Mapping], objectives: Iterable[str]) -> tuple[Phase, ...]:
    """Phases from a config, in the order of their names: {name: {epochs, objectives: {name: {every,
    times}}}}. `times` of 0 leaves an objective out.

    objectives: those of the detector, in the order in which they act.
    Raises UserError for an objective the detector does not have and for negative numbers.
    """
    parsed = []
    for name, phase in sorted(phases.items()):
        for objective in set(phase["objectives"]) - set(objectives):
            raise unknown_name(
                f"objective in config.phases.{name}.objectives", objective, objectives
            )
        turns = {
            n: UpdateFrequency(**phase["objectives"][n])
            for n in objectives
            if n in phase["objectives"]
        }
        if phase["epochs"] < 0 or any(t.every < 1 or t.times < 0 for t in turns.values()):
            raise UserError(
                f"config.phases.{name}: epochs and times must be at least 0, every at least 1"
            )
        parsed.append(Phase(name, phase["epochs"], turns))
    return tuple(parsed)


def total_epochs(phases: Iterable[Phase]) -> int:
    """How many epochs the whole schedule has."""
    return sum(phase.epochs for phase in phases)


def schedule_at(phases: Iterable[Phase], epoch: int) -> ScheduledEpoch:
    """Where the `epoch`-th epoch of the run (from 0) falls."""
    for index, phase in enumerate(phases):
        if epoch < phase.epochs:
            return ScheduledEpoch(phase, index, epoch)
        epoch -= phase.epochs
    raise IndexError("the schedule has ended")


def active_objectives(position: ScheduledEpoch) -> tuple[str, ...]:
    """The updates of each step of this epoch, in order; an objective stands there `times` times."""
    return tuple(
        name
        for name, turn in position.phase.objectives.items()
        if position.epoch % turn.every == 0
        for _ in range(turn.times)
    )


def updates_by_phase(phases: Iterable[Phase], objective: str, steps_per_epoch: int) -> list[int]:
    """How many updates an objective makes in each phase."""
    counts = []
    for phase in phases:
        turn = phase.objectives.get(objective, UpdateFrequency(times=0))
        epochs_due = -(-phase.epochs // turn.every)
        counts.append(epochs_due * turn.times * steps_per_epoch)
    return counts


@dataclass(frozen=True)
class OptimizerSettings:
    """The fields of `config.optimizers.<objective>`, checked.

    Attributes:
      learning_rate: the constant or the highest learning rate.
      b1, b2: Adam's decay rates.
      rate: "constant"; or "one_cycle" (Smith and Topin 2018): in each phase the rate rises to
        learning_rate over the first 30 % of the updates, then falls to zero on a cosine.
      objective: the objective that it updates, for messages.

    Raises:
      UserError: a value is out of range.
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


def make_optimizer(
    updates: list[int], settings: OptimizerSettings, scale: float = 1.0
) -> optax.GradientTransformation:
    """Returns Adam (Kingma and Ba 2015) with the settings' learning rate schedule.

    Args:
      updates: the number of updates in each phase.
      settings: learning rate, decay rates and schedule.
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
