"""python -m benchmarks.scale PART... [--toy] [--output=FILE.json]

Time and memory of training by its amounts. Each point is a process of its own (scale_point.py) that
trains a small detector for some epochs after one that compiles, and tells the seconds of each and
the process's peak memory in them.
  pictures   1,024 to 16,384 of 64x64, in memory
  streaming  the same, streamed from files
  sizes      16x16 to 128x128
  batches    8 to 256
  devices    1 to 8, simulated
  processes  1 and 2, of one core and 32 pictures each
  pod        no training: what a step of the Improved BiGAN computes and sends, and estimates of its
             efficiency on many devices (scale_pod.py)
  plots      of what FILE.json has, beside it as scale-*.png
Parts that FILE.json (default docs/scale.json) has already are kept, or measured anew if named.
--toy does the parts in seconds, to see that they work: its figures say nothing.

Simulated devices, and processes on one machine, share its cores: they show what dividing the work
costs, not what more hardware brings.
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
LIMIT = 300  # seconds that one point may take


def start(fields):
    command = [sys.executable, "-m", "benchmarks.scale_point"]
    command += [f"--{name}={value}" for name, value in fields.items() if value is not None]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def points(*each):
    """What the processes, started together, tell; of several, the first speaks for all.

    Raises SystemExit with the last words of one that fails.
    """
    running = [start(fields) for fields in each]
    try:
        told = [process.communicate(timeout=LIMIT) for process in running]
    except subprocess.TimeoutExpired:
        raise SystemExit(f"error: no answer within {LIMIT} s from the point {each[0]}") from None
    finally:
        for process in running:
            process.kill()
    for process, fields, (_, wrong) in zip(running, each, told, strict=True):
        if process.returncode:
            last = (wrong.strip().splitlines() or [f"status {process.returncode}"])[-1]
            raise SystemExit(f"error: the point {fields} failed: {last}")
    return {**each[0], **json.loads(told[0][0].splitlines()[-1])}


def pictures(toy):
    return by_count(toy, None)


def streaming(toy):
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for i in range(256):
            noise = rng.integers(0, 256, (64, 64), np.uint8)
            Image.fromarray(noise).save(f"{folder}/{i:03}.png")
        return by_count(toy, folder)


def by_count(toy, files):
    """In two rounds, so that a disturbance does not hit all epochs of a point."""
    counts = (64, 128) if toy else (1024, 2048, 4096, 8192, 16384)
    each = [{"size": 64, "pictures": n, "batch": 64, "epochs": 2, "files": files} for n in counts]
    rounds = [[points(fields) for fields in each] for _ in range(2)]
    found = []
    for one, other in zip(*rounds, strict=True):
        epoch = one["epoch"] + other["epoch"]
        peak = max(one["peak_bytes"], other["peak_bytes"])
        found.append({**one, "files": bool(files), "epoch": epoch, "peak_bytes": peak})
        found[-1]["step"] = float(np.median(epoch)) / one["steps"]
        found[-1]["pictures_per_second"] = one["batch"] / found[-1]["step"]
    return found


def sizes(toy):
    count, each = (64, (16, 32)) if toy else (256, (16, 32, 64, 128))
    return [points({"size": size, "pictures": count, "batch": 32}) for size in each]


def batches(toy):
    count, each = (64, (8, 16)) if toy else (1024, (8, 16, 32, 64, 128, 256))
    return [points({"batch": batch, "pictures": count}) for batch in each]


def devices(toy):
    count, each = (128, (1, 2)) if toy else (1024, (1, 2, 4, 8))
    return [points({"devices": n, "batch": 64, "pictures": count}) for n in each]


def processes(toy):
    """Each with one core and, so many processes there are, so many times the batch."""
    cores = sorted(os.sched_getaffinity(0))
    found = []
    for model in ("cae",) if toy else ("cae", "fcae"):
        for n in (1, 2):
            fields = {"model": model, "size": 64, "pictures": n * (64 if toy else 512)}
            fields |= {"batch": 32 * n, "processes": n, "coordinator": f"localhost:{free_port()}"}
            each = [{**fields, "process": i, "core": cores[i % len(cores)]} for i in range(n)]
            found.append(points(*each))
    return found


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def pod(toy):
    return scale_pod.pod()


_PARTS = (pictures, streaming, sizes, batches, devices, processes, pod)
PARTS = {part.__name__: part for part in _PARTS}


def machine():
    versions = {"python": platform.python_version(), "jax": jax.__version__}
    versions |= {"jaxlib": jaxlib.__version__, "numpy": np.__version__}
    return {"cpu": processor(), "cores": cores(), **versions}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="+", choices=[*PARTS, "plots"])
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/scale.json")
    args = parser.parse_args(arguments)
    path = args.output
    if sys.platform != "linux":
        parser.error("memory and cores are told by Linux alone")
    if not path.parent.is_dir():
        parser.error(f"--output={path}: there is no folder {path.parent}")
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in [name for name in PARTS if name in args.part]:
        print(f"measuring: {name} ...", flush=True)
        found |= {name: PARTS[name](args.toy), "machine": machine(), "toy": args.toy}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(found[name], indent=1))
    if "plots" in args.part:
        if missing := set(PARTS) - {"pod"} - set(found):
            parser.error(f"{path} has not been given the parts {', '.join(sorted(missing))}")
        draw(found, path.parent)


if __name__ == "__main__":
    main()
