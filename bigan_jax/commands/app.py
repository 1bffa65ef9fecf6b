"""The command `bigan-jax app`: a page in the browser that scores images with trained detectors, on this machine alone.

JAX is imported only after the arguments are checked.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from bigan_jax.errors import UserError
from bigan_jax.runtime.jax_setup import enable_compilation_cache
from bigan_jax.runtime.run_config import read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of app."""
    parser.add_argument("workdirs", nargs="+", metavar="RUN", help="folder of a run; several are compared")
    parser.add_argument("--port", type=int, default=0, help="of 127.0.0.1; 0 for any that is free (default: 0)")
    parser.add_argument(
        "--browser", action=argparse.BooleanOptionalAction, default=True, help="open the page in the browser"
    )


def run(values: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C. Raises UserError if a run is not finished, or the page cannot be served."""
    workdirs = [Path(workdir) for workdir in values.workdirs]
    for workdir in workdirs:
        read_config(workdir)
    if not all(map(importlib.util.find_spec, ("starlette", "uvicorn"))):
        raise UserError("the app requires Starlette and uvicorn: pip install 'bigan_jax[app]'.")
    enable_compilation_cache()
    from bigan_jax.commands.web.scoring import load_run
    from bigan_jax.commands.web.server import listen, serve

    with listen(values.port) as listener:
        serve([load_run(workdir) for workdir in workdirs], listener, values.browser)
    print("Stopped.")
    sys.stdout.flush()
    os._exit(0)  # without waiting for the thread that scores: a latent search may take a minute, and nothing is kept
