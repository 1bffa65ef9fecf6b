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
    """Finds the latent codes of a batch by `Detector.search`.

    Attributes:
      steps: the number of steps of a search; 0 if the detector has none.
    """

    def __init__(self, detector: Detector, scanned: bool | None = None):
        """Compiles nothing yet.

        Args:
          detector: the model.
          scanned: whether all steps are one program; by default, everywhere but on a CPU.
        """
        self._scanned = jax.default_backend() != "cpu" if scanned is None else scanned
        self.steps = detector.search.steps if detector.search else 0

        def start(state, frozen, batch, keys):
            return detector.search.start(inference_net(detector, state, frozen), batch, keys)

        def step(state, frozen, batch, latent):
            return detector.search.step(inference_net(detector, state, frozen), batch, latent)

        def run(state, frozen, batch, keys):
            return lax.scan(
                lambda latent, _: (step(state, frozen, batch, latent), None),
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
        """Returns the batch with its latent codes; unchanged if the detector has no search.

        Args:
          state: the trained state.
          frozen: variables of networks that are not trained.
          batch: images in [0, 1].
          keys: one per image, for the start of its search.
          on_steps: called with the number of steps done since its last call.
        """
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
