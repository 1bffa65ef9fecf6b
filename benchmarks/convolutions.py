"""python -m benchmarks.convolutions [--dtype=float32 --batch=32 --strided 32-64-64 --torch]

Convolutions and their gradients as XLA's library has them and as matrix products
(bigan_jax/convolutions.py): milliseconds, the least of some turns, and operations a second as a
share of a large matrix product's in the same run. A layer is CHANNELS-DEPTH-SIDE: the picture that
goes in, and the depth of what comes out. Unless told otherwise they are those of the Improved BiGAN
and VGG16 that see pictures of one or three channels, and a strided one of 64 beside them.
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

REPEATS, TURNS = 10, 5  # calls that are timed together; and how often, the forms one by one
_STRIDED, _SAME = ("1-64-128", "64-128-64"), ("3-64-128", "32-1-128")


class Form(NamedTuple):
    """One way to compute a layer or a gradient of it."""

    what: str  # the same of all forms that have one result
    way: str
    operations: int
    call: Callable  # without arguments


def main(arguments: list[str] | None = None) -> list[tuple[Form, float]]:
    """Prints a row for each form, and returns them with their seconds."""
    args = _parser().parse_args(arguments)
    keep_freed_memory()  # as launch.py does; PyTorch gains by it too
    peak = matmul_peak(args.dtype, 2048 if jax.default_backend() == "cpu" else 8192)
    print(f"{jax.devices()[0].device_kind}, {args.dtype}: {peak / 1e12:.3g} TFLOP/s")
    rows = []
    for layer in forms(args.batch, args.dtype, args.strided, args.same, args.torch):
        turns = [[_seconds(form) for form in layer] for _ in range(1 + TURNS)]
        for form, seconds in zip(layer, np.min(turns[1:], 0), strict=True):
            rows.append((form, seconds))
            share = form.operations / seconds / peak
            name = f"{form.what} by {form.way}"
            print(f"{name:52}{1e3 * seconds:9.3f} ms {share:6.1%}", flush=True)
    return rows


def _parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--strided", nargs="*", default=_STRIDED, help="4x4 of stride 2")
    parser.add_argument("--same", nargs="*", default=_SAME, help="3x3 of stride 1")
    parser.add_argument("--torch", action="store_true", help="PyTorch's beside them, on a CPU")
    return parser


def _seconds(form):
    return sum(timed(lambda: [form.call() for _ in range(REPEATS)], 1)) / REPEATS


def forms(
    batch: int, dtype: str, strided=_STRIDED, same=_SAME, torch: bool = False
) -> Iterator[list[Form]]:
    """Those of each layer."""
    for size, stride, layer in [(4, 2, x) for x in strided] + [(3, 1, x) for x in same]:
        channels, depth, side = map(int, layer.split("-"))
        shapes = (
            (batch, side, side, channels),
            (size, size, channels, depth),
            (batch, side // stride, side // stride, depth),
        )
        keys = random.split(random.key(0), 3)
        operands = [random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes, strict=True)]
        ways = {"library": _library(stride), **(_STRIDED_PRODUCTS if stride == 2 else _PRODUCTS)}
        name = f"{size}x{size}, {channels} to {depth}, {side}x{side}"
        operations = 2 * size**2 * channels * operands[2].size
        found = [
            Form(f"{name}{part}", way, operations, partial(jax.jit(function), *operands))
            for way, functions in ways.items()
            for part, function in functions.items()
        ]
        if torch:
            calls = _torch(stride, *operands)
            found += [Form(f"{name}{p}", "PyTorch", operations, call) for p, call in calls.items()]
        yield sorted(found, key=lambda form: form.what)


def _library(stride):
    def convolve(image, kernel):
        return lax.conv_general_dilated(
            image,
            kernel,
            (stride, stride),
            [(1, 1)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    return {
        "": lambda image, kernel, _: convolve(image, kernel),
        ", kernel's": lambda image, kernel, code: jax.vjp(partial(convolve, image), kernel)[1](
            code
        )[0],
        ", image's": lambda image, kernel, code: jax.vjp(lambda x: convolve(x, kernel), image)[1](
            code
        )[0],
    }


_STRIDED_PRODUCTS = {
    "product": {
        "": lambda image, kernel, _: convolutions._space_to_depth_downsample(image, kernel),
        ", kernel's": lambda image, _, code: convolutions._space_to_depth_kernel_gradient(
            image, code
        ),
        ", image's": lambda _, kernel, code: convolutions._space_to_depth_upsample(code, kernel),
    }
}
_PRODUCTS = {
    "product": {
        "": lambda image, kernel, _: convolutions._same_by_product(image, kernel),
        ", kernel's": lambda image, _, code: convolutions._image_kernel_gradient(image, code),
        ", image's": lambda _, kernel, code: convolutions._same_by_product(
            code, convolutions.flip_kernel(kernel)
        ),
    },
    "product of rows and columns": {
        ", kernel's": lambda image, _, code: convolutions._same_kernel_gradient_by_rows(image, code)
    },
}


def _torch(stride, image, kernel, code):
    """PyTorch's, channels last."""
    import torch

    def tensor(array, *order):
        given = torch.from_numpy(np.array(array).transpose(order))
        return given.contiguous(memory_format=torch.channels_last)

    image, code = tensor(image, 0, 3, 1, 2), tensor(code, 0, 3, 1, 2)
    kernel = tensor(kernel, 3, 2, 0, 1)
    how = [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1

    def gradient(of):
        mask = [of == "image", of == "kernel", False]
        return torch.ops.aten.convolution_backward(code, image, kernel, None, *how, mask)

    return {
        "": lambda: torch.nn.functional.conv2d(image, kernel, None, stride, 1).permute(0, 2, 3, 1),
        ", kernel's": lambda: gradient("kernel")[1].permute(2, 3, 1, 0),
        ", image's": lambda: gradient("image")[0].permute(0, 2, 3, 1),
    }


if __name__ == "__main__":
    main()
