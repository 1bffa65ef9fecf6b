"""Measures reading: images per second from files to arrays.

    python -m benchmarks.data [--folder=DIR] [--output=data.json]

Measures the first preparation of a folder, loading of prepared data, and streaming of random
batches; for comparison, Pillow in one thread and, if PyTorch is installed, its DataLoader with two
workers, both on the original files. The methods take turns, so that other load affects all of them,
and the median is reported. On a busy machine compare CPU times, which exclude the workers of the
DataLoader. Without --folder, phantom heads are drawn, half as PNG and half as JPEG.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from bigan_jax.data import loading, phantom
from bigan_jax.data.files.folders import walk
from bigan_jax.data.settings import DataSettings
from bigan_jax.data.source import open_folder_source

try:
    import torch
    from torch.utils.data import DataLoader
except ImportError:
    torch = None

BATCH = 32


def draw(folder, n, size):
    for i in range(n):
        image, _ = phantom.draw("head", i, size, 1, None)
        suffix, options = (".png", {}) if i % 2 else (".jpg", {"quality": 92})
        Image.fromarray(image[..., 0]).save(folder / f"{i:05d}{suffix}", **options)


def decode(path, size):
    with Image.open(path) as image:
        gray = image.convert("L").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(gray)[..., None]


class Files:
    """The same images as a PyTorch dataset."""

    def __init__(self, paths, size):
        self.paths, self.size = paths, size

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return torch.from_numpy(decode(self.paths[i], self.size).copy())


def prepare(folder, home):
    return len(open_folder_source(DataSettings("folder", dir=folder, tfds_dir=home)).records)


def load(folder, home, size, stream=False):
    settings = DataSettings("folder", dir=folder, tfds_dir=home, image_size=size, stream=stream)
    return loading.load_dataset(settings)


def load_all(folder, home, size):
    return sum(len(split.image) for split in load(folder, home, size)[:3])


def stream(images, order):
    return sum(len(images[batch]) for batch in np.array_split(order, -(-len(order) // BATCH)))


def pillow(paths, size):
    return len(np.stack([decode(path, size) for path in paths]))


def dataloader(paths, size):
    loader = DataLoader(Files(paths, size), BATCH, shuffle=True, num_workers=2)
    return sum(len(batch) for batch in loader)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="folder of images, all normal")
    parser.add_argument("--images", type=int, default=1500, help="number of images to draw")
    parser.add_argument("--drawn-size", type=int, default=256)
    parser.add_argument("--size", type=int, default=128, help="image side of the arrays")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder
        if folder is None:
            folder = Path(temporary, "drawn")
            folder.mkdir()
            draw(folder, args.images, args.drawn_size)
        paths = [folder / name for name in walk(folder).images]
        home = f"{temporary}/prepared"
        prepare(folder, home)
        images = load(folder, home, args.size, stream=True).train.image
        shuffle = np.random.default_rng(0).permutation
        methods = {
            "prepare": lambda i: prepare(folder, f"{temporary}/fresh{i}"),
            "load": lambda i: load_all(folder, home, args.size),
            "stream": lambda i: stream(images, shuffle(len(images))),
            "pillow": lambda i: pillow(paths, args.size),
        }
        if torch:
            methods["dataloader"] = lambda i: dataloader(paths, args.size)
        rates, cpu_ms = {name: [] for name in methods}, {name: [] for name in methods}
        for i in range(args.repeats):
            for name, method in methods.items():
                began, cpu = time.perf_counter(), time.process_time()
                count = method(i)
                rates[name].append(count / (time.perf_counter() - began))
                cpu_ms[name].append((time.process_time() - cpu) / count * 1000)

    median = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{len(paths)} images to {args.size}x{args.size}, {os.cpu_count()} cores, images/s:")
    for name, value in median.items():
        low, high = min(rates[name]), max(rates[name])
        cpu = statistics.median(cpu_ms[name])
        print(f"  {name:10} {value:8.0f}  ({low:.0f} to {high:.0f}), {cpu:.2f} ms of CPU each")
    others = [name for name in ("pillow", "dataloader") if name in median]
    ratio = {f"{name}/{other}": median[name] / median[other] for name in ("load", "stream") for other in others}
    for name, value in ratio.items():
        print(f"  {name}: {value:.2f}")
    print(f"  preparing all: {len(paths) / median['prepare']:.1f} s")
    print(f"  loading all: {len(paths) / median['load']:.1f} s")
    if args.output:
        content = {"images": len(paths), "size": args.size, "cores": os.cpu_count()}
        content |= {"images_per_second": rates, "cpu_ms": cpu_ms, "ratios": ratio}
        args.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
