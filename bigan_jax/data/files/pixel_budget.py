"""Bounds the memory of decoding: how many pixels several threads decode at the same time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PixelBudget:
    """A number of pixels that threads share."""

    def __init__(self, limit: int):
        self._limit, self._total = limit, 0
        self._changed = threading.Condition()
        self._thread = threading.local()

    @contextmanager
    def hold(self, n: int) -> Iterator[None]:
        """Hold `n` pixels until the context ends; first wait until they fit, or no other thread holds any.

        A thread that holds pixels already does not wait again.
        """
        if getattr(self._thread, "holds", False):
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._total or self._total + n <= self._limit)
            self._total += n
        self._thread.holds = True
        try:
            yield
        finally:
            self._thread.holds = False
            with self._changed:
                self._total -= n
                self._changed.notify_all()
