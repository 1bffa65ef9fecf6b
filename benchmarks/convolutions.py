"""python -m benchmarks.convolutions [--batch=256] [--size=128] [--dtype=bfloat16]

Each convolution that a picture goes through, as the library of the accelerator has it and as a
matrix product (bigan_jax/convolutions.py): milliseconds, and operations a second as a share of a
large matrix product's in the same run. Layers are those of the Improved BiGAN and of VGG16: first
and last ones, which see pictures of one or three channels, and a strided one of 64 beside them.
"""

import argparse
from collections.abc import Callable, Iterator

import jax
from jax import lax, random

from benchmarks.accelerator import matmul_peak, timed
from bigan_jax import convolutions

REPEATS = 10  # calls that are timed together


def main(arguments: list[str] | None = None) -> list[tuple[str, float, float]]:
    """Prints a row for each form, and returns them: name, seconds, operations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args(arguments)
    peak = matmul_peak(args.dtype, 256 if jax.default_backend() == "cpu" else 8192)
    print(f"{jax.devices()[0].device_kind}, {args.dtype}: {peak / 1e12:.3g} TFLOP/s")
    rows = []
    for name, operations, call, *operands in forms(args.batch, args.size, args.dtype):
        seconds = measured(call, operands)
        rows.append((name, seconds, operations))
        share = 100 * operations / seconds / peak
        print(f"{name:44}{1e3 * seconds:9.3f} ms {share:5.1f} %", flush=True)
    return rows


def measured(call: Callable, operands: list) -> float:
    """Seconds of one call, the least of three turns."""
    call = jax.jit(call)

    def turn():
        return [call(*operands) for _ in range(REPEATS)]

    return min(timed(turn, 4)[1:]) / REPEATS


def forms(batch: int, size: int, dtype: str) -> Iterator[tuple]:
    """(name, operations, function, its arrays) of each form of each layer."""

    keys = iter(random.split(random.key(0), 12))

    def draw(*shape):
        return random.normal(next(keys), shape).astype(dtype)

    for channels, depth, side in ((1, 64, size), (64, 128, size // 2)):
        image, kernel = draw(batch, side, side, channels), draw(4, 4, channels, depth)
        code = draw(batch, side // 2, side // 2, depth)
        operations = 2 * 16 * channels * code.size
        for way, by in (("library", _by_library(2)), ("product", _STRIDED_PRODUCTS)):
            for part, function in zip(("", ", kernel's", ", image's"), by, strict=True):
                name = f"4x4, {channels} to {depth}{part} by {way}"
                yield name, operations, function, image, kernel, code
    for channels, depth in ((3, 64), (32, 1)):
        image, kernel = draw(batch, size, size, channels), draw(3, 3, channels, depth)
        code = draw(batch, size, size, depth)
        operations = 2 * 9 * channels * code.size
        for way, by in (("library", _by_library(1)), ("product", _PRODUCTS)):
            for part, function in zip(("", ", kernel's", ", image's"), by, strict=True):
                name = f"3x3, {channels} to {depth}{part} by {way}"
                yield name, operations, function, image, kernel, code


def _by_library(stride):
    def convolve(image, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            image, kernel, (stride, stride), [(1, 1)] * 2, dimension_numbers=layout
        )

    def of_kernel(image, kernel, code):
        return jax.vjp(lambda k: convolve(image, k), kernel)[1](code)[0]

    def of_image(image, kernel, code):
        return jax.vjp(lambda x: convolve(x, kernel), image)[1](code)[0]

    return lambda image, kernel, _: convolve(image, kernel), of_kernel, of_image


_STRIDED_PRODUCTS = (
    lambda image, kernel, _: convolutions._downsample_by_grid(image, kernel),
    lambda image, _, code: convolutions._kernel_gradient_by_grid(image, code),
    lambda _, kernel, code: convolutions._upsample_by_grid(code, kernel),
)
_PRODUCTS = (
    lambda image, kernel, _: convolutions._same_by_product(image, kernel),
    lambda image, _, code: convolutions._picture_kernel_gradient(image, code),
    lambda _, kernel, code: convolutions._same_by_product(code, convolutions.turned(kernel)),
)


if __name__ == "__main__":
    main()
