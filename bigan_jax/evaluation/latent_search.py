"""Runs the latent search of a detector, such as AnoGAN's: many small steps for each image.

On an accelerator, all steps are one scanned program. On a CPU, the host loops over the steps, since XLA:CPU runs
convolutions inside a loop up to 27 times slower than outside.
"""

from collections.abc import Callable, Mapping

import jax
from jax import lax
from jaxtyping import Array, Key

from bigan_jax.detector import Batch, Detector, TrainState, Variables, inference_net


class LatentSearcher:
    """Finds the latent codes of a batch by `Detector.search`."""

    def __init__(self, detector: Detector, scanned: bool | None = None):
        """Compiles nothing yet; `scanned` makes all steps one program, by default everywhere but on a CPU."""
        self._scanned = jax.default_backend() != "cpu" if scanned is None else scanned
        self.steps = 0
        if (search := detector.search) is None:
            return
        self.steps = search.steps  # of a search; 0 without one

        def start(state, frozen, batch, keys):
            return search.start(inference_net(detector, state, frozen), batch, keys)

        def step(state, frozen, batch, latent):
            return search.step(inference_net(detector, state, frozen), batch, latent)

        def run(state, frozen, batch, keys):
            latent = start(state, frozen, batch, keys)
            return lax.scan(lambda x, _: (step(state, frozen, batch, x), None), latent, length=search.steps)[0]

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
        """Returns the batch with its latent codes, if any; `on_steps` receives the number of new steps."""
        if not self.steps:
            return batch
        if self._scanned:
            latent = jax.block_until_ready(self._run(state, frozen, batch, keys))
            on_steps(self.steps)
            return batch._replace(latent=latent)
        latent = self._start(state, frozen, batch, keys)
        for _ in range(self.steps):
            latent = jax.block_until_ready(self._step(state, frozen, batch, latent))
            on_steps(1)
        return batch._replace(latent=latent)
