"""Measures patch_gaussian and memory_bank next to anomalib's PaDiM and PatchCore: detection, fit and scoring.

    pip install anomalib
    python -m benchmarks.fitted --data=DIR [--category=bottle] [--sizes=256,128] [--repeats=3] [--coreset=0.01]

DIR is MVTec AD. Both sides get the same decoded images, the same training images and the same VGG16 with the weights of
this library: nothing is timed unless their features agree to 1e-3. The layers are relu2_2, relu3_3 and relu4_3. VGG16
is not the network that anomalib uses by default, a ResNet.

- Cells: this library has 16x16. anomalib's are those of a layer: a quarter of the image's side for PaDiM (relu3_3) and
  an eighth for PatchCore (relu4_3), as in the papers.
- PaDiM draws as many channels as patch_gaussian has components. memory_bank keeps 5,000 patches of 50,000. PatchCore
  chooses among all patches and keeps 1 % of them, the smallest share in its paper; anomalib's default is 10 %, which
  takes ten times as long to choose.
- Batches of 32 in float32. anomalib's models run without Lightning, loaders and metrics. Image scores, and maps of the
  image's size, are part of scoring.
- The sides run in processes of their own and take turns. Fits are the first ones and include compilation. Scoring is
  the median of the repeats, after a batch that compiles. Processor seconds, of all threads of a side, change less with
  other load.
"""

import argparse
import importlib.util
import statistics
import sys
from contextlib import ExitStack, closing

import numpy as np

from benchmarks import sides
from benchmarks.sides import OtherProcesses, Remote, Task
from bigan_jax.metrics.image import auroc
from bigan_jax.metrics.pixel import pixel_metrics

PAIRS = {"patch_gaussian": "padim", "memory_bank": "patchcore"}
TOLERANCE = 1e-3  # of features, relative to the largest
HEADER = """
| size | model | image AUROC | pixel AUROC | AUPRO | fit, s | fit, processor s | images/s | processor ms/image |
| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def measure(task: Task, options: argparse.Namespace) -> None:
    """Prints the rows of one image size."""
    with ExitStack() as stack:
        jax_side, torch_side = (
            stack.enter_context(closing(Remote(f"benchmarks.{module}", name, task)))
            for module, name in (("fitted_side", "FittedSide"), ("anomalib_side", "AnomalibSide"))
        )
        described = jax_side("describe")
        versions = torch_side("build", described["weights"], described["components"], options.coreset)
        train, test = thin(described["train"], options.images), described["test"]
        test = {name: thin(values, options.images) for name, values in test.items()}
        require_equal_features(*(side("features", train[:2]) for side in (jax_side, torch_side)))
        print(f"\n{len(train)} training and {len(test['label'])} test images, {described['device']}", end=", ")
        print(f"{sides.cores()} cores of {sides.processor()}, JAX {described['version']}", end=", ")
        print(", ".join(f"{name} {version}" for name, version in versions.items()))
        print(HEADER)
        others = OtherProcesses(lambda: sum(side("processor_seconds") for side in (jax_side, torch_side)))
        for pair in PAIRS.items():
            contestants = dict(zip(pair, (jax_side, torch_side), strict=True))
            fits = {name: side("fit", name, train) for name, side in contestants.items()}
            for name, side in contestants.items():  # compiles
                side("score", name, test["image"][: task.batch])
            rounds = [
                {name: side("score", name, test["image"]) for name, side in contestants.items()}
                for _ in range(options.repeats)
            ]
            print_pair(task.size, test, fits, rounds)
        if (busy := others.cores()) is not None:
            print(f"\nOther processes used {busy:.1f} cores on average.")


def thin(values, count):
    """At most `count` values, evenly spaced, so that both classes are among them; 0: all."""
    return values[np.linspace(0, len(values) - 1, min(count or len(values), len(values))).astype(int)]


def require_equal_features(ours, theirs) -> None:
    """Raises AssertionError if the networks of the sides differ."""
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(their, our, rtol=0, atol=TOLERANCE * np.abs(our).max())


def print_pair(size, test, fits, rounds) -> None:
    """Prints the rows of two models, and how many times as fast the first is."""
    known, rows = test["has_mask"], {}
    for name, fit in fits.items():
        result, count = rounds[0][name], len(test["label"])
        pixels = pixel_metrics(result["map"][known], test["mask"][known])
        wall, processor = (statistics.median(r[name][kind] for r in rounds) for kind in ("seconds", "processor"))
        area = auroc(result["score"], test["label"])
        rows[name] = fit["seconds"], fit["processor"], wall, processor
        print(
            f"| {size} | {name} | {area:.4f} | {pixels['auroc']:.4f} | {pixels['aupro']:.4f} | {fit['seconds']:.1f} "
            f"| {fit['processor']:.1f} | {count / wall:.1f} | {1e3 * processor / count:.1f} |"
        )
    ours, theirs = rows.values()
    ratios = [f"{their / our:.2f}" for our, their in zip(ours, theirs, strict=True)]
    print(f"| {size} | times as fast | | | | {' | '.join(ratios)} |", flush=True)


def make_parser():
    def integers(text):
        return tuple(map(int, text.split(",")))

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of MVTec AD")
    parser.add_argument("--category", default="bottle")
    parser.add_argument("--sizes", type=integers, default=(256, 128), help="sides of images in pixels")
    parser.add_argument("--repeats", type=int, default=3, help="scorings of the test images by each model")
    parser.add_argument("--coreset", type=float, default=0.01, help="share of the patches that PatchCore keeps")
    parser.add_argument("--images", type=int, default=0, help="images of each split, for a smoke test; 0: all")
    parser.add_argument("--threads", type=int, default=0, help="processor cores; 0: all")
    return parser


def main(arguments=None):
    options = make_parser().parse_args(arguments)
    if importlib.util.find_spec("anomalib") is None:
        print("Skipped: anomalib is not installed. Run pip install anomalib first.")
        return 0
    changes = {"data.dir": options.data, "data.category": options.category}
    for size in options.sizes:
        task = Task("", size=size, platform="cpu", threads=options.threads, changes=changes)
        measure(task, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
