"""A trained detector as a user has it: pictures in, scores and error maps out."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict
from tqdm import tqdm

from bigan_jax import detector as game
from bigan_jax import losses, metrics
from bigan_jax.build import build, picture_shape
from bigan_jax.checkpoint import Checkpoints
from bigan_jax.detector import Batch, Detector, State
from bigan_jax.errors import UserError
from bigan_jax.search import Searcher
from bigan_jax.workdir import read_config, read_evaluation


class Scores(NamedTuple):
    """What a detector says of n pictures, as NumPy arrays."""

    score: Float[np.ndarray, "n"]  # weighted sum of the next two
    mse: Float[np.ndarray, "n"]
    ssim_error: Float[np.ndarray, "n"]
    native: Float[np.ndarray, "n"] | None  # by the model's own paper, where that differs
    reconstruction: UInt8[np.ndarray, "n h w c"]
    squared_error: Float[np.ndarray, "n h w"]  # mean over channels
    ssim_map: Float[np.ndarray, "n h w"]  # 1 - SSIM
    error_map: Float[np.ndarray, "n h w"]  # the last two, combined as the score is


class Scorer:
    """Scores pictures with trained networks in inference mode; no picture affects another's."""

    def __init__(
        self,
        detector: Detector,
        state: State,
        score: ConfigDict,
        shape: tuple[int, int, int],
        batch_size: int = 32,
        threshold: float | None = None,
    ):
        """score: the weights of "mse" and "ssim". shape: of the pictures. threshold: decides."""
        self.weights, self.shape, self.threshold = score, shape, threshold
        self._batch_size = batch_size
        self._variables = (state, dict(detector.frozen))
        self._searcher = Searcher(detector)
        self._run = jax.jit(partial(self._look, detector))

    def score(
        self,
        images: UInt8[np.ndarray, "n h w c"],
        condition: Int[np.ndarray, "n"] | None = None,
        progress: str = "",
    ) -> Scores:
        """Reconstructs and scores pictures.

        images: uint8 of the trained size and channels.
        condition: index of each picture's known kind; the first kind by default.
        progress: the name of a progress bar; none by default.
        Raises UserError when the pictures are of another size or type.
        """
        if not len(images) or images.shape[1:] != self.shape or images.dtype != np.uint8:
            raise UserError(
                f"pictures are {images.dtype} {images.shape}; this detector takes uint8 "
                f"(n, {', '.join(map(str, self.shape))})"
            )
        if condition is None:
            condition = np.zeros(len(images), np.int32)
        size = min(self._batch_size, len(images))
        # The same key for every picture: its place among others has no part in its result.
        keys = jnp.broadcast_to(jax.random.key(self._variables[0].seed), size)
        parts = []
        starts = range(0, len(images), size)
        bar = tqdm(
            total=len(starts) * (self._searcher.steps + 1),
            desc=progress,
            unit="step" if self._searcher.steps else "batch",
            disable=not progress,
            leave=False,
        )
        for start in starts:
            chosen = np.arange(start, start + size).clip(max=len(images) - 1)
            batch = Batch(jnp.asarray(images[chosen]) / 255, condition[chosen])
            batch = self._searcher(*self._variables, batch, keys, bar.update)
            part = self._run(*self._variables, batch, keys)
            wanted = min(size, len(images) - start)
            parts.append(jax.tree.map(lambda x, n=wanted: np.asarray(x)[:n], part))
            bar.update()
        bar.close()
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def decide(self, scores: Scores) -> Bool[np.ndarray, "n"]:
        """True where a picture is anomalous: its score reaches the threshold of the evaluation."""
        return metrics.decide(scores.score, self.threshold)

    def errors(
        self, image: Float[Array, "b h w c"], reconstruction: Float[Array, "b h w c"]
    ) -> dict[str, Float[Array, "b"]]:
        """The common score of any reconstruction, and its two parts; pictures in [0, 1]."""
        mse = losses.mse(image, reconstruction)
        ssim_error = losses.ssim_error(image, reconstruction)
        score = self.weights.mse * mse + self.weights.ssim * ssim_error
        return {"score": score, "mse": mse, "ssim_error": ssim_error}

    def _look(self, detector, state, frozen, batch, keys) -> Scores:
        net = game.inference_net(detector, state, frozen)
        reconstruction = detector.reconstruct(net, batch, keys)
        squared = jnp.square(batch.image - reconstruction).mean(-1)
        ssim_map = losses.ssim_error_map(batch.image, reconstruction)
        native = detector.native_score and detector.native_score(net, batch, keys)
        return Scores(
            **self.errors(batch.image, reconstruction),
            native=native,
            reconstruction=jnp.round(reconstruction * 255).astype(jnp.uint8),
            squared_error=squared,
            ssim_map=ssim_map,
            error_map=self.weights.mse * squared + self.weights.ssim * ssim_map,
        )


def load(workdir: str | Path) -> Scorer:
    """The detector that was trained in a folder, with the threshold of its evaluation.

    Raises UserError when the folder holds no finished run.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    evaluation = read_evaluation(workdir)
    state, detector = restore(config, workdir, len(evaluation["conditions"]))
    return Scorer(
        detector, state, config.score, picture_shape(config), threshold=evaluation["threshold"]
    )


def restore(config: ConfigDict, workdir: Path, conditions: int) -> tuple[State, Detector]:
    """The newest checkpoint of a run, and its detector."""
    built = build(config, conditions, steps_per_epoch=1)
    like = jax.eval_shape(
        lambda: game.init(built.detector, built.optimizers, config.seed, picture_shape(config))
    )
    checkpoints = Checkpoints(workdir, read_only=True)
    epochs = checkpoints.latest()
    if epochs is None:
        raise UserError(f"{workdir} holds no checkpoint yet: train it first")
    state = checkpoints.restore(epochs, like)
    checkpoints.close()
    return state, built.detector
