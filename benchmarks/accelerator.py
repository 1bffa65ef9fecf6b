"""Measures how well the project uses an accelerator.

    python -m benchmarks.accelerator [--parts=step,seeds] [--toy] [--epochs=30,30]

  peak      floating-point operations per second of matrix products, in the dtype of computation
  step      the second phase of the Improved BiGAN with batches of 256: its operations per second as
            a fraction of that peak, over all time and over products and convolutions only (target:
            0.5 for convolutions)
  seeds     an epoch of five vectorized seeds, relative to one seed (target: well below 5)
  schedule  all 150 + 500 epochs on 1,000 images, as in a run (target: below 5 minutes), or fewer by
            --epochs=30,30; and the fraction of an epoch in which the device waits for the host
            (target: below 0.02)
  search    AnoGAN's latent search over many images at once and one by one (target ratio: 20)

--toy runs a size for a CPU, as a smoke test: its values mean nothing.
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
from bigan_jax.training import device_layout, epoch_runner, schedules
from bigan_jax.training.epoch_logger import EpochLogger
from bigan_jax.training.train_step import TrainingSet

PARTS = {
    "step": lambda config, toy, peak: phase_two_step(config, 8 if toy else 256, peak),
    "seeds": lambda config, toy, _: vectorized_seeds(config, 8 if toy else 32),
    "schedule": lambda config, toy, _: full_schedule(config, toy),
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
    """Prints the measurements, writes them to --output, and returns them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="smoke test at a size for a CPU")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of computation")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to measure; default: all")
    parser.add_argument("--vgg16", default="", help="file of VGG16 weights; default: the installed package")
    parser.add_argument("--epochs", default="150,500", help="epochs of both phases of the schedule")
    parser.add_argument("--output", type=Path, help="JSON file of results")
    args = parser.parse_args(arguments)
    parts = args.parts.split(",")
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"unknown part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")

    results = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "jax": jax.__version__,
        "toy": args.toy,
        "dtype": args.dtype,
    }
    epochs = "2,9" if args.toy else args.epochs
    config = make_config(args.toy, args.dtype, args.vgg16, tuple(map(int, epochs.split(","))))
    peak = matmul_peak(args.dtype, 256 if args.toy else 8192)
    results["peak_flops"] = peak
    print(json.dumps(results, indent=2), flush=True)
    for name in parts:
        print(f"measuring: {name} ...", flush=True)
        results[name] = PARTS[name](config, args.toy, peak)
        print(json.dumps({name: results[name]}, indent=2), flush=True)
        if args.output:  # after each part, so that a later failure loses nothing
            args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def make_config(toy, dtype, vgg16="", epochs=(150, 500)):
    """The config of the paper's Improved BiGAN on the phantom, or of a toy version."""
    config = improved_bigan.get_config("phantom")
    with config.unlocked():
        common.override(config, {"dtype": dtype, "batch_size": 32, **(_TOY if toy else _FULL)})
        common.override(config, {f"phases.phase{i}.epochs": n for i, n in enumerate(epochs, 1)})
        normal = 60 if toy else 1389  # a fifth is for the test, a tenth of the rest for calibration
        common.override(config, {"data.phantom_normal": normal, "data.phantom_anomalous": 2})
        config.checkpoint.every, config.vgg16.weights = 50, vgg16
    return config


def matmul_peak(dtype, size, repeats=20):
    """Floating-point operations per second of square matrix products, the best of five."""
    matrix = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)

    @jax.jit
    def chain(x, matrix):  # not closed over: its 128 MiB would be a constant
        return jax.lax.fori_loop(0, repeats, lambda _, y: (y @ matrix) * (size**-0.5), x)

    seconds = min(timed(lambda: chain(matrix, matrix), 6)[1:])
    return 2 * size**3 * repeats / seconds


