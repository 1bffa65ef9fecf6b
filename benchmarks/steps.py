"""python -m benchmarks.steps [--models=cae,vae] [--batches=32,256] [--output=steps.json]

Pictures a second of a training step and of scoring, for each of the ten detectors, beside the same
network, loss and optimizer in PyTorch (torch_models/): eager in channels_last, and under
torch.compile with --torch=compiled, or both by --torch=eager,compiled. On a GPU take
--dtype=bfloat16 (autocast there) as well.

Our step is timed through whole epochs of parallel.Runner, as training runs it, the step of each
phase of the schedule in its first epoch, in which all that takes part is due. Scoring is a batch's
reconstruction in inference mode and its common score; for AnoGAN the search, of which
--search-steps are timed and the config's number is reckoned. Both sides start from the same weights
and see the same pictures, and unless their first losses and scores agree to 1e-3 (bfloat16: 5e-2)
nothing is timed. They take turns, each in a process of its own, and medians count.

Compilation is what the first step takes beyond another one (on an accelerator the first turn).
Memory is the peak of the process's resident memory while it is timed (Linux; freed memory is handed
back before), less what it was with the libraries imported; on a GPU what the library's own
allocator says. Floating-point operations are those of the compiled programs' cost analysis; the
peak they are compared with is that of a large matrix product in the same run, the better side's. A
row that others on the machine disturbed (more than a tenth of a core, over its measurement) is
marked. --output keeps the rows that it has of other measurements.
"""

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.sides import SCORE, Bystanders, Remote, Task, cores, processor

MODELS = (
    "fcae",
    "cae",
    "vae",
    "beta_vae",
    "cvae",
    "vqvae",
    "anogan",
    "ganomaly",
    "bigan",
    "improved_bigan",
)
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
QUIET = 0.1  # cores that others may use
PRODUCT = {"cpu": 2048, "gpu": 8192}  # size of the matrix product


def measure(task: Task, how: argparse.Namespace, say=print) -> list[dict]:
    """The rows of one detector and batch size: one for each phase of its schedule, one for scoring.

    how: repeats, seconds, torch, phases.
    Raises AssertionError where the sides compute different things.
    """
    with ExitStack() as stack:

        def start(module, name, task):
            side = Remote(f"benchmarks.{module}", name, task)
            stack.callback(side.close)
            return side

        ours = start("jax_side", "JaxSide", task)
        described = ours("describe")
        theirs = {
            way: start("torch_side", "TorchSide", task._replace(compiled=way == "compiled"))
            for way in how.torch
        }
        built = [side("build", described) for side in theirs.values()]
        all_sides = {"jax": ours, **theirs}
        size = PRODUCT.get(described["platform"], PRODUCT["gpu"])
        rates = {name: side("product_rate", size) for name, side in all_sides.items()}
        common = {
            "model": task.config,
            "batch": task.batch,
            "size": task.size,
            "dtype": task.dtype,
            "machine": machine(described["device"]),
            "jax": described["jax"],
            "torch": built[0]["torch"] if built else None,
            "product_rate": rates,
        }
        rows = []
        for phase in [SCORE, *described["due"]]:
            if how.phases and phase not in how.phases:
                continue
            first = begin(phase, ours, theirs, described["layers"], TOLERANCE[task.dtype])
            scale = 1.0
            if phase == SCORE and described["search_steps"]:
                scale = task.search_steps / described["search_steps"]
            row = common | {"step": phase, "due": described["due"].get(phase, [])}
            row |= alternate(phase, all_sides, first, scale * task.batch, described, how)
            row["flops"] = {name: side("flops", phase) / scale for name, side in all_sides.items()}
            finish(row)
            say(line(row))
            rows.append(row)
        return rows


def begin(phase, ours, theirs, layers, tolerance):
    """The first step or scores of each side, which have to agree. Returns their seconds."""
    if phase == SCORE:
        mine = ours("first_scores")
        given = [mine["codes"]] if "codes" in mine else []
        others = {way: side("first_scores", *given) for way, side in theirs.items()}
    else:
        mine = ours("first_step", phase)
        others = {w: s("first_step", phase, layers, mine["noise"]) for w, s in theirs.items()}
    for way, other in others.items():
        what = "scores" if phase == SCORE else "losses"
        assert_agreement(f"{phase}, PyTorch {way}", mine[what], other[what], tolerance)
    return {"jax": mine["seconds"], **{way: other["seconds"] for way, other in others.items()}}


def assert_agreement(where, mine, theirs, tolerance):
    """Losses by name, or an array of scores."""
    if not isinstance(mine, dict):
        mine, theirs = {"scores": mine}, {"scores": theirs}
    assert mine.keys() == theirs.keys(), (where, mine.keys(), theirs.keys())
    for name, value in mine.items():
        np.testing.assert_allclose(
            theirs[name], value, rtol=tolerance, atol=tolerance, err_msg=f"{where}: {name}"
        )


