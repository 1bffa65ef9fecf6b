"""One training step: prepare a batch, update each active objective in turn, finish the step; and BatchNorm statistics.

The functions run on each device of the mapped axis `BATCH_AXIS`.
"""

from collections.abc import Mapping
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int, Key, PyTree, UInt8

from bigan_jax.data.streaming import LazyImages
from bigan_jax.detector import Batch, Detector, Logs, Net, TrainState, Variables, example_keys, network_variables
from bigan_jax.nn.blocks import BATCH_AXIS
from bigan_jax.nn.pixel_statistics import Roi
from bigan_jax.training.augmentation import AugmentationSettings, augment


class TrainingSet(NamedTuple):
    """Training images: all, or the next of a stream; on the devices or on the host."""

    image: UInt8[Array | np.ndarray, "n h w c"] | LazyImages
    condition: Int[Array | np.ndarray, "n"]


def prepare_batch(
    state: TrainState,
    training_set: TrainingSet,
    indices: Int[Array, "b"],
    augmentation: AugmentationSettings,
    roi: Roi = None,
) -> Batch:
    """Returns this device's batch: gathered by index, scaled to [0, 1] and augmented within the region of interest."""
    assert not isinstance(training_set.image, LazyImages)  # the runner has read its images
    image = training_set.image[indices].astype(jnp.float32) / 255
    keys = step_keys(state, 0, len(indices))
    image = augment(keys, image, augmentation)
    if roi is not None:  # augmentation moves pixels
        image = jnp.where(roi[:, :, None], image, 0)
    return Batch(image, training_set.condition[indices])


def update(
    detector: Detector,
    optimizer: optax.GradientTransformation,
    name: str,
    state: TrainState,
    frozen: Mapping[str, Variables],
    batch: Batch,
    update_index: int | Int[Array, ""],
) -> tuple[TrainState, Logs]:
    """Takes one update step of one objective: gradient, optimizer and Flax collections.

    Only the networks that the objective owns change. Gradients, collections and logs are averaged over the devices.

    Args:
      optimizer: the optimizer of the objective `name`.
      frozen: variables of the frozen networks.
      batch: this device's part of the batch.
      update_index: position of the update within the step, from 1; each draws noise of its own.

    Returns:
      The new state, and the logs named "<objective>/<log>", "<objective>/loss" among them.
    """
    objective = detector.objectives[name]
    keys = step_keys(state, update_index, len(batch.image))

    def loss(owned):
        net = Net(detector.networks, network_variables(state, state.params | owned) | dict(frozen), train=True)
        value, logs = objective.loss(net, batch, keys)
        return value, ({"loss": value, **logs}, net.collections(objective.networks))

    owned = {network: state.params[network] for network in objective.networks}
    gradients, (logs, collections) = jax.grad(loss, has_aux=True)(owned)
    gradients, logs, collections = average_over_devices((gradients, logs, collections))
    changes, opt_state = optimizer.update(gradients, state.opt_state[name], owned)
    state = state._replace(
        params=state.params | cast(dict, optax.apply_updates(owned, changes)),
        collections=state.collections | collections,
        opt_state=state.opt_state | {name: opt_state},
    )
    return state, {f"{name}/{key}": value for key, value in logs.items()}


def finish_step(detector: Detector, state: TrainState) -> TrainState:
    """Increments the step counter and updates the moving average of the weights.

    The decay rises from 0.1 to `detector.averaging`, so that the initial weights carry little weight in a short run.
    """
    decay = jnp.minimum(detector.averaging, (1 + state.step) / (10 + state.step))
    average = {
        name: jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, a, state.params[name])
        for name, a in state.average.items()
    }
    return state._replace(step=state.step + 1, average=average)


def step_keys(state: TrainState, purpose: int | Int[Array, ""], batch_size: int) -> Key[Array, "b"]:
    """Returns one key per image; `purpose` is 0 for augmentation, and from 1 on for the step's updates."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), state.step), purpose)
    first = lax.axis_index(BATCH_AXIS) * batch_size
    return example_keys(key, first + jnp.arange(batch_size))


def average_over_devices(tree: PyTree) -> PyTree:
    """Returns the mean over all devices.

    Several processes on CPUs reduce one concatenated vector, because each reduction takes milliseconds however
    small it is. Compilers for accelerators combine reductions themselves, without the copies. For a single device,
    XLA:CPU would copy every array; the mean is skipped.
    """
    if lax.axis_size(BATCH_AXIS) == 1:
        return tree
    if jax.default_backend() != "cpu" or jax.process_count() == 1:
        return lax.pmean(tree, BATCH_AXIS)
    vector, restore = ravel_pytree(tree)
    return restore(lax.pmean(vector, BATCH_AXIS))