def timed(call, repeats):
    """Seconds of each call until its result is ready."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return seconds


class Bench:
    """An epoch runner on random images, and its state."""

    def __init__(self, config, batch_size, steps, seeds=0):
        settings = parse_settings(config)
        self.built = build(settings, conditions=1, steps_per_epoch=steps)
        shape, count = settings.data.image_shape, batch_size * steps
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (count, *shape), np.uint8)
        self.training_set = TrainingSet(images, np.zeros(count, np.int32))
        self.runner = epoch_runner.EpochRunner(
            self.built.detector,
            self.built.optimizers,
            settings.augmentation,
            device_layout.replicate(dict(self.built.detector.frozen)),
            device_layout.replicate(self.training_set),
            scanned=jax.default_backend() != "cpu",
            seeds=seeds,
        )
        init = partial(init_state, self.built.detector, self.built.optimizers)
        init = jax.jit(init, static_argnames="shape")
        states = [init(seed=seed, shape=shape) for seed in range(max(seeds, 1))]
        self.first = states[0]
        state = jax.tree.map(lambda *x: jnp.stack(x), *states) if seeds else states[0]
        self.state = self.runner.layout.to_devices(state)
        order = np.arange(count).reshape(steps, batch_size)
        self.order = order[:, None].repeat(seeds, 1) if seeds else order

    def active(self, phase, epoch):
        """The active objectives of an epoch of a phase."""
        return schedules.active_objectives(schedules.ScheduledEpoch(self.built.phases[phase], epoch))

    def epoch(self, active):
        """Runs one epoch and returns the state."""
        self.state, _ = self.runner.epoch(self.state, active, self.order)
        return self.state


def phase_two_step(config, batch_size, peak, steps=4):
    """Seconds and operations of steps with and without the discriminator update."""
    bench = Bench(config, batch_size, steps)
    batch_shape = (batch_size, *bench.training_set.image.shape[1:])
    peak *= jax.local_device_count()
    results = {"batch_size": batch_size}
    for name, epoch in (("with_discriminator", 0), ("without", 1)):
        active = bench.active(1, epoch)
        first, *others = timed(lambda active=active: bench.epoch(active), 6)
        seconds = min(others) / steps
        kinds = {kind: s / steps for kind, s in kernel_seconds(lambda active=active: bench.epoch(active)).items()}
        flops = counting.of_step(*bench.built[:2], active, bench.first, batch_shape)
        products = kinds.get(PRODUCTS)
        results[name] = {
            "seconds": seconds,
            "images_per_second": batch_size / seconds,
            "compile_seconds": first - min(others),
            "flops": flops,
            "share_of_peak": flops / seconds / peak,
            "kernel_seconds": kinds,
            "share_of_peak_of_products": products and flops / products / peak,
        }
    return results


def kernel_seconds(call):
    """Seconds on the first GPU by kind of kernel (operations.KINDS); {} on other devices."""
    seconds = Counter()
    planes = [plane for plane in counting.profiled(call).planes if plane.name == "/device:GPU:0"]
    for row in (row for plane in planes for row in plane.lines if "Stream" in row.name):
        for event in row.events:
            seconds[of_gpu(event.name)] += event.duration_ns / 1e9
    return dict(seconds)


def vectorized_seeds(config, batch_size, seeds=5, steps=4, rounds=4):
    """Times an epoch of each phase for one seed and for several, alternating."""
    benches = Bench(config, batch_size, steps), Bench(config, batch_size, steps, seeds)
    results = {"seeds": seeds, "batch_size": batch_size}
    for bench in benches:
        if bench.runner.epoch_is_one_program:  # compile both programs in parallel, as in a run
            programs = [bench.active(phase, 1) for phase in (0, 1)]
            bench.runner.compile_ahead(bench.state, programs, bench.order)
    for phase, name in enumerate(("phase1", "phase2")):
        active, times = benches[0].active(phase, 1), [[], []]
        for _ in range(rounds):
            for bench, seconds in zip(benches, times, strict=True):
                seconds += timed(lambda bench=bench, active=active: bench.epoch(active), 1)
        one, several = (float(np.median(seconds[1:])) for seconds in times)
        results[name] = {"one": one, "several": several, "cost": several / one}
    return results


def full_schedule(config, toy):
    """`time_training` on phantom images in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder, prepare_jobs({Path(folder) / "run": config}) as (job,):
        return time_training(job, 3 if toy else 20)


def time_training(job, epochs):
    """Seconds of a training from its first step to its last, including compilation, and of its most
    frequent kind of epoch, also without the host's work when `epochs` are dispatched at once."""
    ends, active_of_epoch = [], []
    log_epoch, train = EpochLogger.log_epoch, training.train_epochs

    def timed_train(*arguments):
        ends.append(time.perf_counter())
        return train(*arguments)

    def timed_log(self, progress, position, *rest):
        ends.append(time.perf_counter())
        active_of_epoch.append(schedules.active_objectives(position))
        return log_epoch(self, progress, position, *rest)

    with patch.object(EpochLogger, "log_epoch", timed_log), patch.object(training, "train_epochs", timed_train):
        state = training.fit(job)
        ended = time.perf_counter()
    ((active, _),) = Counter(active_of_epoch).most_common(1)
    seconds = np.diff(ends)[[names == active for names in active_of_epoch]]
    busy = device_seconds(job, state, active, epochs)
    wall = float(np.mean(seconds[1:]))  # the first is compiled; checkpoints are included
    return {
        "images": len(job.dataset.train.image),
        "epochs": len(active_of_epoch),
        "seconds": ended - ends[0],
        "epoch_seconds": wall,
        "epoch_device_seconds": busy,
        "host_idle_share": max(0.0, 1 - busy / wall),
    }


def device_seconds(job, state, active, epochs):
    """Seconds of an epoch when many are dispatched at once, without the host's work."""
    runner = job.make_runner(1.0)
    order = np.arange(job.steps_per_epoch * job.batch_size).reshape(job.steps_per_epoch, job.batch_size)
    state = runner.layout.to_devices(state)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(epochs):
            state, _ = runner.dispatch(state, active, order)
        jax.block_until_ready(state)
        seconds.append((time.perf_counter() - began) / epochs)
    return min(seconds[1:])


def search(toy):
    """Images per second of AnoGAN's latent search, at once and one by one."""
    fields = {"size": 32, "widths": [8, 8], "steps": 5, "images": 4, "alone": 2}
    if not toy:
        fields = {"size": 64, "widths": [64, 128, 256, 512], "steps": 500}
        fields |= {"images": 256, "alone": 4}
    at_once, one_by_one = latent_search.measure(**fields)
    return {**fields, "at_once": at_once, "alone": one_by_one, "ratio": at_once / one_by_one}


if __name__ == "__main__":
    main()
