"""Kinds of operations by their names in the profilers of XLA and PyTorch."""

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
    """The kind of each operation of a compiled program (HLO text), by name.

    A fusion is a product if it contains a product or convolution, and a copy if it only moves data.
    """
    operations_of, callers, computation = {}, {}, ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif instruction := _INSTRUCTION.match(line):
            name, operation = instruction.groups()
            operations_of.setdefault(computation, set()).add(operation)
            called = _CALLED.search(line)
            callers[name] = operation, called[1] if called else None

    def operations(name):
        operation, called = callers[name]
        calls = operation in ("fusion", "call") and called in operations_of
        return operations_of[called] if calls else {operation}

    return {name: _kind(operations(name)) for name in callers}


def _kind(operations):
    if operations & _PRODUCTS:
        return PRODUCTS
    return COPIES if operations <= _COPIES | _NEUTRAL else REST


def of_gpu(kernel: str) -> str:
    """The kind of a GPU kernel, of cuDNN, cuBLAS or a fusion of XLA."""
    copies = r"Padding|nchwTo|nhwcTo|[Mm]em(set|cpy)|copy|transpose|concatenate|pad_fusion"
    if re.search(copies, kernel):
        return COPIES
    if re.search(r"xmma|conv(?!ert)|cutlass|gemm|nvjet|cudnn|cublas", kernel):
        return PRODUCTS
    return REST


def of_torch(name: str) -> str:
    """The kind of an operation in PyTorch's profiler, such as aten::convolution_backward."""
    if re.search(r"conv|mm$|mm_|matmul|linear|einsum", name):
        return PRODUCTS
    if re.search(r"copy|cat$|clone|contiguous|pad|stack|index|fill|zero|repeat|expand", name):
        return COPIES
    return REST
