"""Encoded images, some of kinds that Pillow reads and does not write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def png_chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def tiff(values):
    Image.fromarray(values).save(content := io.BytesIO(), "TIFF")
    return content


def png16(values):
    """A 16-bit color PNG, which Pillow reads and does not write."""
    height, width, channels = values.shape
    color_type = {3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def tiff16(values, byte_order="<", photometric=2, compress=False, bits=16):
    """A TIFF of one strip, of integers or floats, in any byte order."""
    height, width, samples = (*values.shape, 1)[:3]
    data = values.astype(values.dtype.newbyteorder(byte_order)).tobytes()
    data = zlib.compress(data) if compress else data
    start = 8 + len(data) + len(data) % 2
    sample_format = 3 if values.dtype.kind == "f" else 1
    fields = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 8 if compress else 1), (262, 3, photometric)]
    fields += [(273, 4, 8), (277, 3, samples), (278, 4, height), (279, 4, len(data))]
    fields += [(338, 3, 2)] * (samples == 4) + [(339, 3, sample_format)]
    kinds = {3: "HH", 4: "I"}
    bits_at = start + 2 + 12 * len(fields) + 4
    table = struct.pack(f"{byte_order}H", len(fields))
    for tag, kind, value in fields:
        count = samples if tag in (258, 339) and samples > 1 else 1
        table += struct.pack(f"{byte_order}HHI", tag, kind, count)
        if count > 1:
            table += struct.pack(f"{byte_order}I", bits_at + 8 * (tag == 339))
        else:
            table += struct.pack(f"{byte_order}{kinds[kind]}", *[value, 0][: len(kinds[kind])])
    table += (
        bytes(4) + struct.pack(f"{byte_order}4H", *[bits] * 4) + struct.pack(f"{byte_order}4H", *[sample_format] * 4)
    )
    mark = b"II*\0" if byte_order == "<" else b"MM\0*"
    return mark + struct.pack(f"{byte_order}I", start) + data.ljust(start - 8, b"\0") + table


def ppm16(values, top):
    return b"P6\n%d %d\n%d\n" % (values.shape[1], values.shape[0], top) + values.astype(">u2").tobytes()


def with_tag(content, tag, value):
    """A little-endian TIFF of Pillow with another value of a tag."""
    content = bytearray(content)
    struct.pack_into("<H", content, _entry(content, tag) + 8, value)
    return bytes(content)


def with_double(content, tag, value, new_tag=None):
    """A little-endian TIFF of Pillow whose tag, or another in its place, is a number of 64 bits."""
    content = bytearray(content)
    struct.pack_into("<HHII", content, _entry(content, tag), new_tag or tag, 12, 1, len(content))
    return bytes(content) + struct.pack("<d", value)


def _entry(content, tag):
    (start,) = struct.unpack_from("<I", content, 4)
    (n,) = struct.unpack_from("<H", content, start)
    return next(a for a in range(start + 2, start + 2 + 12 * n, 12) if struct.unpack_from("<H", content, a)[0] == tag)


def png_header(width, height):
    """A PNG whose header claims a size, with hardly a pixel."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(99)))


def saved(image, image_format, **options):
    image.save(content := io.BytesIO(), image_format, **options)
    return content.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
