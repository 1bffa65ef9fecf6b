"""Operations and communication of a training step, and estimates for many devices.

Both are counted in the program without running it; the estimates use published hardware limits.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params

from bigan_jax.commands.build import build
from bigan_jax.commands.settings import parse_settings
from bigan_jax.configs import improved_bigan
from bigan_jax.detector import Batch, init_state
from bigan_jax.nn.blocks import BATCH_AXIS
from bigan_jax.training import schedules
from bigan_jax.training.run import DetectorBuild
from bigan_jax.training.train_step import update

CYCLE = 60  # epochs to average over, as some objectives are active in some epochs only

# Limits of one device by its data sheet: operations per second of bfloat16 matrix products, and
# bytes per second to other devices.
HARDWARE = {
    "TPU v5e": {"flops": 197e12, "bandwidth": 1600e9 / 8},  # 1,600 Gbit/s between chips
    "H100": {"flops": 989e12, "bandwidth": 8 * 400e9 / 8},  # 8 network cards of 400 Gbit/s a node
}
BANDWIDTH_FRACTION = 0.7  # of the published bandwidth; assumed for all-reduces
LATENCY = 20e-6  # seconds of the smallest all-reduce; assumed


def count(config=None) -> dict:
    """Counts the costs of a config, by default of the paper's Improved BiGAN at 128x128.

    Returns:
      {"objectives": {name: update_cost}, "phases": [the mean step of each phase]}
    """
    config = config or improved_bigan.get_config("brain")
    built = build(parse_settings(config), 1, 30)
    shape = parse_settings(config).data.image_shape
    cost = {name: update_cost(built, name, shape) for name in built.detector.objectives}
    phases = []
    for phase in built.phases:
        positions = [schedules.ScheduledEpoch(phase, epoch) for epoch in range(CYCLE)]
        updates = [cost[n] for position in positions for n in schedules.active_objectives(position)]
        step = {key: sum(update[key] for update in updates) / CYCLE for key in updates[0]}
        phases.append({"phase": phase.name, "epochs": phase.epochs, **step})
    return {"objectives": cost, "phases": phases}


def update_cost(built: DetectorBuild, name: str, shape: tuple[int, int, int]) -> dict[str, float]:
    """The costs of one update of an objective.

    Returns:
      `flops_per_image`; `flops_per_update`, those independent of the batch (the optimizer); `bytes`
      that are averaged over devices: gradients, statistics, logs and BatchNorm's moments; `waits`,
      the number of all-reduces that wait for an earlier one: those of BatchNorm, and one for all
      else.
    """
    detector, axes = built.detector, (None, None, 0, None)
    state = jax.eval_shape(lambda: init_state(detector, built.optimizers, 0, shape))
    one_update = partial(update, detector, built.optimizers[name], name)
    frozen = jax.eval_shape(lambda: dict(detector.frozen))

    def arguments(*axes_before):
        image = jax.ShapeDtypeStruct((*axes_before, *shape), jnp.float32)
        return state, frozen, Batch(image, jax.ShapeDtypeStruct(axes_before, jnp.int32)), 1

    mapped = jax.jit(jax.vmap(one_update, axes, axis_name=BATCH_AXIS))
    programs = [mapped.lower(*arguments(2, images)) for images in (4, 8)]
    of_4, of_8 = (program.cost_analysis()["flops"] for program in programs)
    traced = jax.make_jaxpr(one_update, axis_env=[(BATCH_AXIS, 2)])(*arguments(8))
    reductions = list(reduced_bytes(traced.jaxpr))
    _, logs = programs[0].out_info
    networks = detector.objectives[name].networks
    averaged = [(state.params[n], state.collections[n]) for n in networks], logs
    return {
        "flops_per_image": (of_8 - of_4) / 8,
        "flops_per_update": 2 * of_4 - of_8,
        "bytes": float(sum(reductions)),
        "waits": 1 + len(reductions) - len(jax.tree.leaves(averaged)),
        "updates": 1,
    }


def reduced_bytes(program: Jaxpr) -> Iterator[int]:
    """Yields the bytes of each array that a program sums over devices."""
    for equation in program.eqns:
        if equation.primitive.name.startswith("psum"):
            yield from (v.aval.size * v.aval.dtype.itemsize for v in equation.invars)
        for inner in jaxprs_in_params(equation.params):
            yield from reduced_bytes(inner)


def estimates(step: dict, devices: int, batch: int, share: float) -> list[dict]:
    """Estimates the seconds of computation and all-reduces of a step for each kind of hardware.

    Args:
      step: the mean step of a phase, from `count`.
      devices: the number of devices.
      batch: images per device.
      share: the fraction of the published operations per second that the computation reaches.

    Returns:
      A row per kind of hardware. `efficiency` is the fraction of time spent computing, assuming
      that computation and communication do not overlap.
    """
    rows = []
    for name, limits in HARDWARE.items():
        work = step["flops_per_image"] * batch + step["flops_per_update"]
        compute = work / (share * limits["flops"])
        # In a ring, each device sends all parts but one twice: to reduce and to distribute.
        sent = 2 * (devices - 1) / devices * step["bytes"]
        send = sent / (BANDWIDTH_FRACTION * limits["bandwidth"]) + step["waits"] * LATENCY
        row = {"hardware": name, "devices": devices, "batch": batch, "share": share}
        row |= {"compute": compute, "sent_bytes": sent, "send": send}
        rows.append(row | {"efficiency": compute / (compute + send)})
    return rows


def pod(config=None) -> dict:
    """The costs of a config, and estimates for the mean steps of its phases on 8 to 256 devices."""
    results = count(config)
    results["estimates"] = [
        {"phase": step["phase"], **row}
        for step in results["phases"]
        for devices in (8, 64, 256)
        for batch in (1, 8, 32)
        for share in (0.1, 0.3, 0.5)
        for row in estimates(step, devices, batch, share)
    ]
    return results


def line(count, seconds) -> tuple[float, float, float]:
    """Fits a line by least squares of relative deviations.

    Returns:
      The offset, the slope, and the largest relative deviation.
    """
    count, seconds = np.asarray(count, float), np.asarray(seconds, float)
    points = np.stack([np.ones_like(count), count], 1) / seconds[:, None]
    (offset, slope), *_ = np.linalg.lstsq(points, np.ones_like(count), rcond=None)
    deviation = np.abs((offset + slope * count) / seconds - 1)
    return float(offset), float(slope), float(deviation.max())
