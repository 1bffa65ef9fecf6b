"""Measures the memory of reading large images: peak bytes a pixel of one image, and the peak of folders.

    python -m benchmarks.memory [--megapixels=98] [--output=memory.json]

Each measurement runs in a process of its own. For one image the peak is that of the process, less that of a process
that reads a tiny image. A folder has sixteen images, which all threads read at the same time; its peak is that of the
whole process. Preparation copies --gigabytes of images that hardly compress.

Measured on two cores, where four images are read at the same time. Bytes a pixel:

    16 megapixels: lossless WebP 16.9, with a window 16.8; at full size 17.1 and 17.5; mask 16.7
    98 megapixels: color PNG 4.0, with a window 4.1
    24 megapixels, with larger strips: gray PNG 1.2 and 1.6, alpha 4.9 and 5.9, palette 1.4 and 2.6, 16-bit color 4.6
    and 6.0, JPEG 0.2 and 0.5, progressive JPEG 6.0, AVIF 9.3

GiB in all for a folder of four images (one at full size):

    74 megapixels, lossless WebP: 1.39 with a window, 1.47 as masks, 1.21 at full size
    98 megapixels, JPEG 2000: 0.83 with a window

Earlier, with a budget of pixels, and sixteen images: color PNG 0.46, and 1.5 with overlays; 16-bit gray PNG 0.8; float
TIFF 1.6. Preparing 3 GB took 0.61.

WebP, AVIF, JPEG 2000 at full size, CMYK and some progressive JPEG and some TIFF are at or above 6 bytes a pixel; what
they need is held (`bigan_jax/data/files/decoding_memory.py`).
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 128
# Name: Pillow's mode, and the suffix. Deep color is written by `png16`.
KINDS = {
    "gray PNG": ("L", ".png"),
    "color PNG": ("RGB", ".png"),
    "color with alpha PNG": ("RGBA", ".png"),
    "palette PNG": ("P", ".png"),
    "16-bit gray PNG": ("I;16", ".png"),
    "16-bit color PNG": ("RGB;16", ".png"),
    "float TIFF": ("F", ".tif"),
    "deflated TIFF": ("RGB", ".tif"),
    "color JPEG": ("RGB", ".jpg"),
    "progressive JPEG": ("RGB", ".jpg"),
    "color WebP": ("RGB", ".webp"),
    "lossless WebP": ("RGB", ".webp"),
    "color AVIF": ("RGB", ".avif"),
    "detailed AVIF": ("RGBA", ".avif"),
    "color JPEG 2000": ("RGB", ".jp2"),
    "JPEG 2000 of one resolution": ("RGB", ".jp2"),
}
OPTIONS = {"lossless WebP": {"lossless": True, "quality": 0, "method": 0}, "color AVIF": {"speed": 10}}
OPTIONS["progressive JPEG"] = {"progressive": True, "subsampling": 0}
OPTIONS["deflated TIFF"] = {"compression": "tiff_adobe_deflate"}
OPTIONS["detailed AVIF"] = {"speed": 10, "subsampling": "4:4:4"}
OPTIONS["JPEG 2000 of one resolution"] = {"num_resolutions": 1}
WITH_OVERLAYS = ("color PNG", "16-bit color PNG", "lossless WebP", "color JPEG 2000")
# Megapixels of formats that need more than 12 bytes a pixel: their largest images.
LIMITS = {"WebP": 74, "AVIF": 78, "of one resolution": 66}


def draw(kind, megapixels, path):
    """Writes a square image, smooth except for some noise in kinds whose decoder needs memory for details.

    Returns the number of its pixels.
    """
    limit = min((value for name, value in LIMITS.items() if name in kind), default=megapixels)
    side = round((min(megapixels, limit) * 1e6) ** 0.5)
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    mode = KINDS[kind][0]
    if mode == "RGB;16":
        path.write_bytes(png16(np.broadcast_to((ramp.astype(">u2") * 257)[None, :, None], (side, side, 3))))
        return side**2
    gray = np.broadcast_to(ramp, (side, side))
    if path.suffix in (".webp", ".avif", ".jp2"):
        gray = gray // 2 + np.random.default_rng(0).integers(0, 16, gray.shape, np.uint8)
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 16)
    elif mode == "F":
        image = Image.fromarray(gray.astype(np.float32) / 255)
    else:
        image = Image.fromarray(gray).convert(mode)
    image.save(path, **OPTIONS.get(kind, {}))
    return side**2


def png16(rows):
    """A 16-bit color PNG, compressed row by row."""
    packer, content = zlib.compressobj(1), b""
    for row in rows:
        content += packer.compress(b"\0" + row.tobytes())
    content += packer.flush()

    def chunk(name, data):
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = len(rows[0]).to_bytes(4, "big") + len(rows).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def peak(arguments):
    """The peak memory in bytes of a process that runs `work`."""
    command = [sys.executable, "-m", "benchmarks.memory", "--work", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return int(done.stdout.splitlines()[-1])


def work(task, folder, window):
    """Reads all images of a folder, or prepares it, and prints the peak memory."""
    from bigan_jax.data.files.folders import walk
    from bigan_jax.data.files.images import read_files, read_full_size, read_image, read_mask

    folder, options = Path(folder), {"window": window == "True"}
    if task == "prepare":
        from bigan_jax.data.settings import DataSettings
        from bigan_jax.data.source import open_folder_source

        open_folder_source(DataSettings("folder", dir=folder, tfds_dir=folder.with_name("tfds")))
    elif task == "overlays":
        from bigan_jax.data.files.images import ImageFormat
        from bigan_jax.reports.overlays import write_overlays

        names = walk(folder).images
        contents = {name: (folder / name).read_bytes() for name in names}
        maps = np.zeros((len(names), SIZE, SIZE), np.float32)
        write_overlays(contents, names, maps, 1.0, 0.5, folder.with_name("overlays"), ImageFormat(SIZE, 3, **options))
    else:
        readers = {"read": lambda source, window: read_image(source, SIZE, 1, window), "full": read_full_size}
        read = readers.get(task, lambda source, window: read_mask(source, SIZE))
        results = read_files(lambda source, _: read(source, **options), folder, walk(folder).images, "images")
        assert len(results) and not any(isinstance(result, tuple) for result in results), results
    # Not getrusage, whose peak includes the parent's at the fork.
    print(int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=98)
    parser.add_argument("--gigabytes", type=float, default=3)
    parser.add_argument("--images", type=int, default=16, help="of a folder")
    parser.add_argument("--kinds", default="", help="comma list; all by default")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(*args.work)
        return
    results = {}

    def report(name, value):
        results[name] = value
        print(f"{name:60} {value}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        for kind in args.kinds.split(",") if args.kinds else KINDS:
            folder, tiny = Path(temporary, "one"), Path(temporary, "tiny")
            for target in tiny, folder:
                target.mkdir()
                n_pixels = draw(kind, args.megapixels if target == folder else 0.01, target / f"0{KINDS[kind][1]}")
            can_be_mask = (
                kind != "color JPEG 2000"
            )  # of more than 67 megapixels: masks are not decoded at a reduced size
            masks = [("mask", False)] * can_be_mask
            for task, window in ("read", False), ("read", True), ("full", False), ("full", True), *masks:
                n_bytes = peak([task, folder, window]) - peak([task, tiny, window])
                report(f"{kind}, {task}, window={window}: bytes a pixel", round(n_bytes / n_pixels, 1))
            for i in range(1, args.images):
                (folder / f"{i}{KINDS[kind][1]}").hardlink_to(folder / f"0{KINDS[kind][1]}")
            for task in ("read", *["mask"] * can_be_mask, *["overlays"] * (kind in WITH_OVERLAYS)):
                report(
                    f"{kind}, {args.images} images, {task}: GiB in all", round(peak([task, folder, True]) / 2**30, 2)
                )
            for target in folder, tiny:
                for file in target.iterdir():
                    file.unlink()
                target.rmdir()
            for file in sorted(Path(temporary).rglob("overlays/**/*.png")):
                file.unlink()
        if args.gigabytes:
            folder = Path(temporary, "many")
            folder.mkdir()
            rng = np.random.default_rng(0)
            for i in range(round(args.gigabytes * 100)):
                Image.fromarray(rng.integers(0, 256, (2500, 4000), np.uint8)).save(folder / f"{i}.bmp")
            report(f"preparing {args.gigabytes} GB: GiB in all", round(peak(["prepare", folder, False]) / 2**30, 2))
    if args.output:
        args.output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
