"""Stopping when asked: by Ctrl-C, by a scheduler's SIGTERM, by a limit of time.

All three are signals. While a run trains, the first lets the step end and the state be saved; at
any other moment it ends the program, which loses nothing: the same command does the rest again.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bigan_jax.errors import EXIT_RESUME

# The status that a command ends with: as shells have it, and EX_TEMPFAIL of sysexits.h for what
# a queue should start again.
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
REASON = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
if hasattr(signal, "SIGALRM"):
    STATUS[signal.SIGALRM] = EXIT_RESUME
    REASON[signal.SIGALRM] = "out of time"


class Stopped(KeyboardInterrupt):
    """The program was asked to end: `status` is what it ends with, the text says what was kept."""

    def __init__(self, signum: int, kept: str = ""):
        super().__init__(": ".join(filter(None, (REASON[signum], kept))))
        self.status = STATUS[signum]


def install_handlers(time_limit: float = 0.0) -> None:
    """From now on each of these signals raises Stopped in the main thread.

    time_limit: minutes after which the program is asked to end; 0: none. Not on Windows.
    """
    for signum in STATUS:
        # A shell has its background jobs ignore Ctrl-C, and they go on doing so.
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _raise)
    if time_limit:
        signal.setitimer(signal.ITIMER_REAL, 60 * time_limit)  # by a clock that nobody sets


def _raise(signum, _):
    raise Stopped(signum)


class StopRequest:
    """What `deferred` yields."""

    received: int | None = None  # the first signal that came to this process
    acted_on: int = 0  # the one upon which the run ends, of whichever process; 0: none


@contextmanager
def defer_signals(note: str) -> Iterator[StopRequest]:
    """Signals are noted instead of acted on, and the body ends when it sees fit.

    note: printed at the first one. A Ctrl-C after it ends the program at once, whatever it is
    doing. Outside of the main thread nothing is caught.
    """
    asked = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    # Python runs handlers between two of its own instructions, and a compilation can take minutes:
    # the bytes that it writes to this socket at once are read by a thread that need not wait.
    here, there = socket.socketpair()
    there.setblocking(False)
    caught = [s for s in STATUS if signal.getsignal(s) is not signal.SIG_IGN]

    def watch():
        while signums := here.recv(64):
            for signum in filter(caught.__contains__, signums):
                if asked.received is None:
                    asked.received = signal.Signals(signum)
                    print(f"\n{REASON[signum]}: {note}", file=sys.stderr, flush=True)
                elif signum == signal.SIGINT:
                    os._exit(STATUS[signal.SIGINT])

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    before = {signum: signal.signal(signum, lambda *_: None) for signum in caught}
    wakeup = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    try:
        yield asked
    finally:
        signal.set_wakeup_fd(wakeup)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        there.close()
        watcher.join()
        here.close()
