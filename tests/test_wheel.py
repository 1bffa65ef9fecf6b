"""The wheel is complete: installed elsewhere, it trains and predicts from another folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import bigan_jax
from tests.helpers.runs import ROOT, TINY_FCAE, environment

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "bigan_jax", "configs")
# Prints what a command imported, as its last line.
REPORT = "import sys\nfrom bigan_jax.commands import console\ntry: console.main()\nfinally: print('\\n', *sys.modules)"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy: setuptools leaves folders in the source, and would pack old ones."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    output = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*pip, f"--wheel-dir={output}", str(source)], check=True, capture_output=True, text=True)
    (path,) = output.glob("*.whl")
    return path


def test_wheel_has_every_file_of_the_package(wheel):
    """Code, configs, templates and py.typed."""
    assert wheel.name == f"bigan_jax-{bigan_jax.__version__}-py3-none-any.whl"
    files = {path.relative_to(ROOT) for name in ("bigan_jax", "configs") for path in (ROOT / name).rglob("*")}
    files = {path.as_posix() for path in files if (ROOT / path).is_file() and "__pycache__" not in path.parts}
    expected = {f"bigan_jax/{path}" if path.startswith("configs/") else path for path in files}
    content = set(zipfile.ZipFile(wheel).namelist())
    assert {path for path in content if ".dist-info/" not in path} == expected
    assert {
        "bigan_jax/py.typed",
        "bigan_jax/configs/cae.py",
        "bigan_jax/reports/templates/report.html.jinja",
    } <= content


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The Python of a new environment with the wheel, and the packages of this one, but not its bigan_jax."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    # The folder alone: its own .pth files, such as that of an editable installation, are not read.
    query = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "this_environment.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, "--force-reinstall", str(wheel)], check=True, capture_output=True, text=True)
    return python


def run(command, cwd, status=0):
    variables = {name: value for name, value in environment().items() if name not in ("PYTHONPATH", "BJ_ROOT")}
    result = subprocess.run([*map(str, command)], cwd=cwd, env=variables, capture_output=True, text=True)
    assert result.returncode == status, result.stderr
    return result.stdout


def test_installed_wheel_trains_evaluates_and_predicts_in_another_folder(installed, tmp_path):
    """And drawn images need none of the packages that prepare and read data."""
    program = installed.parent / "bigan-jax"
    location = run([installed, "-c", "import bigan_jax; print(bigan_jax.__file__)"], tmp_path)
    assert Path(location.strip()).is_relative_to(installed.parents[1])
    fields = [f"--{name}={value}" for name, value in TINY_FCAE.items()]
    printed = run([installed, "-c", REPORT, "train", "fcae:phantom", "--workdir=run", *fields], tmp_path)
    assert printed.startswith("Drawing the images of the phantom ...\n")
    imported = {name.partition(".")[0] for name in printed.splitlines()[-1].split()}
    assert "jax" in imported
    assert not imported & {"tensorflow_datasets", "array_record", "pyarrow", "tensorflow", "torch", "ray", "pydicom"}

    run([program, "evaluate", "run", "--score.name=paper"], tmp_path)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["score_name"] == "paper"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["score"]["name"] == "paper"

    (tmp_path / "images").mkdir()
    Image.new("L", (20, 20), 128).save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "damaged.png").write_bytes(b"no image")
    assert "1 images scored" in run([program, "predict", "run", "images", "--output=new"], tmp_path, status=2)
    assert (tmp_path / "new" / "overlays").is_dir() and (tmp_path / "run" / "report.html").is_file()
