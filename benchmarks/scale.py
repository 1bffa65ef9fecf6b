"""Measures how time and memory of training scale.

    python -m benchmarks.scale PART... [--toy] [--output=FILE.json]

Each point is a process (scale_point.py) that trains a small detector for some epochs after one that
compiles, and reports the seconds of each epoch and the peak memory.

  images     1,024 to 16,384 of 64x64, in memory
  streaming  the same, streamed from files
  sizes      16x16 to 128x128
  batches    8 to 256
  devices    1 to 8, simulated
  processes  1 and 2, with one core and 32 images each
  pod        no training: operations and communication of a step of the Improved BiGAN, and
             estimates of its efficiency on many devices (scale_pod.py)
  plots      figures of FILE.json, next to it as scale-*.png

FILE.json (default docs/development/scaling.json) keeps the other parts that it has. --toy takes seconds, as a
smoke test: its values mean nothing.

Simulated devices, and processes on one machine, share its cores: they show the cost of dividing the
work, not the gain of more hardware.
"""

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jaxlib
import numpy as np
from PIL import Image

from benchmarks import scale_pod
from benchmarks.scale_plots import draw
from benchmarks.sides import cores, processor

ROOT = Path(__file__).parents[1]
LIMIT = 300  # seconds for one point


def start(fields):
    command = [sys.executable, "-m", "benchmarks.scale_point"]
    command += [f"--{name}={value}" for name, value in fields.items() if value is not None]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def measure(*fields_of_processes):
    """Runs the processes of a point together and returns the results of the first.

    Raises:
      SystemExit: a process failed; with the last line of its output.
    """
    running = [start(fields) for fields in fields_of_processes]
    try:
        outputs = [process.communicate(timeout=LIMIT) for process in running]
    except subprocess.TimeoutExpired:
        raise SystemExit(f"error: no result within {LIMIT} s for the point {fields_of_processes[0]}") from None
    finally:
        for process in running:
            process.kill()
    for process, fields, (_, error) in zip(running, fields_of_processes, outputs, strict=True):
        if process.returncode:
            last = (error.strip().splitlines() or [f"status {process.returncode}"])[-1]
            raise SystemExit(f"error: the point {fields} failed: {last}")
    return {**fields_of_processes[0], **json.loads(outputs[0][0].splitlines()[-1])}


def images(toy):
    return by_count(toy, None)


def streaming(toy):
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for i in range(256):
            noise = rng.integers(0, 256, (64, 64), np.uint8)
            Image.fromarray(noise).save(f"{folder}/{i:03}.png")
        return by_count(toy, folder)


def by_count(toy, files):
    """Measures in two rounds, so that a disturbance does not affect all epochs of a point."""
    counts = (64, 128) if toy else (1024, 2048, 4096, 8192, 16384)
    points = [{"size": 64, "images": n, "batch": 64, "epochs": 2, "files": files} for n in counts]
    rounds = [[measure(fields) for fields in points] for _ in range(2)]
    results = []
    for one, other in zip(*rounds, strict=True):
        epoch = one["epoch"] + other["epoch"]
        peak = max(one["peak_bytes"], other["peak_bytes"])
        results.append({**one, "files": bool(files), "epoch": epoch, "peak_bytes": peak})
        results[-1]["step"] = float(np.median(epoch)) / one["steps"]
        results[-1]["images_per_second"] = one["batch"] / results[-1]["step"]
    return results


def sizes(toy):
    count, values = (64, (16, 32)) if toy else (256, (16, 32, 64, 128))
    return [measure({"size": size, "images": count, "batch": 32}) for size in values]


def batches(toy):
    count, values = (64, (8, 16)) if toy else (1024, (8, 16, 32, 64, 128, 256))
    return [measure({"batch": batch, "images": count}) for batch in values]


def devices(toy):
    count, values = (128, (1, 2)) if toy else (1024, (1, 2, 4, 8))
    return [measure({"devices": n, "batch": 64, "images": count}) for n in values]


def processes(toy):
    """One core for each process, and a batch in proportion to their number."""
    cores = sorted(os.sched_getaffinity(0))
    results = []
    for model in ("cae",) if toy else ("cae", "fcae"):
        for n in (1, 2):
            fields = {"model": model, "size": 64, "images": n * (64 if toy else 512)}
            fields |= {"batch": 32 * n, "processes": n, "coordinator": f"localhost:{free_port()}"}
            points = [{**fields, "process": i, "core": cores[i % len(cores)]} for i in range(n)]
            results.append(measure(*points))
    return results


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def pod(toy):
    return scale_pod.pod()


_PARTS = (images, streaming, sizes, batches, devices, processes, pod)
PARTS = {part.__name__: part for part in _PARTS}


def machine():
    versions = {"python": platform.python_version(), "jax": jax.__version__}
    versions |= {"jaxlib": jaxlib.__version__, "numpy": np.__version__}
    return {"cpu": processor(), "cores": cores(), **versions}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="+", choices=[*PARTS, "plots"])
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/development/scaling.json")
    args = parser.parse_args(arguments)
    path = args.output
    if sys.platform != "linux":
        parser.error("memory and cores can be measured on Linux only")
    if not path.parent.is_dir():
        parser.error(f"--output={path}: the folder {path.parent} does not exist")
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in [name for name in PARTS if name in args.part]:
        print(f"measuring: {name} ...", flush=True)
        results |= {name: PARTS[name](args.toy), "machine": machine(), "toy": args.toy}
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(results[name], indent=1))
    if "plots" in args.part:
        if missing := set(PARTS) - {"pod"} - set(results):
            parser.error(f"{path} lacks the parts {', '.join(sorted(missing))}: measure them first")
        draw(results, path.parent)


if __name__ == "__main__":
    main()
