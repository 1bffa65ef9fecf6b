"""The command `bigan-jax doctor`: versions, devices, caches, weights and disk of this machine, and what is wrong."""

import argparse
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import bigan_jax
from bigan_jax.data.files.folders import local_folder, tfds_data_dir
from bigan_jax.errors import UserError, one_line
from bigan_jax.runtime.files import user_cache_dir
from bigan_jax.runtime.jax_setup import enable_compilation_cache, unavailable_platforms
from bigan_jax.runtime.run_config import package_version

_SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")
_MIN_FREE = 2**30  # bytes: less may not hold the checkpoints of a run
_REQUIREMENT = re.compile(r"([\w.-]+)")


class Finding(NamedTuple):
    """A line of the report."""

    name: str
    value: str
    problem: str = ""  # and how to solve it


def run(_: argparse.Namespace) -> int:
    """Prints a report and returns the exit status: 1 if there is a problem."""
    checks = {"Versions": versions, "Devices": devices, "Caches": caches, "Weights": weights, "Disk": disk}
    problems = []
    for title, check in checks.items():
        print(f"{title}:", flush=True)
        for name, value, problem in check():
            print(f"  {'!' if problem else ' '} {name}: {value}", flush=True)
            problems += [problem] * bool(problem)
    print("\n".join([f"\n{len(problems)} problems:", *problems]) if problems else "\nNo problem found.")
    return 1 if problems else 0


def versions() -> Iterator[Finding]:
    """Versions of Python and the main packages, and required packages that are missing."""
    yield Finding("Python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield Finding("bigan_jax", f"{bigan_jax.__version__} in {Path(bigan_jax.__file__).parent}")
    yield Finding("packages", ", ".join(f"{name} {package_version(name)}" for name in _SHOWN))
    missing, extras = [], {}
    for line in _requirements():
        name, _, marker = line.partition(";")
        name = name.strip()
        package = _REQUIREMENT.match(name)[0]  # pyright: ignore[reportOptionalSubscript]  # a name comes first
        if extra := re.search(r"extra == ['\"](\w+)['\"]", marker):
            if package not in ("jax", "bigan_jax"):
                extras.setdefault(extra[1], []).append(_is_installed(package))
        elif not _is_installed(package) and "win32" not in marker:
            missing.append(package)
    installed = [name for name, found in extras.items() if all(found)]
    yield Finding("extras with all packages", ", ".join(installed) or "none")
    if missing:
        problem = f"Packages are missing: pip install {' '.join(missing)}"
        yield Finding("missing", ", ".join(missing), problem)


def devices() -> Iterator[Finding]:
    """The devices on which JAX computes."""
    try:
        import jax

        found = jax.devices()
    except Exception as error:  # of any kind: a driver or a library does not fit
        problem = unavailable_platforms() or f"JAX finds no device: {one_line(error, 300)}."
        yield Finding("JAX", "no device", problem)
        return
    for device in found:
        limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
        yield Finding(str(device), device.device_kind + (f", {_size(limit)} for JAX" if limit else ""))
    yield Finding("CPU cores", str(os.cpu_count()))
    if found[0].platform == "cpu" and shutil.which("nvidia-smi") and os.environ.get("JAX_PLATFORMS") != "cpu":
        problem = "There is an NVIDIA driver, but JAX uses the CPU: pip install 'jax[cuda12]' or 'jax[cuda13]'."
        yield Finding("GPU", "not used", problem)


def caches() -> Iterator[Finding]:
    """The folders of compiled programs and of prepared data."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    try:
        if not folder:
            folder = str(user_cache_dir() / "programs")
            enable_compilation_cache(folder)
        files = [path for path in Path(folder).glob("*-cache") if path.is_file()]
        size = _size(sum(path.stat().st_size for path in files))
        yield Finding("compiled programs", f"{folder} ({len(files)} programs, {size})")
    except (UserError, OSError) as error:
        yield Finding("compiled programs", folder, f"Programs are compiled at each start: {error}")
    data = tfds_data_dir("")
    yield Finding("prepared data", f"{data} ({'exists' if data.exists() else 'made by the first run on a folder'})")


def weights() -> Iterator[Finding]:
    """The weights of VGG16, for the perceptual loss and score."""
    from bigan_jax.nn.vgg16.weights import load_weights

    try:
        loaded = load_weights()
        yield Finding("VGG16", f"found ({loaded.convention} convention)")
    except UserError as error:
        yield Finding("VGG16", "missing", f"improved_bigan trains with no_perceptual only: {error}")


def disk() -> Iterator[Finding]:
    """The free space of each disk that runs write to."""
    folders = {"runs": Path.cwd(), "cache": user_cache_dir(), "temporary files": Path(tempfile.gettempdir())}
    if data := local_folder(tfds_data_dir("")):
        folders["prepared data"] = Path(data)
    for name, folder in folders.items():
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        problem = f"{existing} has less than {_size(_MIN_FREE)} free: free some space." if free < _MIN_FREE else ""
        if not os.access(existing, os.W_OK):
            problem = f"{existing} is not writable: choose another folder."
        yield Finding(name, f"{_size(free)} free in {existing}", problem)


def _requirements():
    try:
        return metadata.requires("bigan_jax") or ()
    except metadata.PackageNotFoundError:  # a checkout that is on the path
        return ()


def _is_installed(package):
    return package_version(package) != "not installed"


def _size(n_bytes):
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"
