"""Images and masks in all supported formats."""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from bigan_jax.data.files import images
from bigan_jax.data.files.unreadable import UnreadableFile, try_read
from tests.fuzz.mutations import corrupt, corrupt_inside, corruptions
from tests.helpers.datasets import tiled_tiff

images.MAX_PIXELS = 10**6  # a smaller limit than the default shows the same, and sooner


def _saved(image, image_format, **options):
    image.save(content := io.BytesIO(), image_format, **options)
    return content.getvalue()


def _seeds() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    gray = Image.fromarray(rng.integers(0, 256, (20, 24), np.uint8))
    color = Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))
    alpha = Image.fromarray(rng.integers(0, 256, (20, 24, 4), np.uint8))
    deep = Image.fromarray(rng.integers(0, 2**16, (20, 24), np.uint16))
    real = Image.fromarray(rng.random((20, 24), np.float32))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    seeds = {}
    for image_format in ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "PPM", "TGA", "AVIF"):
        seeds[f"gray.{image_format}"] = _saved(gray, image_format)
        seeds[f"color.{image_format}"] = _saved(color, image_format)
    for image_format in "PNG", "TIFF", "WEBP", "TGA", "JPEG2000":
        seeds[f"alpha.{image_format}"] = _saved(alpha, image_format)
    for name, image, image_format, options in (
        ("palette.PNG", color.quantize(16), "PNG", {"transparency": 3}),
        ("bits.PNG", gray.convert("1"), "PNG", {}),
        ("deep.PNG", deep, "PNG", {}),
        ("exif.PNG", gray, "PNG", {"exif": exif}),
        ("moving.PNG", gray, "PNG", {"save_all": True, "append_images": [gray.rotate(90)]}),
        ("exif.JPEG", color, "JPEG", {"exif": exif}),
        ("progressive.JPEG", color, "JPEG", {"progressive": True}),
        ("cmyk.JPEG", color.convert("CMYK"), "JPEG", {}),
        ("two.JPEG", color, "MPO", {"save_all": True, "append_images": [color]}),
        ("deep.TIFF", deep, "TIFF", {"compression": "tiff_lzw"}),
        ("real.TIFF", real, "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("jpeg.TIFF", color, "TIFF", {"compression": "jpeg"}),
        ("packed.TIFF", gray, "TIFF", {"compression": "packbits"}),
        ("fax.TIFF", gray.convert("1"), "TIFF", {"compression": "group4"}),
        ("exif.TIFF", gray, "TIFF", {"exif": exif}),
        ("pages.TIFF", gray, "TIFF", {"save_all": True, "append_images": [gray]}),
        ("exif.WEBP", color, "WEBP", {"exif": exif.tobytes(), "lossless": True}),
        ("moving.WEBP", color, "WEBP", {"save_all": True, "append_images": [color.rotate(9)]}),
        ("moving.GIF", gray, "GIF", {"save_all": True, "append_images": [gray.rotate(90)]}),
        ("run.TGA", color, "TGA", {"compression": "tga_rle"}),
    ):
        seeds[name] = _saved(image, image_format, **options)
    seeds["plain.PPM"] = b"P2\n# words\n4 4\n15\n" + b" ".join(b"%d" % i for i in range(16))
    seeds["tiled.TIFF"] = tiled_tiff()
    return seeds


SEEDS = _seeds()
cases = corruptions(SEEDS, ("plain", "plain", "inside"))
warm = [(name, "plain", [], name) for name in SEEDS]


def attempt(case, folder: Path) -> Iterator[str]:
    name, wrapping, changes, other = case
    content, other = SEEDS[name], SEEDS[other]
    if wrapping == "inside" and name.endswith(".PNG"):
        content = _png(_chunks(content, changes, other))
    else:
        content = corrupt(content, changes, other)
    suffix = {".JPEG2000": ".jp2"}.get(Path(name).suffix, Path(name).suffix.lower())
    data = folder / "data"
    data.mkdir()
    (file := data / f"a{suffix}").write_bytes(content)
    for channels in 1, 3:
        results = images.read_files(lambda x, _, c=channels: images.read_image(x, 8, c), data, [file.name], "images")
        yield from (r.reason for r in results if isinstance(r, UnreadableFile))
    for read in (
        lambda: images.read_mask(io.BytesIO(content), 8),
        lambda: images.read_full_size(io.BytesIO(content)),
        lambda: images.image_size(file),
    ):
        if isinstance(result := try_read(file.name, read), UnreadableFile):
            yield result.reason


def _chunks(png, changes, other):
    """The chunks of a PNG with some of them corrupt."""
    chunks, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        chunks.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    for i, change in enumerate(changes):
        index = (change[1] + i) % len(chunks)
        name, content = chunks[index]
        if name == b"IDAT" and change[3] % 2:
            with contextlib.suppress(zlib.error):  # already corrupt
                content = corrupt_inside(content, [change], other, zlib.decompress, zlib.compress)
        else:
            content = corrupt(content, [change], other)
        chunks[index] = name, content
        if change[0] == "repeat":
            chunks.insert(index, chunks[change[2] % len(chunks)])
    return chunks


def _png(chunks):
    parts = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
