"""A plain installation has all files of the package and imports nothing that only tests need."""

import subprocess
import sys
import tomllib
from importlib import metadata

import numpy as np
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from tests.helpers.runs import ROOT, environment, flags

RUN = """
import runpy, sys
try:
    runpy.run_path("launch.py", run_name="__main__")
except SystemExit as end:
    assert not end.code, end
print("loaded:", *{name.partition(".")[0] for name in sys.modules})
"""


def test_pyproject_lists_every_package_and_data_file():
    """Setuptools installs only the listed packages and the data files that match a pattern."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {"bigan_jax.configs": ROOT / config["package-dir"]["bigan_jax.configs"]}
    for file in (ROOT / "bigan_jax").rglob("__init__.py"):
        folders[".".join(file.parent.relative_to(ROOT).parts)] = file.parent
    assert sorted(config["packages"]) == sorted(folders)

    installed = {file for folder in folders.values() for file in folder.glob("*.py")}
    for package, patterns in config["package-data"].items():
        matches = [set(folders[package].glob(pattern)) for pattern in patterns]
        assert all(matches)
        installed.update(*matches)
    files = {*(ROOT / "bigan_jax").rglob("*"), *(ROOT / "configs").rglob("*")}
    assert installed == {p for p in files if p.is_file() and "__pycache__" not in p.parts}


def requirements(name, extras=()):
    """Returns the distributions that an installed one requires, directly or indirectly."""
    seen, pending = set(), [(name, tuple(extras))]
    while pending:
        name, extras = item = pending.pop()
        if item in seen:
            continue
        seen.add(item)
        try:
            lines = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:  # for another system, or of an extra
            continue
        for line in map(Requirement, lines):
            if not line.marker or any(line.marker.evaluate({"extra": e}) for e in ("", *extras)):
                pending.append((canonicalize_name(line.name), tuple(sorted(line.extras))))
    return {name for name, _ in seen}


def test_run_on_a_folder_imports_no_extra(tmp_path):
    """Prepared data, training and report. A library of the `test` extra would hide that a plain
    installation lacks it."""
    (tmp_path / "images").mkdir()
    for i, noise in enumerate(np.random.default_rng(0).integers(0, 256, (24, 16, 16), np.uint8)):
        Image.fromarray(noise).save(tmp_path / "images" / f"{i}.png")
    fields = {"data.image_size": 16, "model.hidden": (8, 4), "phases.phase1.epochs": 1}
    fields |= {"data.dir": tmp_path / "images", "data.tfds_dir": tmp_path / "data"}
    arguments = ["--config=configs/fcae.py:folder", f"--workdir={tmp_path / 'run'}", *flags(fields)]
    result = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    loaded = result.stdout.rpartition("loaded: ")[2].split()
    distributions = metadata.packages_distributions()
    used = {canonicalize_name(d) for module in loaded for d in distributions.get(module, ())}
    plain = requirements("bigan-jax")
    assert {"jax", "tensorflow-datasets", "pillow"} <= used & plain
    only_tests = requirements("bigan-jax", ["test"]) - plain
    assert used & only_tests <= {"setuptools"}  # a start-up hook loads it in every process