def alternate(phase, all_sides, first, pictures, described, how):
    """A B A B ...: each side's seconds a step, compilation and memory. pictures: in a step."""
    run = ("scores",) if phase == SCORE else ("steps", phase)
    count = described["steps_a_turn"]
    warm = {name: side(*run, count) / count for name, side in all_sides.items()}
    if described["platform"] == "cpu":
        count = max(1, int(how.seconds / how.repeats / sum(warm.values())))
    for side in all_sides.values():
        side("forget_peak")
    seconds = {name: [] for name in all_sides}
    others = Bystanders(lambda: sum(side("processor_seconds") for side in all_sides.values()))
    for _ in range(how.repeats):
        for name, side in all_sides.items():
            seconds[name].append(side(*run, count) / count)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "steps_a_turn": count,
        "seconds": seconds,
        "bystanders": others.cores(),
        "pictures_per_second": {name: pictures / median[name] for name in all_sides},
        "compile_seconds": {name: max(0.0, first[name] - median[name]) for name in all_sides},
        "peak_bytes": {name: side("peak") for name, side in all_sides.items()},
    }


def finish(row):
    """What follows from the measurements: ratio to the faster PyTorch, and how much of the peak."""
    rates = row["pictures_per_second"]
    rivals = [rate for name, rate in rates.items() if name != "jax"]
    row["ratio"] = rates["jax"] / max(rivals) if rivals else None
    row["gflop_a_picture"] = row["flops"]["jax"] / row["batch"] / 1e9
    peak = max(row["product_rate"].values())
    row["share_of_peak"] = row["gflop_a_picture"] * 1e9 * rates["jax"] / peak


# --- what is seen of it ---------------------------------------------------------------------------

HEADER = (
    "| model | step | batch | pictures/s | PyTorch | ratio | compile s | memory MiB "
    "| PyTorch's | GFLOP a picture | of peak |\n"
    "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |"
)


def line(row):
    """A row of the table."""

    def others(values, form):
        return ", ".join(form(value) for name, value in values.items() if name != "jax") or "-"

    def number(x):
        return f"{x:.3g}" if x < 100 else f"{x:.0f}"

    def mebibytes(x):
        return f"{x / 2**20:.0f}"

    cells = [
        row["model"],
        row["step"],
        str(row["batch"]),
        number(row["pictures_per_second"]["jax"]),
        others(row["pictures_per_second"], number),
        f"{row['ratio']:.2f}" if row["ratio"] else "-",
        f"{row['compile_seconds']['jax']:.1f}",
        mebibytes(row["peak_bytes"]["jax"]),
        others(row["peak_bytes"], mebibytes),
        number(row["gflop_a_picture"]),
        f"{100 * row['share_of_peak']:.0f} %",
    ]
    if disturbed(row):
        cells[0] += f" (others: {row['bystanders']:.1f} cores)"
    return f"| {' | '.join(cells)} |"


def disturbed(row):
    """Whether others kept the machine busy meanwhile."""
    return (row["bystanders"] or 0) > QUIET


def key(row):
    """What is measured: a newer row of the same takes the older one's place."""
    return row["model"], row["batch"], row["size"], row["dtype"], row["step"]


def keep(path: Path, rows: list[dict]) -> None:
    """Writes the rows among those that the file has, in the order of the models."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    merged = {key(row): row for row in [*known, *rows]}
    ordered = sorted(merged.values(), key=lambda row: (row["batch"], MODELS.index(row["model"])))
    path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def machine(device):
    """The processor, how much of it, and what JAX computes on."""
    return f"{processor()}, {cores()} cores, {device}"


def parser():
    """The options, which check.py has as well."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(text):
        return tuple(text.split(","))

    options.add_argument("--models", type=names, default=MODELS)
    options.add_argument("--batches", type=lambda t: tuple(map(int, names(t))), default=(32, 256))
    options.add_argument("--phases", type=names, default=(), help="phase1, phase2, score; all")
    options.add_argument("--size", type=int, default=128, help="pixels a side")
    options.add_argument("--dtype", choices=TOLERANCE, default="float32", help="of computation")
    options.add_argument("--torch", type=names, default=("eager",), help="eager,compiled or none")
    options.add_argument("--repeats", type=int, default=5, help="turns of each side")
    options.add_argument("--seconds", type=float, default=20, help="of a measurement, on a CPU")
    options.add_argument("--search-steps", type=int, default=4)
    options.add_argument("--threads", type=int, default=0, help="processor cores; 0: all")
    options.add_argument("--platform", default="", help="cpu keeps off an accelerator")
    options.add_argument("--vgg16", default="", help="its weights; the installed package's")
    options.add_argument("--quick", action="store_true", help="64x64, batches of 8: does it run?")
    options.add_argument("--output", type=Path, help="a JSON file of rows")
    return options


def arguments(options, given=None):
    """The parsed options."""
    how = options.parse_args(given)
    if unknown := set(how.models) - set(MODELS):
        options.error(f"there is no model {', '.join(sorted(unknown))}: {', '.join(MODELS)}")
    how.torch = tuple(way for way in how.torch if way != "none")
    if unknown := set(how.torch) - {"eager", "compiled"}:
        options.error(f"--torch is eager, compiled or none, not {', '.join(sorted(unknown))}")
    if how.quick:
        how.size, how.batches, how.repeats, how.seconds = 64, (8,), 2, 1.0
    return how


def tasks(how):
    """What the options ask for, batch by batch."""
    return [
        Task(
            config=model,
            size=how.size,
            batch=batch,
            dtype=how.dtype,
            platform=how.platform,
            threads=how.threads,
            search_steps=how.search_steps,
            changes={"vgg16.weights": how.vgg16},
        )
        for batch in how.batches
        for model in how.models
    ]


def main(given=None):
    how = arguments(parser(), given)
    print(HEADER)
    for task in tasks(how):
        rows = measure(task, how, lambda text: print(text, flush=True))
        if how.output:
            keep(how.output, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
