"""python -m benchmarks.accelerator [--parts=step,seeds] [--toy] [--epochs=30,30]

What an accelerator makes of the project, beside what it could:
  peak      of matrix products, in the dtype of the computation
  step      the Improved BiGAN's second phase at batch 256: its floating-point operations a second
            as a share of that peak, in all its time and in that of products and convolutions alone
            (aim: 0.5 for the convolutions)
  seeds     an epoch of five seeds side by side, as a multiple of one's (aim: well under 5)
  schedule  all 150 + 500 epochs on 1,000 pictures, as a run trains them (aim: under 5 minutes), or
            fewer by --epochs=30,30; and the share of an epoch in which the device waits for the
            host (aim: under 0.02)
  search    AnoGAN's latent search over many pictures at once against one by one (aim: 20)
--toy does the same at a size that a CPU can do, to see that it works: its figures say nothing.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import counting, latent_search
from benchmarks.operations import PRODUCTS, of_gpu
from bigan_jax.commands import train as training
from bigan_jax.commands.build import build
from bigan_jax.commands.settings import parse_settings
from bigan_jax.commands.setup import prepare_jobs
from bigan_jax.configs import common, improved_bigan
from bigan_jax.detector import init_state
from bigan_jax.training import epoch_runner, schedules
from bigan_jax.training.epoch_logger import EpochLogger
from bigan_jax.training.train_step import TrainingSet

PARTS = {
    "step": lambda config, toy, peak: phase_two_step(config, 8 if toy else 256, peak),
    "seeds": lambda config, toy, _: seeds_side_by_side(config, 8 if toy else 32),
    "schedule": lambda config, toy, _: whole_schedule(config, toy),
    "search": lambda _, toy, __: search(toy),
}
_TOY = {
    "data.image_size": 32,
    "model.latent": 8,
    "model.widths": (8, 8),
    "model.discriminator_widths": (8, 8),
    "model.discriminator_hidden": 8,
    "model.perceptual_layers": ("relu1_1",),
}
_FULL = {
    "data.image_size": 128,
    "model.widths": (64, 128, 256, 512),
    "model.discriminator_widths": (64, 128, 256, 512),
    "model.perceptual_layers": ("relu3_3",),
}


def main(arguments: list[str] | None = None) -> dict:
    """Prints the figures, writes them where that is asked for, and returns them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--toy", action="store_true", help="a size for a CPU")
    parser.add_argument("--dtype", default="bfloat16", help="of the computation")
    parser.add_argument("--parts", default=",".join(PARTS), help="of the above but peak; all")
    parser.add_argument("--vgg16", default="", help="its weights; the installed package's")
    parser.add_argument("--epochs", default="150,500", help="of the schedule's two phases")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(arguments)
    parts = args.parts.split(",")
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}: {', '.join(PARTS)}")

    figures = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "jax": jax.__version__,
        "toy": args.toy,
        "dtype": args.dtype,
    }
    epochs = "2,9" if args.toy else args.epochs
    config = configured(args.toy, args.dtype, args.vgg16, tuple(map(int, epochs.split(","))))
    peak = matmul_peak(args.dtype, 256 if args.toy else 8192)
    figures["peak_flops"] = peak
    print(json.dumps(figures, indent=2), flush=True)
    for name in parts:
        print(f"measuring: {name} ...", flush=True)
        figures[name] = PARTS[name](config, args.toy, peak)
        print(json.dumps({name: figures[name]}, indent=2), flush=True)
        if args.output:  # after each, so that what fails later loses nothing
            args.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def configured(toy, dtype, vgg16="", epochs=(150, 500)):
    """The Improved BiGAN as the paper has it, on drawn pictures; or a toy of it."""
    config = improved_bigan.get_config("phantom")
    with config.unlocked():
        common.override(config, {"dtype": dtype, "batch_size": 32, **(_TOY if toy else _FULL)})
        common.override(config, {f"phases.phase{i}.epochs": n for i, n in enumerate(epochs, 1)})
        normal = 60 if toy else 1389  # a fifth is for the test, a tenth of the rest calibrates
        common.override(config, {"data.phantom_normal": normal, "data.phantom_anomalous": 2})
        config.checkpoint.every, config.vgg16.weights = 50, vgg16
    return config


