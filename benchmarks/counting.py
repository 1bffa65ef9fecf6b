"""What XLA counts and its profiler sees of a program: operations, and when each of them ran."""

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
    due: tuple[str, ...],
    state: TrainState,
    images: tuple[int, ...],
) -> float:
    """Of the updates of one step, on one device. images: the shape of its batch."""

    def step(state, frozen, batch):
        for turn, name in enumerate(due, 1):
            state, _ = update(detector, optimizers[name], name, state, frozen, batch, turn)
        return state

    batch = Batch(
        jax.ShapeDtypeStruct((1, *images), jnp.float32),
        jax.ShapeDtypeStruct((1, images[0]), jnp.int32),
    )
    mapped = jax.vmap(step, (None, None, 0), axis_name=BATCH_AXIS)
    return flops(mapped, state, dict(detector.frozen), batch)


def profiled(call: Callable[[], object]) -> jax.profiler.ProfileData:
    """What JAX's profiler sees of a call, until its result is there."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (file,) = Path(folder).rglob("*.xplane.pb")
        return jax.profiler.ProfileData.from_file(str(file))


def flops(function: Callable, *arguments) -> float:
    """Of one call, nothing counted that is done twice; compiled for the processor, wherever the
    arguments are: a GPU's libraries, which do its convolutions, count as nothing there.

    arguments: arrays, or what stands for their shapes.
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        shapes = jax.eval_shape(lambda *x: x, *arguments)
        return of_compiled(jax.jit(function).lower(*shapes).compile())


def of_compiled(compiled: jax.stages.Compiled) -> float:
    """Of a program that is compiled already, for a processor."""
    found = compiled.cost_analysis()
    found = found[0] if isinstance(found, list | tuple) else found
    return float(found.get("flops", 0.0))
