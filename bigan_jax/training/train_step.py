"""TODO docstring."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int, PyTree, UInt8

from bigan_jax.detector import (
    Batch,
    Detector,
    Logs,
    Net,
    TrainState,
    Variables,
    example_keys,
    network_variables,
    scoring_params,
)
from bigan_jax.nn.blocks import BATCH_AXIS
from bigan_jax.training.augmentation import AugmentationSettings, augment


class TrainingSet(NamedTuple):
    """The pictures that train, as they lie on the device: all, or those that are due next."""

    image: UInt8[Array, "n h w c"]
    condition: Int[Array, "n"]


def _step_keys(state, purpose: int, batch_size: int):
    """purpose: 0 for the augmentation, 1 and up for the updates of one step."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), state.step), purpose)
    first = lax.axis_index(BATCH_AXIS) * batch_size
    return example_keys(key, first + jnp.arange(batch_size))


def prepare_batch(
    state: TrainState,
    pictures: TrainingSet,
    indices: Int[Array, "b"],
    augmentation: AugmentationSettings,
) -> Batch:
    """This device's batch: gathered, scaled to [0, 1] and augmented."""
    image = pictures.image[indices].astype(jnp.float32) / 255
    keys = _step_keys(state, 0, len(indices))
    return Batch(augment(keys, image, augmentation), pictures.condition[indices])


def update(
    detector: Detector,
    optimizer: optax.GradientTransformation,
    name: str,
    state: TrainState,
    frozen: Mapping[str, Variables],
    batch: Batch,
    turn: Int[Array, ""],
) -> tuple[TrainState, Logs]:
    """One objective's move: gradient, optimizer and statistics of the networks that it owns.

    Runs on every device of the mapped axis; gradients, statistics and logs are averaged over it.

    turn: this is the step's so-manieth update, from 1: each draws its own noise.
    """
    objective = detector.objectives[name]
    keys = _step_keys(state, turn, len(batch.image))

    def loss(owned):
        net = Net(
            detector.networks,
            network_variables(state, state.params | owned) | dict(frozen),
            train=True,
        )
        value, logs = objective.loss(net, batch, keys)
        return value, ({"loss": value, **logs}, net.collections(objective.networks))

    owned = {network: state.params[network] for network in objective.networks}
    gradients, (logs, collections) = jax.grad(loss, has_aux=True)(owned)
    gradients, logs, collections = _average_over_devices((gradients, logs, collections))
    changes, opt_state = optimizer.update(gradients, state.opt_state[name], owned)
    state = state._replace(
        params=state.params | optax.apply_updates(owned, changes),
        collections=state.collections | collections,
        opt_state=state.opt_state | {name: opt_state},
    )
    return state, {f"{name}/{key}": value for key, value in logs.items()}


def _average_over_devices(tree):
    """The mean over all devices.

    Among processes on CPUs as one vector, since there a reduction takes milliseconds however small;
    accelerators' compilers gather them themselves, without the copies. One device alone is spared
    the copies that XLA:CPU makes of its own.
    """
    if lax.axis_size(BATCH_AXIS) == 1:
        return tree
    if jax.default_backend() != "cpu" or jax.process_count() == 1:
        return lax.pmean(tree, BATCH_AXIS)
    vector, restore = ravel_pytree(tree)
    return restore(lax.pmean(vector, BATCH_AXIS))


def finish_step(detector: Detector, state: TrainState) -> TrainState:
    """The end of a step: it is counted, and the weights' moving average takes it in.

    The decay rises to its value, so that the initial weights do not linger in a short run.
    """
    decay = jnp.minimum(detector.averaging, (1 + state.step) / (10 + state.step))
    average = {
        name: jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, a, state.params[name])
        for name, a in state.average.items()
    }
    return state._replace(step=state.step + 1, average=average)


def batch_statistics(
    detector: Detector, state: TrainState, frozen: Mapping[str, Variables], batch: Batch
) -> dict[str, PyTree]:
    """What BatchNorm sees of one batch with the weights held still, by network.

    Each network's are those of the last objective that owns it, as in a step: an encoder and a
    generator that end each step on reconstruction are scored as they reconstruct.
    """
    statistics = {}
    for objective in detector.objectives.values():
        net = Net(
            detector.networks,
            network_variables(state, scoring_params(state)) | dict(frozen),
            train=True,
        )
        objective.loss(net, batch, _step_keys(state, 0, len(batch.image)))
        statistics |= net.collections(objective.networks)
    statistics = {
        n: {"batch_stats": c["batch_stats"]} for n, c in statistics.items() if "batch_stats" in c
    }
    return _average_over_devices(statistics)


def with_statistics(state: TrainState, mean: dict[str, PyTree]) -> TrainState:
    """The state with its BatchNorm statistics replaced by their mean over batches ("precise BN", Wu
    and Johnson 2021, Sec. 3). Parameters, codebooks and the course of training are untouched."""
    return state._replace(
        collections={n: c | mean.get(n, {}) for n, c in state.collections.items()}
    )
