"""Operation counts of programs by XLA's cost analysis, and profiles of calls."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from bigan_jax.detector import Batch, Detector, TrainState
from bigan_jax.nn.blocks import BATCH_AXIS
from bigan_jax.training.train_step import update


def of_step(
    detector: Detector,
    optimizers: Mapping[str, optax.GradientTransformation],
    active: tuple[str, ...],
    state: TrainState,
    batch_shape: tuple[int, ...],
) -> float:
    """Floating-point operations of the updates of one step, on one device.

    Args:
      detector: the detector.
      optimizers: by objective.
      active: the objectives of the step, one for each update.
      state: a state, for its shapes.
      batch_shape: the shape of the images [b, h, w, c].
    """

    def step(state, frozen, batch):
        for index, name in enumerate(active, 1):
            state, _ = update(detector, optimizers[name], name, state, frozen, batch, index)
        return state

    batch = Batch(
        jax.ShapeDtypeStruct((1, *batch_shape), jnp.float32), jax.ShapeDtypeStruct((1, batch_shape[0]), jnp.int32)
    )
    mapped = jax.vmap(step, (None, None, 0), axis_name=BATCH_AXIS)
    return flops(mapped, state, dict(detector.frozen), batch)


def profiled(call: Callable[[], object]) -> jax.profiler.ProfileData:
    """The profile of a call until its result is ready."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (file,) = Path(folder).rglob("*.xplane.pb")
        return jax.profiler.ProfileData.from_file(str(file))


def flops(function: Callable, *arguments) -> float:
    """Floating-point operations of one call.

    The function is compiled for the CPU: on a GPU, convolutions are library calls, which the cost
    analysis does not count. `arguments` are arrays or their shapes.
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        shapes = jax.eval_shape(lambda *x: x, *arguments)
        return of_compiled(jax.jit(function).lower(*shapes).compile())


def of_compiled(compiled: jax.stages.Compiled) -> float:
    """Floating-point operations of a program that is compiled for a CPU."""
    cost = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list | tuple) else cost
    return float(cost.get("flops", 0.0))
