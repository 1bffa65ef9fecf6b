"""The region of interest of a run: its folder keeps a copy, so that evaluation, prediction and export need no other."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from bigan_jax.data.roi import read_roi
from bigan_jax.errors import UserError
from bigan_jax.runtime.files import write_atomic
from bigan_jax.runtime.run_config import read_config

FILE = "roi.png"  # in the folder of a run with config.data.roi


def require_same_roi(workdir: Path, file: str | os.PathLike) -> None:
    """Raises UserError if the run in a folder has another region than that of a file; "" is none."""
    if (workdir / "config.json").exists():
        there = read_roi(workdir / FILE) if read_config(workdir).data.get("roi") else None
        if not np.array_equal(there, read_roi(file) if file else None):  # pyright: ignore[reportArgumentType]
            hint = f"Use --config.data.roi={workdir / FILE}" if there is not None else "Leave config.data.roi out"
            raise UserError(f"{workdir} was trained with another region of interest. {hint}, or use another --workdir.")


def write_roi(workdir: Path, file: str | os.PathLike) -> None:
    """Copies a region to the folder of a run, unless it is there. Raises UserError if it cannot be written."""
    if file and not (workdir / "config.json").exists():
        Image.fromarray(read_roi(file)).save(content := io.BytesIO(), "PNG")
        write_atomic(workdir / FILE, content.getvalue())
