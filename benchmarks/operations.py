"""Kinds of operations, by the names that XLA's and PyTorch's profilers give them."""

import re

PRODUCTS, COPIES, REST = KINDS = ("products", "copies", "the rest")

_PRODUCTS = {"dot", "convolution", "custom-call"}
_COPIES = {
    *("copy", "transpose", "concatenate", "pad", "slice", "reshape", "broadcast", "gather"),
    *("dynamic-slice", "dynamic-update-slice", "reverse", "select", "bitcast", "iota"),
}
_NEUTRAL = {"parameter", "constant", "tuple", "get-tuple-element", "compare", "and", "convert"}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*?\s([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")


def of_program(text: str) -> dict[str, str]:
    """The kind of each operation of a compiled program, by its name.

    text: the program as HLO. One that was fused is a product where a product or convolution is part
    of it, and a copy where nothing in it computes.
    """
    inside, callers, computation = {}, {}, ""
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            computation = opened[1]
        elif found := _INSTRUCTION.match(line):
            name, operation = found.groups()
            inside.setdefault(computation, set()).add(operation)
            called = _CALLED.search(line)
            callers[name] = operation, called[1] if called else None

    def operations(name):
        operation, called = callers[name]
        calls = operation in ("fusion", "call") and called in inside
        return inside[called] if calls else {operation}

    return {name: _kind(operations(name)) for name in callers}


def _kind(operations):
    if operations & _PRODUCTS:
        return PRODUCTS
    return COPIES if operations <= _COPIES | _NEUTRAL else REST


def of_gpu(kernel: str) -> str:
    """The kind of a kernel on a GPU: of cuDNN and cuBLAS, or of XLA's own, which are fusions."""
    copies = r"Padding|nchwTo|nhwcTo|[Mm]em(set|cpy)|copy|transpose|concatenate|pad_fusion"
    if re.search(copies, kernel):
        return COPIES
    if re.search(r"xmma|conv(?!ert)|cutlass|gemm|nvjet|cudnn|cublas", kernel):
        return PRODUCTS
    return REST


def of_torch(name: str) -> str:
    """The kind of an operation of PyTorch's profiler, such as aten::convolution_backward."""
    if re.search(r"conv|mm$|mm_|matmul|linear|einsum", name):
        return PRODUCTS
    if re.search(r"copy|cat$|clone|contiguous|pad|stack|index|fill|zero|repeat|expand", name):
        return COPIES
    return REST
