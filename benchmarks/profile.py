"""Profiles a training step in JAX and in eager PyTorch by kind of operation.

    python -m benchmarks.profile [--models=cae,vae] [--phases=phase2] [--count=3]

Kinds are matrix products and convolutions, copies (transposing, padding, gathering), and the rest
(activations, BatchNorm, losses, the optimizer). Both sides use their own profiler on one core, so
that concurrent operations do not overlap; the total is measured without a profiler.
"""

import sys

from benchmarks import operations, steps
from benchmarks.sides import Remote

HEADER = (
    "| model | step | total, ms | products | copies | the rest "
    "| PyTorch, ms | products | copies | the rest |\n"
    "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |"
)


def measure(task, options, report=print):
    """Reports a line for each phase of the schedule; `options` has `count` (steps) and `phases`."""
    jax_side = Remote("benchmarks.jax_side", "JaxSide", task)
    torch_side = Remote("benchmarks.torch_side", "TorchSide", task)
    try:
        description = jax_side("describe")
        torch_side("build", description)
        for phase in options.phases or description["active"]:
            cells = [task.config, phase]
            for side in jax_side, torch_side:
                side("steps", phase, 1)
                total = side("steps", phase, options.count) / options.count
                seconds_by_kind = side("profile", phase, options.count)
                seconds = [total, *(seconds_by_kind.get(kind, 0.0) for kind in operations.KINDS)]
                cells += [f"{1000 * value:.0f}" for value in seconds]
            report(f"| {' | '.join(cells)} |")
    finally:
        jax_side.close()
        torch_side.close()


def main(arguments=None):
    parser = steps.make_parser()
    parser.description = __doc__
    parser.add_argument("--count", type=int, default=3, help="number of steps to profile")
    parser.set_defaults(batches=(32,), platform="cpu", threads=1)
    options = steps.parse(parser, arguments)
    print(HEADER)
    for task in steps.tasks(options):
        measure(task, options, lambda text: print(text, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
