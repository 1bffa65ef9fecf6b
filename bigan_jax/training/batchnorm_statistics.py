"""BatchNorm statistics for inference, estimated over training images with fixed weights."""

from collections.abc import Mapping

from jaxtyping import PyTree

from bigan_jax.detector import Batch, Detector, Net, TrainState, Variables, network_variables, scoring_params
from bigan_jax.training.train_step import average_over_devices, step_keys


def batch_statistics(
    detector: Detector, state: TrainState, frozen: Mapping[str, Variables], batch: Batch
) -> dict[str, PyTree]:
    """Returns the BatchNorm statistics of one batch by network, with fixed weights.

    A network's statistics come from the last objective that owns it, as in a step: an encoder and a generator that
    end each step on reconstruction are scored as they reconstruct.
    """
    statistics = {}
    for objective in detector.objectives.values():
        net = Net(detector.networks, network_variables(state, scoring_params(state)) | dict(frozen), train=True)
        objective.loss(net, batch, step_keys(state, 0, len(batch.image)))
        statistics |= net.collections(objective.networks)
    statistics = {n: {"batch_stats": c["batch_stats"]} for n, c in statistics.items() if "batch_stats" in c}
    return average_over_devices(statistics)


def with_statistics(state: TrainState, mean: dict[str, PyTree]) -> TrainState:
    """Returns the state with BatchNorm statistics replaced by their mean over batches.

    This is "precise BN" (Wu and Johnson 2021, Sec. 3); parameters, codebooks and later training do not depend on it.
    """
    return state._replace(collections={n: c | mean.get(n, {}) for n, c in state.collections.items()})
