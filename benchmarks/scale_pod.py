"""What a training step computes and sends, counted from its program without running it, and what
that makes of a pod: seconds and efficiency by published figures of the hardware."""

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

CYCLE = 60  # epochs, over which what is due in only some of them is averaged

# Of one device, by its maker's data sheet: products of bfloat16 matrices in operations a second,
# and bytes a second that it can send to the others.
HARDWARE = {
    "TPU v5e": {"flops": 197e12, "bandwidth": 1600e9 / 8},  # 1,600 Gbit/s between chips
    "H100": {"flops": 989e12, "bandwidth": 8 * 400e9 / 8},  # 8 network cards of 400 Gbit/s a node
}
SENT = 0.7  # of the published bandwidth, what all-reduces are taken to reach
LATENCY = 20e-6  # seconds that one takes however small, as it is taken here


def counted(config=None) -> dict:
    """{"objectives": {name: update_cost}, "phases": [the mean step of each phase]} of a config; by
    default the Improved BiGAN as the paper has it, at 128x128."""
    config = config or improved_bigan.get_config("brain")
    built = build(parse_settings(config), 1, 30)
    shape = parse_settings(config).data.image_shape
    cost = {name: update_cost(built, name, shape) for name in built.detector.objectives}
    phases = []
    for index, phase in enumerate(built.phases):
        moments = [schedules.ScheduledEpoch(phase, index, epoch) for epoch in range(CYCLE)]
        turns = [cost[name] for moment in moments for name in schedules.active_objectives(moment)]
        step = {key: sum(turn[key] for turn in turns) / CYCLE for key in turns[0]}
        phases.append({"phase": phase.name, "epochs": phase.epochs, **step})
    return {"objectives": cost, "phases": phases}


def update_cost(built: DetectorBuild, name: str, shape: tuple[int, int, int]) -> dict[str, float]:
    """Of an objective's update: a picture's floating-point operations; those of the whole update
    whatever its batch (the optimizer's); the bytes that are averaged over all devices, gradients,
    statistics, logs and what BatchNorm sees of each batch; and in how many reductions that wait for
    one before: BatchNorm's, and one for all else."""
    detector, axes = built.detector, (None, None, 0, None)
    state = jax.eval_shape(lambda: init_state(detector, built.optimizers, 0, shape))
    one_update = partial(update, detector, built.optimizers[name], name)
    frozen = jax.eval_shape(lambda: dict(detector.frozen))

    def given(*lead):
        image = jax.ShapeDtypeStruct((*lead, *shape), jnp.float32)
        return state, frozen, Batch(image, jax.ShapeDtypeStruct(lead, jnp.int32)), 1

    together = jax.jit(jax.vmap(one_update, axes, axis_name=BATCH_AXIS))
    programs = [together.lower(*given(2, pictures)) for pictures in (4, 8)]
    few, more = (program.cost_analysis()["flops"] for program in programs)
    traced = jax.make_jaxpr(one_update, axis_env=[(BATCH_AXIS, 2)])(*given(8))
    reductions = list(reduced(traced.jaxpr))
    _, logs = programs[0].out_info
    networks = detector.objectives[name].networks
    averaged = [(state.params[n], state.collections[n]) for n in networks], logs
    return {
        "flops_per_picture": (more - few) / 8,
        "flops_per_update": 2 * few - more,
        "bytes": float(sum(reductions)),
        "waits": 1 + len(reductions) - len(jax.tree.leaves(averaged)),
        "updates": 1,
    }


def reduced(program: Jaxpr) -> Iterator[int]:
    """The bytes of each array that a program sums over all devices."""
    for equation in program.eqns:
        if equation.primitive.name.startswith("psum"):
            yield from (v.aval.size * v.aval.dtype.itemsize for v in equation.invars)
        for inner in jaxprs_in_params(equation.params):
            yield from reduced(inner)


def estimates(step: dict, devices: int, batch: int, share: float) -> list[dict]:
    """By hardware: seconds that a step's computation and its all-reduces take, and the efficiency,
    the part of the time in which devices compute, as nothing of the two overlaps.

    step: of a phase, as `counted` gives it. batch: pictures of one device. share: of the published
    operations a second that the computation reaches.
    """
    found = []
    for name, limits in HARDWARE.items():
        work = step["flops_per_picture"] * batch + step["flops_per_update"]
        compute = work / (share * limits["flops"])
        # Around a ring each device sends all but its own part twice: to add up, and to tell.
        sent = 2 * (devices - 1) / devices * step["bytes"]
        send = sent / (SENT * limits["bandwidth"]) + step["waits"] * LATENCY
        row = {"hardware": name, "devices": devices, "batch": batch, "share": share}
        row |= {"compute": compute, "sent_bytes": sent, "send": send}
        found.append(row | {"efficiency": compute / (compute + send)})
    return found


def pod(config=None) -> dict:
    """What is counted, and estimates for the phases' mean steps on 8 to 256 devices."""
    found = counted(config)
    found["estimates"] = [
        {"phase": step["phase"], **row}
        for step in found["phases"]
        for devices in (8, 64, 256)
        for batch in (1, 8, 32)
        for share in (0.1, 0.3, 0.5)
        for row in estimates(step, devices, batch, share)
    ]
    return found


def line(count, seconds) -> tuple[float, float, float]:
    """(offset, seconds each, worst relative deviation) of the straight line through the points that
    has the least relative deviations, squared."""
    count, seconds = np.asarray(count, float), np.asarray(seconds, float)
    points = np.stack([np.ones_like(count), count], 1) / seconds[:, None]
    (offset, each), *_ = np.linalg.lstsq(points, np.ones_like(count), rcond=None)
    deviation = np.abs((offset + each * count) / seconds - 1)
    return float(offset), float(each), float(deviation.max())
