"""Measures training steps and scoring against the same detectors in PyTorch.

    python -m benchmarks.steps [--models=cae,vae] [--batches=32,256] [--output=steps.json]

Reports images per second of a training step and of scoring for each of the ten detectors, and for
the same network, loss and optimizer in PyTorch (torch_models/): eager in channels_last, with
--torch=compiled under torch.compile, with --torch=eager,compiled both. On a GPU, use
--dtype=bfloat16 (autocast in PyTorch) as well.

- Training: full epochs of EpochRunner, as in a run; the step of each phase of the schedule in its
  first epoch, in which all its objectives are active.
- Scoring: reconstruction of a batch in inference mode and its score. For AnoGAN it is the latent
  search; --search-steps are timed and scaled to the number of the config.
- Both sides start from the same weights and see the same images. Nothing is timed unless their
  first losses and scores agree to 1e-3 (bfloat16: 5e-2).
- The sides run in processes of their own and take turns; the median is reported.
- Compilation is the time of the first step beyond that of another step (on an accelerator, of the
  first round).
- Memory is the peak resident memory while the process is timed (Linux; freed memory is returned
  first) minus that after the imports; on a GPU it is the number of the library's allocator.
- Floating-point operations come from the cost analysis of the compiled programs. They are compared
  with the rate of a large matrix product in the same run, the better of both sides.

A row during which other processes used more than a tenth of a core is marked. --output merges the
rows into those that the file has.
"""

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.sides import SCORE, OtherProcesses, Remote, Task, cores, processor

MODELS = ("fcae", "cae", "vae", "beta_vae", "cvae", "vqvae", "anogan", "ganomaly", "bigan", "improved_bigan")
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
QUIET = 0.1  # cores that other processes may use
PRODUCT = {"cpu": 2048, "gpu": 8192}  # side of the matrices


def measure(task: Task, options: argparse.Namespace, report=print) -> list[dict]:
    """Measures one detector and batch size.

    Args:
      task: what to measure.
      options: has `repeats`, `seconds`, `torch` and `phases`.
      report: called with each row of the table as text.

    Returns:
      A row for scoring and for each phase of the schedule.

    Raises:
      AssertionError: the sides compute different values.
    """
    with ExitStack() as stack:

        def start(module, name, task):
            side = Remote(f"benchmarks.{module}", name, task)
            stack.callback(side.close)
            return side

        jax_side = start("jax_side", "JaxSide", task)
        description = jax_side("describe")
        torch_sides = {
            mode: start("torch_side", "TorchSide", task._replace(compiled=mode == "compiled")) for mode in options.torch
        }
        versions = [side("build", description) for side in torch_sides.values()]
        all_sides = {"jax": jax_side, **torch_sides}
        size = PRODUCT.get(description["platform"], PRODUCT["gpu"])
        rates = {name: side("product_rate", size) for name, side in all_sides.items()}
        common = {
            "model": task.config,
            "batch": task.batch,
            "size": task.size,
            "dtype": task.dtype,
            "machine": machine(description["device"]),
            "jax": description["jax"],
            "torch": versions[0]["torch"] if versions else None,
            "product_rate": rates,
        }
        rows = []
        for phase in [SCORE, *description["active"]]:
            if options.phases and phase not in options.phases:
                continue
            layers, tolerance = description["layers"], TOLERANCE[task.dtype]
            first = first_seconds(phase, jax_side, torch_sides, layers, tolerance)
            scale = 1.0
            if phase == SCORE and description["search_steps"]:
                scale = task.search_steps / description["search_steps"]
            row = common | {"step": phase, "active": description["active"].get(phase, [])}
            row |= alternate(phase, all_sides, first, scale * task.batch, description, options)
            row["flops"] = {name: side("flops", phase) / scale for name, side in all_sides.items()}
            add_ratios(row)
            report(line(row))
            rows.append(row)
        return rows


def first_seconds(phase, jax_side, torch_sides, layers, tolerance):
    """The seconds of each side's first step or scores, after asserting that their values agree."""
    if phase == SCORE:
        reference = jax_side("first_scores")
        codes = [reference["codes"]] if "codes" in reference else []
        others = {mode: side("first_scores", *codes) for mode, side in torch_sides.items()}
    else:
        reference = jax_side("first_step", phase)
        arguments = phase, layers, reference["noise"]
        others = {mode: side("first_step", *arguments) for mode, side in torch_sides.items()}
    for mode, other in others.items():
        values = "scores" if phase == SCORE else "losses"
        assert_agreement(f"{phase}, PyTorch {mode}", reference[values], other[values], tolerance)
    return {"jax": reference["seconds"], **{mode: o["seconds"] for mode, o in others.items()}}


def assert_agreement(name, reference, other, tolerance):
    """Asserts that losses by name, or arrays of scores, agree."""
    if not isinstance(reference, dict):
        reference, other = {"scores": reference}, {"scores": other}
    assert reference.keys() == other.keys(), (name, reference.keys(), other.keys())
    for key, value in reference.items():
        np.testing.assert_allclose(other[key], value, rtol=tolerance, atol=tolerance, err_msg=f"{name}: {key}")


