"""BatchNorm statistics for inference: mean and variance over the training images, with fixed weights.

This is "precise BN" (Wu and Johnson 2021, Sec. 3). Parameters, codebooks and later training do not depend on it.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from bigan_jax.detector import Batch, Detector, Net, TrainState, Variables, network_variables, scoring_params
from bigan_jax.training.train_step import step_keys

Statistics = dict[str, PyTree]  # the collection "batch_stats" of each network that has BatchNorm


def current_statistics(state: TrainState) -> Statistics:
    """Returns the state's statistics; empty if no network has BatchNorm."""
    return {name: c["batch_stats"] for name, c in state.collections.items() if "batch_stats" in c}


def with_statistics(state: TrainState, statistics: Statistics) -> TrainState:
    """Returns the state with these statistics."""
    replaced = {name: state.collections[name] | {"batch_stats": s} for name, s in statistics.items()}
    return state._replace(collections=state.collections | replaced)


def add_batch(
    detector: Detector,
    number: Int[Array, ""],
    statistics: Statistics,
    state: TrainState,
    frozen: Mapping[str, Variables],
    batch: Batch,
) -> Statistics:
    """Returns the statistics over `number` equally large batches and one more; if it is 0, the given ones are ignored.

    A network's statistics are those of `detector.reconstruct` or `score_and_map`, as scoring calls it. A network that
    it does not call has those of the last objective that owns it and calls it. So have all networks of a detector with
    a latent search: `reconstruct` requires codes that were not searched for training images.

    `BatchNorm` reduces over the batch on all devices, so that the devices agree.
    """
    # A batch's own keys: with those of another batch, a generator would see the same codes again.
    keys = jax.vmap(jax.random.fold_in, (0, None))(step_keys(state, 0, len(batch.image)), number)
    variables = network_variables(state, scoring_params(state)) | dict(frozen)
    functions: list[tuple[tuple[str, ...], Callable | None]] = [
        (o.networks, o.loss) for o in detector.objectives.values()
    ]
    if not detector.search:
        functions.append((tuple(detector.networks), detector.reconstruct or detector.score_and_map))
    of_batch = {}
    for networks, function in functions:
        net = Net(detector.networks, variables, train=True)
        assert function
        function(net, batch, keys)
        of_batch |= {name: net.updates[name] for name in networks if name in net.updates and name in statistics}
    for name, calls in of_batch.items():  # several of a discriminator of real and generated images
        for index, call in enumerate(calls):
            share = 1 / (number * len(calls) + index + 1)
            statistics = statistics | {name: pool(statistics[name], call["batch_stats"], share)}
    return statistics


def pool(a: PyTree, b: PyTree, share: Float[Array, ""]) -> PyTree:
    """Pools the statistics of two sets of values; `share` is that of the second set in all values.

    The variance is that within the sets and that between their means (Chan et al. 1983, Eq. 2.1). The mean of the
    variances of batches of n values would be too low by 1 / n.
    """
    if not isinstance(a, Mapping):
        return (1 - share) * a + share * b
    pooled = {key: pool(a[key], b[key], share) for key in a}
    if pooled.keys() == {"mean", "var"}:
        pooled["var"] += share * (1 - share) * jnp.square(b["mean"] - a["mean"])
    return pooled
