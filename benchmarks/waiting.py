"""Measures how long people wait for commands: until the first output, the first step and the result.

    python -m benchmarks.waiting [--repeats=3] [--cases=first,folder] [--images=1000] [--anomalib=PYTHON]

Prints a Markdown table of medians. The commands take turns. `cold` has an empty compilation cache, `warm` that of the
same command before. Seconds of import, data, audit and compilation are those in which the command waits for them:
programs that are compiled in other threads count only while it waits. `processor` is the seconds of all threads, which
depend less than the others on what else runs, and `ratio` is that divided by the reference: a process that imports JAX
and compiles a fixed program.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
COLUMNS = ("output", "step", "result", "import", "data", "audit", "compile", "compiled", "processor", "ratio")
HEADER = f"| command | {' | '.join(COLUMNS)} |\n| --- {'| --: ' * len(COLUMNS)}|"
_REFERENCE = """
import jax, jax.numpy as jnp
def layers(x, w):
    for _ in range(8):
        x = jnp.tanh(x @ w + jnp.sin(x).sum(0))
    return x.sum()
jax.jit(jax.grad(layers, (0, 1))).lower(jnp.ones((64, 64)), jnp.ones((64, 64))).compile()
"""
_CACHE_SETTINGS = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


def make_images(folder: Path, large: int) -> None:
    """Draws 200 photographs of 256x256, and `large` images of 1024x1024, as PNG files."""
    from bigan_jax.data.phantom import FIRST_ANOMALOUS, bottle, draw

    def save(name: str, array: np.ndarray) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path, compress_level=1)

    defects = list(bottle.DEFECTS)
    for i in range(150):
        save(f"photos/normal/{i:04}.png", draw("bottle", i, 256, 3)[0])
    for i in range(50):
        defect = defects[i % len(defects)]
        save(f"photos/anomalous/{i:04}.png", draw("bottle", FIRST_ANOMALOUS + i, 256, 3, defect)[0])
    noise = np.random.default_rng(0)
    for i in range(large):
        image = Image.fromarray(draw("bottle", 1000 + i % 50, 256, 3)[0]).resize((1024, 1024))
        noisy = np.asarray(image, np.int16) + noise.integers(-3, 4, (1024, 1024, 1))
        save(f"large/{i:05}.png", noisy.clip(0, 255).astype(np.uint8))
    for name, count in (("one", 1), ("eleven", 11)):
        (folder / name).mkdir()
        for path in sorted((folder / "large").iterdir())[:count]:
            (folder / name / path.name).hardlink_to(path)


def make_cases(folder: Path) -> dict[str, tuple[str, ...]]:
    """Returns the commands by name; RESULT in them is a new folder, and runs/cae a run of the folder."""
    run, result = str(folder / "runs/cae"), "--output=RESULT"
    predict = {f"predict {name}": ("predict", run, str(folder / name), result) for name in ("one", "eleven", "large")}
    return {
        "first": ("train", "improved_bigan:phantom", "--workdir=RESULT"),
        "folder": ("train", "cae:folder,quick", f"--data.dir={folder / 'photos'}", "--workdir=RESULT"),
        **predict,
        "evaluate": ("evaluate", run),
        "export": ("export", run, result),
        "help": ("--help",),
        "wrong flag": ("train", "cae:folder", "--data.dirr=x"),
    }


def measure(command: Sequence[str], environment: Mapping[str, str], report: Path | None = None) -> dict[str, Any]:
    """Runs a command to its end; returns its seconds, those of the processor, and what it reports."""
    before, began = os.times(), time.time()
    environment = {**environment, "BENCHMARK_BEGAN": str(began)}
    status = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    result, after = time.time() - began, os.times()
    reported = json.loads(report.read_text(encoding="utf-8")) if report and report.exists() else {}
    processor = sum(getattr(after, x) - getattr(before, x) for x in ("children_user", "children_system"))
    # Only the wrong flag has a status of its own, and a report without an import.
    if status.returncode and "import" in reported:
        raise RuntimeError(f"{' '.join(command)} failed:\n{status.stderr.decode()[-2000:]}")
    return {**reported, "result": result, "processor": processor}


def measure_case(name: str, arguments: Sequence[str], folder: Path, cache: Path) -> dict[str, Any]:
    """Runs a command of `bigan-jax` with a compilation cache."""
    report = folder / "report"
    report.unlink(missing_ok=True)
    result = Path(tempfile.mkdtemp(dir=folder)) / "result"
    arguments = [argument.replace("RESULT", str(result)) for argument in arguments]
    environment = {key: value for key, value in os.environ.items() if key not in _CACHE_SETTINGS}
    command = [sys.executable, "-m", "benchmarks.waiting_run", str(report), *arguments]
    return {"name": name, **measure(command, environment | {"XDG_CACHE_HOME": str(cache)}, report)}


def measure_all(folder: Path, names: Sequence[str], repeats: int, large: int, anomalib: str = "") -> list[dict]:
    """Returns a row of medians for each command, cold and warm; `names` are of `make_cases`, and empty for all."""
    make_images(folder, large)
    cases = make_cases(folder)
    needs_run = any(str(folder / "runs/cae") in cases[name] for name in names or cases)
    if needs_run:
        train = [argument.replace("RESULT", str(folder / "runs/cae")) for argument in cases["folder"]]
        measure_case("run", train, folder, folder / "cache")
    rows: dict[str, list[dict]] = {}
    for turn in range(repeats):
        reference = measure([sys.executable, "-c", _REFERENCE], os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"})
        for name in names or cases:
            cache = folder / f"cache {name} {turn}"
            for temperature in ("cold", "warm"):
                row = measure_case(f"{name}, {temperature}", cases[name], folder, cache)
                row["ratio"] = row["processor"] / reference["processor"]
                rows.setdefault(row["name"], []).append(row)
        for model in ("Padim", "Ganomaly") if anomalib else ():
            row = {"name": f"anomalib {model}"} | measure(_anomalib_command(anomalib, model, folder), os.environ)
            row["ratio"] = row["processor"] / reference["processor"]
            rows.setdefault(row["name"], []).append(row)
    return [_medians(name, measured) for name, measured in rows.items()]


def _anomalib_command(python, model, folder):
    data = ("--data.name=photos", f"--data.root={folder / 'photos'}", "--data.normal_dir=normal")
    data += ("--data.abnormal_dir=anomalous", f"--default_root_dir={tempfile.mkdtemp(dir=folder)}")
    return [str(Path(python).with_name("anomalib")), "train", f"--model={model}", "--data=anomalib.data.Folder", *data]


def _medians(name, rows):
    return {"name": name} | {c: statistics.median(r[c] for r in rows) for c in COLUMNS if all(c in r for r in rows)}


def table_row(row: Mapping) -> str:
    """Returns a row of the Markdown table."""
    cells = [f"{row[c]:.{0 if c == 'compiled' else 2}f}" if c in row else "" for c in COLUMNS]
    return f"| {' | '.join([row['name'], *cells])} |"


def excesses(rows: Sequence[Mapping], limits: Mapping[str, float], margin: float) -> list[str]:
    """Describes each command that takes longer than its limit, a ratio to the reference, by more than the margin."""
    messages = []
    for row in rows:
        limit = limits.get(row["name"])
        if limit is None:
            messages.append(f"{row['name']}: no limit; --set would write {row['ratio']:.2f}")
        elif row["ratio"] > limit * (1 + margin):
            messages.append(f"{row['name']}: {row['ratio']:.2f} times the reference, the limit is {limit}")
    return messages


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help=f"comma list of {', '.join(make_cases(Path()))}; default: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000, help="number of images of 1024x1024 that predict gets")
    parser.add_argument("--anomalib", default="", help="a Python with anomalib, whose first commands are measured too")
    options = parser.parse_args(arguments)
    names = [name for name in options.cases.split(",") if name]
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_all(Path(folder), names, options.repeats, max(11, options.images), options.anomalib)
    print("\n".join([HEADER, *map(table_row, rows)]))


if __name__ == "__main__":
    main()
