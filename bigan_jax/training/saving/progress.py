"""How far a run has come."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bigan_jax.training.saving.train_log import are_rollbacks


class Progress(NamedTuple):
    """What a checkpoint holds beside the state."""

    epochs: int  # done
    step: int = 0  # so many of the next epoch's
    steps: int = 0  # are done as well
    logs: Mapping[str, list[float]] = {}  # their logs, step by step
    seconds: float = 0.0  # that they took
    history: str = ""  # train.jsonl as it was
    rollbacks: Sequence[dict] = ()  # when training diverged, and what epoch it went back to

    def at_step(self, step: int, steps: int) -> "Progress":
        """The same epoch, at its beginning or end, with nothing known of its steps."""
        return self._replace(step=step, steps=steps, logs={}, seconds=0.0)

    def after(self, step: int, logs: Mapping[str, np.ndarray], seconds: float) -> "Progress":
        """The same epoch, up to a later step. logs: of the steps in between."""
        joined = {name: [*self.logs.get(name, []), *new.tolist()] for name, new in logs.items()}
        return self._replace(
            step=step, logs={**self.logs, **joined}, seconds=self.seconds + seconds
        )

    def describe(self) -> str:
        """For people."""
        return f"{self.epochs} epochs" + f" and {self.step} of {self.steps} steps" * bool(self.step)


def validate_types(progress: Progress) -> None:
    """Raises ValueError for values that no run has: a stranger's checksum may be right."""
    fits = all(type(count) is int and count >= 0 for count in progress[:3])
    fits = fits and isinstance(progress.seconds, int | float) and isinstance(progress.history, str)
    logs = progress.logs
    fits = fits and isinstance(logs, dict) and all(isinstance(v, list) for v in logs.values())
    if not fits or not are_rollbacks(progress.rollbacks):
        raise ValueError("its progress is not what a run writes")