def matmul_peak(dtype, size, repeats=20):
    """Floating-point operations a second of square matrix products, the best of five."""
    matrix = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)

    @jax.jit
    def chain(x, matrix):  # an argument: closed over, its 128 MiB would be a constant to compile
        return jax.lax.fori_loop(0, repeats, lambda _, y: (y @ matrix) * (size**-0.5), x)

    seconds = min(timed(lambda: chain(matrix, matrix), 6)[1:])
    return 2 * size**3 * repeats / seconds


def timed(call, times):
    """Seconds of each call, until its result is there."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - began)
    return found


class Bench:
    """A runner on random pictures, and its state."""

    def __init__(self, config, batch_size, steps, seeds=0):
        self.built = build(parse_settings(config), conditions=1, steps_per_epoch=steps)
        shape, count = parse_settings(config).data.image_shape, batch_size * steps
        rng = np.random.default_rng(0)
        pictures = rng.integers(0, 256, (count, *shape), np.uint8)
        self.pictures = TrainingSet(pictures, np.zeros(count, np.int32))
        self.runner = epoch_runner.EpochRunner(
            self.built.detector,
            self.built.optimizers,
            config.augment.to_dict(),
            epoch_runner.replicate(dict(self.built.detector.frozen)),
            epoch_runner.replicate(self.pictures),
            scanned=jax.default_backend() != "cpu",
            seeds=seeds,
        )
        begin = partial(init_state, self.built.detector, self.built.optimizers)
        begin = jax.jit(begin, static_argnames="shape")
        begin = [begin(seed=seed, shape=shape) for seed in range(max(seeds, 1))]
        self.first = begin[0]
        state = jax.tree.map(lambda *x: jnp.stack(x), *begin) if seeds else begin[0]
        self.state = self.runner.layout.to_devices(state)
        order = np.arange(count).reshape(steps, batch_size)
        self.order = order[:, None].repeat(seeds, 1) if seeds else order

    def due(self, phase, epoch):
        """The updates of each step of an epoch of a phase."""
        return schedules.active_objectives(
            schedules.ScheduledEpoch(self.built.phases[phase], phase, epoch)
        )

    def epoch(self, due):
        """One epoch; the state it leaves is waited for."""
        self.state, _ = self.runner.epoch(self.state, due, self.order)
        return self.state


def phase_two_step(config, batch_size, peak, steps=4):
    """Seconds and operations of the steps with and without the discriminator's turn."""
    bench = Bench(config, batch_size, steps)
    images = (batch_size, *bench.pictures.image.shape[1:])
    peak *= jax.local_device_count()
    found = {"batch_size": batch_size}
    for name, epoch in (("with_discriminator", 0), ("without", 1)):
        due = bench.due(1, epoch)
        first, *others = timed(lambda due=due: bench.epoch(due), 6)
        seconds = min(others) / steps
        kinds = {kind: x / steps for kind, x in kernels(lambda due=due: bench.epoch(due)).items()}
        flops = counting.of_step(*bench.built[:2], due, bench.first, images)
        products = kinds.get(PRODUCTS)
        found[name] = {
            "seconds": seconds,
            "images_per_second": batch_size / seconds,
            "compile_seconds": first - min(others),
            "flops": flops,
            "share_of_peak": flops / seconds / peak,
            "kernel_seconds": kinds,
            "share_of_peak_of_products": products and flops / products / peak,
        }
    return found


