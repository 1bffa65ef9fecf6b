"""Runs a detector's search before it scores: many small steps for each picture of a batch at once.

On an accelerator the steps are one scanned program. On a CPU they are looped over on the host,
since XLA:CPU runs convolutions inside a loop up to 27 times slower than outside.
"""

from collections.abc import Callable, Mapping

import jax
from jax import lax
from jaxtyping import Array, Key

from bigan_jax.detector import Batch, Detector, TrainState, Variables, inference_net


class LatentSearcher:
    """Finds what `Detector.search` looks for; steps: how many it takes, 0 where there is none."""

    def __init__(self, detector: Detector, scanned: bool | None = None):
        """scanned: all steps as one program; by default wherever that is not slower."""
        self._scanned = jax.default_backend() != "cpu" if scanned is None else scanned
        self.steps = detector.search.steps if detector.search else 0

        def start(state, frozen, batch, keys):
            return detector.search.start(inference_net(detector, state, frozen), batch, keys)

        def step(state, frozen, batch, found):
            return detector.search.step(inference_net(detector, state, frozen), batch, found)

        def run(state, frozen, batch, keys):
            return lax.scan(
                lambda found, _: (step(state, frozen, batch, found), None),
                start(state, frozen, batch, keys),
                length=self.steps,
            )[0]

        self._start, self._run = jax.jit(start), jax.jit(run)
        self._step = jax.jit(step, donate_argnums=3)

    def __call__(
        self,
        state: TrainState,
        frozen: Mapping[str, Variables],
        batch: Batch,
        keys: Key[Array, "b"],
        on_steps: Callable[[int], object] = lambda steps: None,
    ) -> Batch:
        """The batch with what was found for it; as it came where there is nothing to search.

        batch: pictures in [0, 1]. keys: one a picture, for where its search starts.
        on_steps: told each time how many more steps are done.
        """
        if not self.steps:
            return batch
        if self._scanned:
            found = jax.block_until_ready(self._run(state, frozen, batch, keys))
            on_steps(self.steps)
            return batch._replace(latent=found)
        found = self._start(state, frozen, batch, keys)
        for _ in range(self.steps):
            found = jax.block_until_ready(self._step(state, frozen, batch, found))
            on_steps(1)
        return batch._replace(latent=found)
