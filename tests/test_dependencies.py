"""What a plain installation brings is all that a run imports."""

import subprocess
import sys
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


def brought(name, extras=()):
    """The distributions that come with one, by its own word and that of those it needs."""
    found, left = set(), [(name, tuple(extras))]
    while left:
        name, extras = asked = left.pop()
        if asked in found:
            continue
        found.add(asked)
        try:
            lines = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:  # one for another system, or an extra not installed
            continue
        for line in map(Requirement, lines):
            if not line.marker or any(line.marker.evaluate({"extra": e}) for e in ("", *extras)):
                left.append((canonicalize_name(line.name), tuple(sorted(line.extras))))
    return {name for name, _ in found}


def test_a_run_on_a_folder_needs_no_extra(tmp_path):
    """Prepared data, training and report: a library that the tests' extra happens to bring would
    hide that a plain installation lacks it."""
    (tmp_path / "pictures").mkdir()
    for i, noise in enumerate(np.random.default_rng(0).integers(0, 256, (24, 16, 16), np.uint8)):
        Image.fromarray(noise).save(tmp_path / "pictures" / f"{i}.png")
    fields = {"data.image_size": 16, "model.hidden": (8, 4), "phases.phase1.epochs": 1}
    fields |= {"data.dir": tmp_path / "pictures", "data.tfds_dir": tmp_path / "data"}
    arguments = ["--config=configs/fcae.py:folder", f"--workdir={tmp_path / 'run'}", *flags(fields)]
    result = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = result.stdout.rpartition("loaded: ")[2].split()
    of_modules = metadata.packages_distributions()
    used = {canonicalize_name(d) for module in loaded for d in of_modules.get(module, ())}
    plain = brought("bigan-jax")
    assert {"jax", "tensorflow-datasets", "pillow"} <= used & plain
    of_tests = brought("bigan-jax", ["test"]) - plain
    assert used & of_tests == set()