def kernels(call):
    """Seconds on the first GPU by the kind of kernel (operations.KINDS); {} elsewhere."""
    spent = Counter()
    planes = [plane for plane in counting.profiled(call).planes if plane.name == "/device:GPU:0"]
    for row in (row for plane in planes for row in plane.lines if "Stream" in row.name):
        for event in row.events:
            spent[of_gpu(event.name)] += event.duration_ns / 1e9
    return dict(spent)


def seeds_side_by_side(config, batch_size, seeds=5, steps=4, rounds=4):
    """An epoch of each phase for one seed and for several, by turns."""
    benches = Bench(config, batch_size, steps), Bench(config, batch_size, steps, seeds)
    found = {"seeds": seeds, "batch_size": batch_size}
    for bench in benches:
        if bench.runner.epoch_is_one_program:  # side by side, as a training has it
            programs = [bench.due(phase, 1) for phase in (0, 1)]
            bench.runner.compile_ahead(bench.state, programs, bench.order)
    for phase, name in enumerate(("phase1", "phase2")):
        due, times = benches[0].due(phase, 1), [[], []]
        for _ in range(rounds):
            for bench, seconds in zip(benches, times, strict=True):
                seconds += timed(lambda bench=bench, due=due: bench.epoch(due), 1)
        one, several = (float(np.median(seconds[1:])) for seconds in times)
        found[name] = {"one": one, "several": several, "cost": several / one}
    return found


def whole_schedule(config, toy):
    """`watched`, of a training on drawn pictures that is not kept."""
    with (
        tempfile.TemporaryDirectory() as folder,
        prepare_jobs({Path(folder) / "run": config}) as (task,),
    ):
        return watched(task, 3 if toy else 20)


def watched(task, epochs):
    """Seconds of a training from its first step to its last, compilation and all else between them
    included, and of its commonest epoch, alone as well, among so many given at once."""
    ends, kinds, add, train = [], [], EpochLogger.log_epoch, training.train_epochs

    def advance(*arguments):
        ends.append(time.perf_counter())
        return train(*arguments)

    def noted(self, progress, moment, *rest):
        ends.append(time.perf_counter())
        kinds.append(schedules.active_objectives(moment))
        return add(self, progress, moment, *rest)

    log = patch.object(EpochLogger, "log_epoch", noted)
    with log, patch.object(training, "train_epochs", advance):
        state = training.fit(task)
        ended = time.perf_counter()
    ((due, _),) = Counter(kinds).most_common(1)
    spent = np.diff(ends)[[kind == due for kind in kinds]]
    busy = device_seconds(task, state, due, epochs)
    wall = float(np.mean(spent[1:]))  # the first was compiled; checkpoints count
    return {
        "pictures": len(task.dataset.train.image),
        "epochs": len(kinds),
        "seconds": ended - ends[0],
        "epoch_seconds": wall,
        "epoch_device_seconds": busy,
        "host_idle_share": max(0.0, 1 - busy / wall),
    }


def device_seconds(task, state, due, epochs):
    """Seconds of an epoch among many that the device is given at once, without a host's work."""
    runner = task.make_runner(1.0)
    order = np.arange(task.steps_per_epoch * task.batch_size).reshape(
        task.steps_per_epoch, task.batch_size
    )
    state = runner.layout.to_devices(state)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(epochs):
            state, _ = runner.dispatch(state, due, order)
        jax.block_until_ready(state)
        seconds.append((time.perf_counter() - began) / epochs)
    return min(seconds[1:])


def search(toy):
    """Pictures a second of AnoGAN's search, at once and one by one."""
    fields = {"size": 32, "widths": [8, 8], "steps": 5, "pictures": 4, "alone": 2}
    if not toy:
        fields = {"size": 64, "widths": [64, 128, 256, 512], "steps": 500}
        fields |= {"pictures": 256, "alone": 4}
    at_once, one_by_one = latent_search.measure(**fields)
    return {**fields, "at_once": at_once, "alone": one_by_one, "ratio": at_once / one_by_one}


if __name__ == "__main__":
    main()
