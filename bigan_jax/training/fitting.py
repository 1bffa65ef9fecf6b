"""Fits detectors without gradients: sums over the training images, batch by batch, on all devices.

The sums are float32 with compensated addition (Kahan 1965), so that they do not lose the digits of many images.
"""

from collections import deque
from collections.abc import Generator, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Int, PyTree, UInt8

from bigan_jax.data.streaming import LazyImages, fixed_draw, prefetch
from bigan_jax.detector import FITTED, Detector, FitBatch, FitPass, Net, TrainState, init_state
from bigan_jax.errors import UserError
from bigan_jax.nn.blocks import BATCH_AXIS
from bigan_jax.runtime import distributed
from bigan_jax.runtime.jax_setup import fast_compilation
from bigan_jax.training.device_layout import DeviceLayout, first, replicate, scatter

FOLDS = 5  # of a cross-fit
TrainingImages = UInt8[np.ndarray, "n h w c"] | LazyImages
# (sums, lost digits) after some batches, on the devices or on the host.
Sums = tuple[PyTree, PyTree]


class Fitter:
    """Computes a fitted detector's parameters from training images. Its programs are compiled once."""

    def __init__(self, detector: Detector, shape: tuple[int, int, int], batch_size: int):
        """Takes the detector, the (height, width, channels) of images and the number of images per batch."""
        assert detector.fit, "the detector is trained by objectives"
        self.passes, self.shape = detector.fit.passes, shape
        self.batch_size = -(-batch_size // jax.device_count()) * jax.device_count()
        self._detector, self._layout = detector, DeviceLayout()
        self._programs = [
            self._layout.pmap(partial(_add_batch, detector, fit_pass), donate_argnums=2) for fit_pass in self.passes
        ]
        # From a seed to the state before the first pass.
        self.init = jax.jit(partial(init_state, detector, {}, shape=shape), compiler_options=fast_compilation())
        self._frozen = None

    def abstract_state(self, seed: int, epochs: int, step: int) -> TrainState:
        """Returns the shapes of the state after some passes and, unless it is 0, a step of the next."""
        state = self.init.eval_shape(seed)
        return state._replace(opt_state={self.passes[epochs].name: self._shapes(epochs, state)} if step else {})

    def steps(self, number: int, images: int) -> int:
        """Returns the number of batches of a pass over this number of training images."""
        limit = self.passes[number].limit
        return -(-min(images, limit or images) // self.batch_size)

    def fit(self, images: TrainingImages, seed: int) -> TrainState:
        """Returns the state after all passes over the images."""
        state = self.init(seed)
        for number in range(len(self.passes)):
            (sums,) = deque(self.sums(number, state, images), maxlen=1)
            state = self.finish(number, state, sums)
        return state

    def sums(
        self, number: int, state: TrainState, images: TrainingImages, done: Sums | None = None, steps_done: int = 0
    ) -> Generator[Sums]:
        """Yields the sums of a pass after each batch.

        Args:
          number: the pass.
          done: the sums of the first `steps_done` batches, on the host.

        Raises:
          UserError: an image cannot be read.
        """
        chosen = fixed_draw(len(images), self.passes[number].limit or len(images))
        positions = np.full(self.steps(number, len(images)) * self.batch_size, -1, np.int32)
        positions[: len(chosen)] = np.arange(len(chosen))
        shards = self._layout.shard_indices(positions.reshape(-1, self.batch_size))

        def read(step: int) -> tuple:
            of_step = shards[:, step]
            image = images[chosen[of_step.ravel().clip(0)]].reshape(*of_step.shape, *self.shape)
            return scatter((image, of_step, np.full(len(of_step), len(chosen), np.int32)))

        if done is None:
            done = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self._shapes(number, state))
        if self._frozen is None:
            self._frozen = replicate(dict(self._detector.frozen))
        params, sums = replicate(state.params[FITTED]), replicate(done)
        for batch in prefetch(read, range(steps_done, shards.shape[1])):
            sums = self._programs[number](params, self._frozen, sums, *batch)
            yield sums

    def finish(self, number: int, state: TrainState, sums: Sums) -> TrainState:
        """Returns the state after a pass, from its sums on the devices. Raises UserError if a value is not finite."""
        total, lost = jax.device_get(first(sums))
        exact = jax.tree.map(_in_float64, total, lost)
        params = self.passes[number].finish(jax.device_get(state.params[FITTED]), exact)
        params = jax.tree.map(lambda new, old: np.asarray(new, old.dtype), params, state.params[FITTED])
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(params)):
            raise UserError(
                f"The fit has values that are not finite after the pass {self.passes[number].name!r}. Use more or "
                "other training images."
            )
        params = distributed.broadcast(jax.device_put(params))
        return state._replace(step=state.step + 1, params={FITTED: params}, opt_state={})

    def _shapes(self, number: int, state: TrainState) -> Sums:
        """Returns the shapes of a pass's sums and of their lost digits."""

        def compute(params, frozen):
            image, one = jnp.zeros((1, *self.shape)), jnp.ones(1, jnp.int32)
            batch = FitBatch(image, one.astype(jnp.float32), one, one[0])
            return _batch_sums(self._detector, self.passes[number], params, frozen, batch)

        sums = jax.eval_shape(compute, state.params[FITTED], dict(self._detector.frozen))
        return sums, jax.tree.map(lambda x: x if _is_float(x) else jax.ShapeDtypeStruct((), x.dtype), sums)


def cross_fit(fitter: Fitter, seed: int, images: TrainingImages) -> Iterator[tuple[TrainState, Int[np.ndarray, "m"]]]:
    """Yields, for each of a few contiguous folds of the images, a fit on the others and the fold's indices.

    A detector that knows an image finds it too normal. Folds are contiguous, since neighbors in the order of names may
    be slices or frames of one thing.
    """
    fold = np.arange(len(images)) * FOLDS // len(images)
    for k in np.unique(fold):
        others = np.flatnonzero(fold != k)
        rest = images.subset(others) if isinstance(images, LazyImages) else images[others]
        yield fitter.fit(rest, seed), np.flatnonzero(fold == k)


def _batch_sums(detector: Detector, fit_pass: FitPass, params, frozen, batch: FitBatch) -> PyTree:
    net = Net(detector.networks, {FITTED: {"params": params}, **frozen}, train=False)
    return fit_pass.sums(net, batch)


def _add_batch(detector, fit_pass, params, frozen, sums, image, position, count):
    """Adds a batch to the sums, on each device of the mapped axis."""
    batch = FitBatch(
        image=image.astype(jnp.float32) / 255,
        weight=(position >= 0).astype(jnp.float32),
        index=position.clip(0),
        count=count,
    )
    new = _batch_sums(detector, fit_pass, params, frozen, batch)
    if lax.axis_size(BATCH_AXIS) > 1:
        new = lax.psum(new, BATCH_AXIS)
    total, lost = sums
    added = jax.tree.map(_add, total, lost, new)
    return jax.tree.transpose(jax.tree.structure(total), jax.tree.structure((0, 0)), added)


def _add(total, lost, new):
    """Adds without losing the digits of `new` that a large total has no room for; returns the sum and these digits."""
    if not _is_float(total):
        return total + new, lost
    corrected = new - lost
    result = total + corrected
    return result, (result - total) - corrected


def _in_float64(total, lost):
    return total.astype(np.float64) - lost if _is_float(total) else total


def _is_float(x) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)
