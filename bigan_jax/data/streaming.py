"""Training images that do not fit into memory: decoded on demand and prefetched."""

import copy
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Int, UInt8

from bigan_jax.errors import UserError

Item, Result = TypeVar("Item"), TypeVar("Result")


class LazyImages:
    """An array of `n` images that a pool of threads decodes when they are indexed."""

    dtype = np.dtype(np.uint8)

    def __init__(
        self, read: Callable[[int], UInt8[np.ndarray, "h w c"]], names: Sequence[str], shape: tuple[int, int, int]
    ):
        """Takes a function that decodes an image by index, names for errors, and the shape (h, w, c) of an image."""
        self.shape = (len(names), *shape)
        self._read, self._names = read, names
        self._rows = np.arange(len(names))
        self._threads = ThreadPoolExecutor(min(16, os.cpu_count() or 1), "decode")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(
        self, indices: int | slice | Int[np.ndarray, "m"] | Bool[np.ndarray, "n"]
    ) -> UInt8[np.ndarray, "... h w c"]:
        """Decodes the images at `indices`, as in NumPy. Raises UserError with the name of an unreadable image."""
        rows = self._rows[indices]
        if rows.ndim == 0:
            return self._decode(rows)
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for i, image in enumerate(self._threads.map(self._decode, rows)):
            images[i] = image
        return images

    def subset(self, indices: Int[np.ndarray, "m"] | Bool[np.ndarray, "n"] | slice) -> "LazyImages":
        """Returns the images at `indices`, still not decoded."""
        images = copy.copy(self)
        images._rows = self._rows[indices]
        images.shape = (len(images._rows), *self.shape[1:])
        return images

    def _decode(self, row):
        try:
            return self._read(int(row))
        except Exception as error:  # decoders raise nearly any exception for a corrupt file
            raise UserError(
                f"The image {self._names[row]} cannot be read: {error or type(error).__name__}\n"
                "Fix or remove it and run the same command again: training resumes from its last checkpoint."
            ) from error


def fixed_draw(n: int, limit: int) -> Int[np.ndarray, "m"]:
    """Returns sorted indices of n images: all, or the same random `limit` of them every time."""
    if n <= limit:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, limit, replace=False))


def prefetch(read: Callable[[Item], Result], items: Iterable[Item], ahead: int = 2) -> Generator[Result]:
    """Yields `read(item)` for each item in order, read ahead by a thread.

    At most `ahead` results are read in advance. Exceptions of `read` are raised when their result is due. The thread
    ends with the iterator: close it (`contextlib.closing`) if a loop may end early.
    """
    items = iter(items)
    thread = ThreadPoolExecutor(1, "prefetch")
    try:
        pending = deque(thread.submit(read, item) for item in islice(items, ahead))
        while pending:
            result = pending.popleft().result()
            # Only now, so that at most `ahead` results exist in addition to the one yielded.
            pending.extend(thread.submit(read, item) for item in islice(items, 1))
            yield result
            del result
    finally:
        thread.shutdown(cancel_futures=True)
