"""Figures of docs/development/scaling.md, from the measurements of benchmarks/scale.py."""

from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.scale_pod import line

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MIB = 2**20


def draw(results: dict, folder: Path) -> None:
    """Writes scale-images.png, scale-work.png and scale-devices.png."""
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    plots = {"images": _images, "work": _work, "devices": _devices}
    with plt.rc_context(style):
        for name, plot in plots.items():
            rows = 2 if name == "work" else 1
            figure, axes = plt.subplots(rows, 2, figsize=(7.2, 2.6 * rows), layout="constrained")
            plot(results, *axes.ravel())
            figure.savefig(folder / f"scale-{name}.png", dpi=100)
            plt.close(figure)


def _column(rows, name):
    return np.array([row[name] for row in rows], float)


def _images(results, time, memory):
    for part, label in ("images", "in memory"), ("streaming", "streamed"):
        rows = results[part]
        count, seconds = _column(rows, "images") / 1000, [np.median(row["epoch"]) for row in rows]
        (marks,) = time.plot(count, seconds, "o", label=label)
        offset, slope, _ = line(count, seconds)
        time.plot(count, offset + slope * count, "-", color=marks.get_color())
        memory.plot(count, _column(rows, "peak_bytes") / MIB, "o-", label=label)
    for axis, name in (time, "seconds per epoch"), (memory, "peak memory, MiB"):
        axis.set(xlabel="thousands of images of 64x64", ylabel=name, xlim=(0, 17.5))
        axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
    time.legend(frameon=False)
    memory.legend(frameon=False, loc="lower right")


def _work(results, *axes):
    for part, name, label in (("sizes", "size", "image side, batch 32"), ("batches", "batch", "batch, 32x32")):
        rows, (time, memory), axes = results[part], axes[:2], axes[2:]
        amount, cost = _column(rows, name), 1000 / _column(rows, "images_per_second")
        time.plot(amount, cost, "o-", label="measured")
        if part == "sizes":
            time.plot(amount, cost[-1] * (amount / amount[-1]) ** 2, "k:", label="proportional to pixels")
            time.set_yscale("log")
            time.legend(frameon=False)
        memory.plot(amount, _column(rows, "peak_bytes") / MIB, "o-")
        for axis in (time, memory):
            axis.set_xscale("log", base=2)
            axis.set_xticks(amount, [f"{value:.0f}" for value in amount])
            axis.set_xlabel(label)
        time.set_ylabel("ms per image")
        memory.set(ylabel="peak memory, MiB", ylim=(0, 1.1 * memory.get_ylim()[1]))
        if part == "batches":
            time.set_ylim(0, 1.1 * time.get_ylim()[1])


def _devices(results, left, right):
    rows = results["devices"]
    left.bar([str(row["devices"]) for row in rows], _column(rows, "images_per_second"))
    left.set(xlabel="simulated devices, total batch 64", ylabel="images per second")
    rows = results["processes"]
    names = [f"{row['model']}\n{row['processes']}" for row in rows]
    right.bar(names, 1000 * _column(rows, "step"), label="step")
    all_reduce = 1000 * _column(rows, "all_reduce")
    right.bar(names, all_reduce, label="one all-reduce of the parameters")
    right.set(xlabel="processes with one core and 32 images each", ylabel="ms")
    right.set_ylim(0, 1.4 * right.get_ylim()[1])
    right.legend(frameon=False, loc="upper left")