def alternate(phase, all_sides, first, images, description, options):
    """Times the sides in turn: seconds per step of `images` images, compilation and memory."""
    run = ("scores",) if phase == SCORE else ("steps", phase)
    count = description["steps_per_round"]
    warm = {name: side(*run, count) / count for name, side in all_sides.items()}
    if description["platform"] == "cpu":
        count = max(1, int(options.seconds / options.repeats / sum(warm.values())))
    for side in all_sides.values():
        side("forget_peak")
    seconds = {name: [] for name in all_sides}
    others = OtherProcesses(lambda: sum(side("processor_seconds") for side in all_sides.values()))
    for _ in range(options.repeats):
        for name, side in all_sides.items():
            seconds[name].append(side(*run, count) / count)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "steps_per_round": count,
        "seconds": seconds,
        "other_cores": others.cores(),
        "images_per_second": {name: images / median[name] for name in all_sides},
        "compile_seconds": {name: max(0.0, first[name] - median[name]) for name in all_sides},
        "peak_bytes": {name: side("peak") for name, side in all_sides.items()},
    }


def add_ratios(row):
    """Adds the ratio to the faster PyTorch variant and the fraction of the peak rate."""
    rates = row["images_per_second"]
    torch_rates = [rate for name, rate in rates.items() if name != "jax"]
    row["ratio"] = rates["jax"] / max(torch_rates) if torch_rates else None
    row["gflop_per_image"] = row["flops"]["jax"] / row["batch"] / 1e9
    peak = max(row["product_rate"].values())
    row["fraction_of_peak"] = row["gflop_per_image"] * 1e9 * rates["jax"] / peak


# --- output ---------------------------------------------------------------------------------------

HEADER = (
    "| model | step | batch | images/s | PyTorch | ratio | compile s | memory MiB "
    "| PyTorch's | GFLOP per image | of peak |\n"
    "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |"
)


def line(row):
    """A row of the table."""

    def others(values, as_text):
        return ", ".join(as_text(value) for name, value in values.items() if name != "jax") or "-"

    def number(x):
        return f"{x:.3g}" if x < 100 else f"{x:.0f}"

    def mebibytes(x):
        return f"{x / 2**20:.0f}"

    cells = [
        row["model"],
        row["step"],
        str(row["batch"]),
        number(row["images_per_second"]["jax"]),
        others(row["images_per_second"], number),
        f"{row['ratio']:.2f}" if row["ratio"] else "-",
        f"{row['compile_seconds']['jax']:.1f}",
        mebibytes(row["peak_bytes"]["jax"]),
        others(row["peak_bytes"], mebibytes),
        number(row["gflop_per_image"]),
        f"{100 * row['fraction_of_peak']:.0f} %",
    ]
    if disturbed(row):
        cells[0] += f" (other processes: {row['other_cores']:.1f} cores)"
    return f"| {' | '.join(cells)} |"


def disturbed(row):
    """Whether other processes kept the machine busy."""
    return (row["other_cores"] or 0) > QUIET


def key(row):
    """What a row measures; rows with equal keys replace each other."""
    return row["model"], row["batch"], row["size"], row["dtype"], row["step"]


def merge_rows(path: Path, rows: list[dict]) -> None:
    """Merges the rows into those of the file, in the order of the models."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    merged = {key(row): row for row in [*known, *rows]}
    ordered = sorted(merged.values(), key=lambda row: (row["batch"], MODELS.index(row["model"])))
    path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def machine(device):
    """Describes the processor, its cores, and the device of JAX."""
    return f"{processor()}, {cores()} cores, {device}"


def make_parser() -> argparse.ArgumentParser:
    """The parser of the options, also used by check.py and profile.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def names(text):
        return tuple(text.split(","))

    parser.add_argument("--models", type=names, default=MODELS)
    parser.add_argument("--batches", type=lambda t: tuple(map(int, names(t))), default=(32, 256))
    parser.add_argument("--phases", type=names, default=(), help="phase1, phase2, score; default: all")
    parser.add_argument("--size", type=int, default=128, help="image side in pixels")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32", help="dtype of computation")
    parser.add_argument("--torch", type=names, default=("eager",), help="eager,compiled or none")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each side")
    parser.add_argument("--seconds", type=float, default=20, help="duration of a measurement on a CPU")
    parser.add_argument("--search-steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0, help="processor cores; 0: all")
    parser.add_argument("--platform", default="", help="cpu: ignore accelerators")
    parser.add_argument("--vgg16", default="", help="file of VGG16 weights; default: the installed package")
    parser.add_argument("--quick", action="store_true", help="smoke test: 64x64, batches of 8")
    parser.add_argument("--output", type=Path, help="JSON file of rows")
    return parser


def parse(parser, arguments=None):
    """Parses and checks the options."""
    options = parser.parse_args(arguments)
    if unknown := set(options.models) - set(MODELS):
        parser.error(f"unknown model {', '.join(sorted(unknown))}; the models are {', '.join(MODELS)}")
    options.torch = tuple(mode for mode in options.torch if mode != "none")
    if unknown := set(options.torch) - {"eager", "compiled"}:
        parser.error(f"--torch must be eager, compiled or none (got {', '.join(sorted(unknown))})")
    if options.quick:
        options.size, options.batches, options.repeats, options.seconds = 64, (8,), 2, 1.0
    return options


def tasks(options):
    """The tasks of the options, ordered by batch size."""
    return [
        Task(
            config=model,
            size=options.size,
            batch=batch,
            dtype=options.dtype,
            platform=options.platform,
            threads=options.threads,
            search_steps=options.search_steps,
            changes={"vgg16.weights": options.vgg16},
        )
        for batch in options.batches
        for model in options.models
    ]


def main(arguments=None):
    options = parse(make_parser(), arguments)
    print(HEADER)
    for task in tasks(options):
        rows = measure(task, options, lambda text: print(text, flush=True))
        if options.output:
            merge_rows(options.output, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
