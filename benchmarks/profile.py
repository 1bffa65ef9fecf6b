"""python -m benchmarks.profile [--models=cae,vae] [--phases=phase2] [--count=3]

Where a training step's time goes, ours and eager PyTorch's, on one core, so that what runs at once
does not hide in a sum: matrix products and convolutions, copies (transposed, padded, gathered), and
the rest (activations, BatchNorm, losses, the optimizer). By the profilers of both; a step's whole
time without one stands beside.
"""

import sys

from benchmarks import operations, steps
from benchmarks.sides import Remote

HEADER = (
    "| model | step | whole, ms | products | copies | the rest "
    "| PyTorch, ms | products | copies | the rest |\n"
    "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |"
)


def measure(task, how, say=print):
    """Says a line for each phase of a detector's schedule.

    how: count, of the steps that are profiled, and phases.
    """
    ours = Remote("benchmarks.jax_side", "JaxSide", task)
    theirs = Remote("benchmarks.torch_side", "TorchSide", task)
    try:
        described = ours("describe")
        theirs("build", described)
        for phase in how.phases or described["due"]:
            cells = [task.config, phase]
            for side in ours, theirs:
                side("steps", phase, 1)
                whole = side("steps", phase, how.count) / how.count
                spent = side("profile", phase, how.count)
                seconds = [whole, *(spent.get(kind, 0.0) for kind in operations.KINDS)]
                cells += [f"{1000 * value:.0f}" for value in seconds]
            say(f"| {' | '.join(cells)} |")
    finally:
        ours.close()
        theirs.close()


def main(given=None):
    options = steps.parser()
    options.description = __doc__
    options.add_argument("--count", type=int, default=3, help="steps that are profiled")
    options.set_defaults(batches=(32,), platform="cpu", threads=1)
    how = steps.arguments(options, given)
    print(HEADER)
    for task in steps.tasks(how):
        measure(task, how, lambda text: print(text, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
