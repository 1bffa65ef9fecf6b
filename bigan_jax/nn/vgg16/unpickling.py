"""Pickles from strangers: what they name is looked up in a table of a few, and they take no more
memory or time than they have bytes."""

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

from bigan_jax.errors import UserError

LARGEST = 2**22  # bytes; what PyTorch says of VGG16's tensors is a few thousand


class RestrictedUnpickler(pickle.Unpickler):
    """Knows the names in `table` and no others."""

    def __init__(self, file: BinaryIO, table: dict[str, Any], storage: Callable | None = None):
        """table: by "module.name", what stands for it. Nothing in it may have attributes that can
        be set, as a pickle can do that. storage: what a reference to data outside becomes."""
        super().__init__(file)
        self.table, self.storage = table, storage

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.table:
            raise UserError(
                f"refused: it asks for {module[:100]}.{name[:100]}, and plain arrays do not. A "
                "PyTorch file must hold model.state_dict(), on the CPU, in float32."
            )
        return self.table[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        if self.storage is None:
            raise UserError("refused: it refers to data outside the pickle")
        return self.storage(pid)


def next_pickle(file: BinaryIO) -> io.BytesIO:
    """The pickle that begins here; a file that can seek is left at its end.

    Raises UserError where it asks for a place far out in the memo, which would be made, or repeats
    a tuple: tuples of twice the same, forty deep, are hashed for years. Picklers of tensors do
    neither. Raises ValueError where it is no pickle, or longer than LARGEST.
    """
    start = file.tell()
    content = file.read(LARGEST)
    made, last, end = {}, "", 0
    for instruction, argument, place in pickletools.genops(content):
        name, end = instruction.name, place + 1
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            number = len(made) if argument is None else argument
            if number > len(content):
                raise UserError("refused: its pickle has a memo larger than itself")
            made[number] = last
        elif name in ("DUP", "POP", "POP_MARK") or (
            name in ("GET", "BINGET", "LONG_BINGET") and "TUPLE" in made.get(argument, "")
        ):
            raise UserError("refused: its pickle repeats a tuple, or hides that it does")
        else:
            last = name
    if file.seekable():
        file.seek(start + end)
    return io.BytesIO(content[:end])
