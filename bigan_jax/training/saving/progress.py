"""How far a run has been trained."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bigan_jax.training.saving.train_log import are_rollbacks


class Progress(NamedTuple):
    """The part of a checkpoint that is not the state."""

    epochs: int  # number of complete epochs
    step: int = 0  # number of steps done of the next epoch
    steps: int = 0  # number of steps of that epoch
    logs: Mapping[str, list[float]] = {}  # each log by step, of the steps done of the next epoch
    seconds: float = 0.0  # duration of these steps
    train_log: str = ""  # the text of train.jsonl
    rollbacks: Sequence[dict] = ()  # of each divergence: its epoch, step and objective, and the epoch `rolled_back_to`

    def at_step(self, step: int, steps: int) -> "Progress":
        """Returns the same epoch at a step, without logs."""
        return self._replace(step=step, steps=steps, logs={}, seconds=0.0)

    def after(self, step: int, logs: Mapping[str, Float[np.ndarray, "done"]], seconds: float) -> "Progress":
        """Returns the same epoch after more steps with these logs and duration, up to `step`."""
        joined = {name: [*self.logs.get(name, []), *new.tolist()] for name, new in logs.items()}
        return self._replace(step=step, logs={**self.logs, **joined}, seconds=self.seconds + seconds)

    def describe(self) -> str:
        """Returns the position in words, for messages."""
        return f"{self.epochs} epochs" + f" and {self.step} of {self.steps} steps" * bool(self.step)


def validate_types(progress: Progress) -> None:
    """Raises ValueError for values that no run saves: an untrusted checkpoint may be consistent."""
    valid = (
        all(type(count) is int and count >= 0 for count in progress[:3])
        and isinstance(progress.seconds, int | float)
        and isinstance(progress.train_log, str)
        and isinstance(progress.logs, dict)
        and all(isinstance(values, list) for values in progress.logs.values())
        and are_rollbacks(progress.rollbacks)
    )
    if not valid:
        raise ValueError("its progress is not what a run writes")
