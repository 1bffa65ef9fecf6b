"""Bounds the memory of decoding: how many bytes several threads need at the same time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """A number of bytes that threads share."""

    def __init__(self, limit: int):
        self._limit, self._total = limit, 0
        self._changed = threading.Condition()
        self._thread = threading.local()

    @contextmanager
    def hold(self, n_bytes: int) -> Iterator[None]:
        """Holds `n_bytes` until the context ends; first wait until they fit, or no other thread holds any.

        A thread that holds bytes already does not wait again.
        """
        if getattr(self._thread, "holds", False):
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._total or self._total + n_bytes <= self._limit)
            self._total += n_bytes
        self._thread.holds = True
        try:
            yield
        finally:
            self._thread.holds = False
            with self._changed:
                self._total -= n_bytes
                self._changed.notify_all()
