"""The command `bigan-jax export`: a trained detector as an artifact that runs without this package.

JAX is imported only after the arguments are checked.
"""

import argparse
import os
from pathlib import Path

from bigan_jax.errors import UserError
from bigan_jax.runtime.jax_setup import enable_compilation_cache
from bigan_jax.runtime.run_config import read_config

FORMATS = ("stablehlo", "onnx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of export."""
    parser.add_argument("workdir", metavar="RUN", help="folder of the run")
    parser.add_argument("--output", metavar="FILE", required=True, help="a new folder, or a new file that ends in .zip")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help="stablehlo runs with JAX, onnx with onnxruntime and others (default: %(default)s)",
    )


def run(values: argparse.Namespace) -> None:
    """Exports a run and checks the result. Raises UserError if one of the two is not possible."""
    workdir, output = Path(values.workdir), Path(values.output)
    read_config(workdir)
    require_new(output)
    # The check compares the last digits, which differ among devices, and another process may not share a TPU.
    os.environ["JAX_PLATFORMS"] = "cpu"
    enable_compilation_cache()
    from bigan_jax.commands.exporting.artifact import export

    checked = export(workdir, output, values.format)
    print(f"{output}: scores of {checked.images} calibration images differ by {checked.difference:.1e} at most")


def require_new(output: Path) -> None:
    """Raises UserError if the output exists: nothing is deleted or mixed with new files."""
    if output.exists():
        raise UserError(f"--output={output} exists. Use a new name.")
