"""Measures convolutions and their gradients by the library and as matrix products.

    python -m benchmarks.convolutions [--dtype=float32 --batch=32 --strided 32-64-64 --torch]

Compares XLA's library with bigan_jax/nn/convolutions.py: milliseconds (the best round) and
operations per second as a fraction of those of a large matrix product in the same run. A layer is
CHANNELS-DEPTH-SIDE: channels and side of its input, depth of its output. The defaults are the
layers of the Improved BiGAN and VGG16 on images of one or three channels, and a strided one on 64.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax import lax, random

from benchmarks.accelerator import matmul_peak, timed
from bigan_jax.nn import convolutions
from bigan_jax.runtime.jax_setup import keep_freed_memory

REPEATS, ROUNDS = 10, 5  # calls per timing, and rounds over all implementations
_STRIDED, _SAME = ("1-64-128", "64-128-64"), ("3-64-128", "32-1-128")


class Implementation(NamedTuple):
    """One way to compute a layer or a gradient of it."""

    operation: str  # the same for all implementations with equal results
    method: str
    flops: int
    call: Callable  # without arguments


def main(arguments: list[str] | None = None) -> list[tuple[Implementation, float]]:
    """Prints a row for each implementation, and returns them with their seconds."""
    args = _parser().parse_args(arguments)
    keep_freed_memory()  # as launch.py does; PyTorch gains as well
    peak = matmul_peak(args.dtype, 2048 if jax.default_backend() == "cpu" else 8192)
    print(f"{jax.devices()[0].device_kind}, {args.dtype}: {peak / 1e12:.3g} TFLOP/s")
    rows = []
    for layer in implementations(args.batch, args.dtype, args.strided, args.same, args.torch):
        rounds = [[_seconds(implementation) for implementation in layer] for _ in range(1 + ROUNDS)]
        for implementation, seconds in zip(layer, np.min(rounds[1:], 0), strict=True):
            rows.append((implementation, seconds))
            fraction = implementation.flops / seconds / peak
            name = f"{implementation.operation} by {implementation.method}"
            print(f"{name:52}{1e3 * seconds:9.3f} ms {fraction:6.1%}", flush=True)
    return rows


def _parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--strided", nargs="*", default=_STRIDED, help="layers of 4x4, stride 2")
    parser.add_argument("--same", nargs="*", default=_SAME, help="layers of 3x3, stride 1")
    parser.add_argument("--torch", action="store_true", help="add PyTorch, on a CPU")
    return parser


def _seconds(implementation):
    return sum(timed(lambda: [implementation.call() for _ in range(REPEATS)], 1)) / REPEATS


def implementations(
    batch: int, dtype: str, strided=_STRIDED, same=_SAME, torch: bool = False
) -> Iterator[list[Implementation]]:
    """The implementations of each layer and of its gradients."""
    for size, stride, layer in [(4, 2, x) for x in strided] + [(3, 1, x) for x in same]:
        channels, depth, side = map(int, layer.split("-"))
        shapes = (
            (batch, side, side, channels),
            (size, size, channels, depth),
            (batch, side // stride, side // stride, depth),
        )
        keys = random.split(random.key(0), 3)
        operands = [random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]
        methods = {"library": _library(stride), **(_STRIDED_PRODUCTS if stride == 2 else _PRODUCTS)}
        name = f"{size}x{size}, {channels} to {depth}, {side}x{side}"
        flops = 2 * size**2 * channels * operands[2].size
        layer_implementations = [
            Implementation(f"{name}{part}", method, flops, partial(jax.jit(function), *operands))
            for method, functions in methods.items()
            for part, function in functions.items()
        ]
        if torch:
            calls = _torch(stride, *operands)
            layer_implementations += [Implementation(f"{name}{p}", "PyTorch", flops, call) for p, call in calls.items()]
        yield sorted(layer_implementations, key=lambda each: each.operation)


def _library(stride):
    def convolve(image, kernel):
        return lax.conv_general_dilated(
            image, kernel, (stride, stride), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return {
        "": lambda image, kernel, _: convolve(image, kernel),
        ", kernel gradient": lambda image, kernel, code: jax.vjp(partial(convolve, image), kernel)[1](code)[0],
        ", image gradient": lambda image, kernel, code: jax.vjp(lambda x: convolve(x, kernel), image)[1](code)[0],
    }


_STRIDED_PRODUCTS = {
    "product": {
        "": lambda image, kernel, _: convolutions._space_to_depth_downsample(image, kernel),
        ", kernel gradient": lambda image, _, code: convolutions._space_to_depth_kernel_gradient(image, code),
        ", image gradient": lambda _, kernel, code: convolutions._space_to_depth_upsample(code, kernel),
    }
}
_PRODUCTS = {
    "product": {
        "": lambda image, kernel, _: convolutions._same_by_product(image, kernel),
        ", kernel gradient": lambda image, _, code: convolutions._image_kernel_gradient(image, code),
        ", image gradient": lambda _, kernel, code: convolutions._same_by_product(
            code, convolutions.flip_kernel(kernel)
        ),
    },
    "product of rows and columns": {
        ", kernel gradient": lambda image, _, code: convolutions._same_kernel_gradient_by_rows(image, code)
    },
}


def _torch(stride, image, kernel, code):
    """The implementations of PyTorch, in channels_last memory."""
    import torch

    def tensor(array, *order):
        array = torch.from_numpy(np.array(array).transpose(order))
        return array.contiguous(memory_format=torch.channels_last)

    image, code = tensor(image, 0, 3, 1, 2), tensor(code, 0, 3, 1, 2)
    kernel = tensor(kernel, 3, 2, 0, 1)
    options = [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1

    def gradient(operand):
        mask = [operand == "image", operand == "kernel", False]
        return torch.ops.aten.convolution_backward(code, image, kernel, None, *options, mask)

    return {
        "": lambda: torch.nn.functional.conv2d(image, kernel, None, stride, 1).permute(0, 2, 3, 1),
        ", kernel gradient": lambda: gradient("kernel")[1].permute(2, 3, 1, 0),
        ", image gradient": lambda: gradient("image")[0].permute(0, 2, 3, 1),
    }


if __name__ == "__main__":
    main()
