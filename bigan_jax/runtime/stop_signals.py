"""Stops the program on Ctrl-C, on a scheduler's SIGTERM, or after a time limit.

All three arrive as signals. During training, the first one lets the current step finish and the state be saved. At
any other time it ends the program, and the same command does the unfinished part again.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bigan_jax.errors import EXIT_RESUME

# Exit statuses: 128 + signal, as in shells; a queue should start the command again after the last.
_STATUS: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
_REASON: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
if hasattr(signal, "SIGALRM"):
    _STATUS[signal.SIGALRM] = EXIT_RESUME
    _REASON[signal.SIGALRM] = "out of time"


class Stopped(KeyboardInterrupt):
    """The program must end because of a signal; `note` says what was saved."""

    def __init__(self, signum: int, note: str = ""):
        super().__init__(": ".join(filter(None, (_REASON[signum], note))))
        self.status = _STATUS[signum]  # exit status of the program


def install_handlers(time_limit: float = 0.0) -> None:
    """Makes SIGINT, SIGTERM and SIGALRM raise Stopped in the main thread.

    SIGALRM arrives after `time_limit` minutes, unless that is 0 (not on Windows).
    """
    for signum in _STATUS:
        # Shells make background jobs ignore Ctrl-C; that is kept.
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _raise)
    if time_limit:
        signal.setitimer(signal.ITIMER_REAL, 60 * time_limit)  # a monotonic clock


def _raise(signum, _):
    raise Stopped(signum)


class StopRequest:
    """The state of a request to stop, shared by the signal handler and the training loop."""

    received: int | None = None  # the first signal that this process received
    acted_on: int = 0  # the signal, received by any process of the run, that ends the run; 0 if none


@contextmanager
def defer_signals(note: str) -> Iterator[StopRequest]:
    """Records signals in the request that it yields, instead of raising Stopped; the body checks it and ends in time.

    The first signal prints `note`; a later Ctrl-C ends the program immediately. Outside of the main thread signals are
    handled as before.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    # Python runs signal handlers between two of its instructions, and a compilation takes minutes. The wakeup socket
    # is written at once, and the thread that reads it does not wait.
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    caught = [s for s in _STATUS if signal.getsignal(s) is not signal.SIG_IGN]

    def listen():
        while signums := reader.recv(64):
            for signum in filter(caught.__contains__, signums):
                if request.received is None:
                    request.received = signal.Signals(signum)
                    print(f"\n{_REASON[signum]}: {note}", file=sys.stderr, flush=True)
                elif signum == signal.SIGINT:
                    os._exit(_STATUS[signal.SIGINT])

    watcher = threading.Thread(target=listen, name="signals", daemon=True)
    watcher.start()
    handlers = {signum: signal.signal(signum, lambda *_: None) for signum in caught}
    previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield request
    finally:
        signal.set_wakeup_fd(previous_fd)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        writer.close()
        watcher.join()
        reader.close()
