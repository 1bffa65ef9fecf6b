"""Training pictures that do not fit into memory: decoded when a batch asks for them, read ahead of
the step that needs them."""

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Int, UInt8

from bigan_jax.errors import UserError

Item, Result = TypeVar("Item"), TypeVar("Result")


class LazyImages:
    """Stands where an array of n pictures would, and holds none of them.

    Indexing decodes, in a pool of threads; `len`, `shape` and `dtype` are those of the array.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        read: Callable[[int], UInt8[np.ndarray, "h w c"]],
        names: Sequence[str],
        shape: tuple[int, int, int],
    ):
        """read: decodes the i-th picture; threads call it. names: of each, for the error that it
        cannot be read. shape: (h, w, c) of every picture."""
        self.shape = (len(names), *shape)
        self._read, self._names = read, names
        self._rows = np.arange(len(names))
        self._threads = ThreadPoolExecutor(min(16, os.cpu_count() or 1), "decode")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(
        self, indices: int | slice | Int[np.ndarray, "m"] | Bool[np.ndarray, "n"]
    ) -> UInt8[np.ndarray, "m h w c"]:
        """The pictures at `indices`, read as NumPy reads them; one of shape [h, w, c] for an int.

        Raises UserError that names the first picture that cannot be read.
        """
        rows = self._rows[indices]
        if rows.ndim == 0:
            return self._decode(rows)
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def fill(place: int) -> None:
            images[place] = self._decode(rows[place])

        for _ in self._threads.map(fill, range(len(rows))):
            pass
        return images

    def subset(self, indices: Int[np.ndarray, "m"] | Bool[np.ndarray, "n"] | slice) -> "LazyImages":
        """The pictures at `indices`, none of them decoded yet."""
        part = copy.copy(self)
        part._rows = self._rows[indices]
        part.shape = (len(part._rows), *self.shape[1:])
        return part

    def _decode(self, row):
        try:
            return self._read(int(row))
        except Exception as error:  # decoders of broken files raise nearly anything
            raise UserError(
                f"The picture {self._names[row]} cannot be read: {error or type(error).__name__}\n"
                "Mend or remove it and start again: training goes on from its last checkpoint."
            ) from error


def prefetch(
    read: Callable[[Item], Result], items: Iterable[Item], ahead: int = 2
) -> Iterator[Result]:
    """`read(item)` for each item, in order, by a thread that is at most `ahead` items ahead.

    What `read` raises is raised here, at its turn. The thread has ended when the iterator has, or
    when it is closed: close it (`contextlib.closing`) where a loop may be left early.
    """
    items = iter(items)
    thread = ThreadPoolExecutor(1, "read-ahead")
    try:
        waiting = deque(thread.submit(read, item) for item in islice(items, ahead))
        while waiting:
            result = waiting.popleft().result()
            # Only now, so that no more than `ahead` results are alive beside the one handed out.
            waiting.extend(thread.submit(read, item) for item in islice(items, 1))
            yield result
            del result
    finally:
        thread.shutdown(cancel_futures=True)
