"""How the processes of one run find each other, and what ends all when one is lost.

`jax.distributed` joins them. XLA itself would wait in a collective operation for a lost process,
on some platforms for ever, or abort: so a thread in each gives signs of life in the key-value store
that process 0 holds, and ends its process with a line when another one's are missing.
"""

import atexit
import ctypes
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress

import jax
from jax._src import distributed
from jax.errors import JaxRuntimeError

from bigan_jax.errors import EXIT_RESUME, UserError
from bigan_jax.runtime.distributed import (
    PAUSE,
    await_key,
    is_multiprocess,
    is_primary,
    require_equal,
    scratch,
    store,
)

_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_ALONE = "--num_processes=1 trains in this process alone."


@contextmanager
def join_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> Iterator[None]:
    """Within, this process is one of those that train one run, or alone where there are no others.

    coordinator: host:port where process 0 can be reached. It goes with num_processes and
      process_id; without them JAX asks the environment: SLURM, Open MPI, Kubernetes, TPU.
    timeout: seconds without a sign of life after which a process is lost; of process 0, whose store
      then does not answer either, three times as long where nothing closes its connections.

    When a process fails, the others end with its message and status; when it is lost, with a line
    and status AGAIN. Only process 0 writes to stdout. All of them leave together.
    Raises UserError for arguments that do not make sense, and where no others are found.
    """
    if not _connect(coordinator, num_processes, process_id, timeout):
        yield
        return
    watch = _Heartbeat(timeout)
    watch.start()
    try:
        require_equal("number of devices", str(jax.local_device_count()))
        with nullcontext() if is_primary() else redirect_stdout(open(os.devnull, "w")):
            yield
    except BaseException as error:
        watch.report(error)
        raise
    watch.over.set()
    jax.distributed.shutdown()
    _clean()


def _clean():
    if scratch.cache_info().currsize:
        shutil.rmtree(scratch(), ignore_errors=True)


def _connect(coordinator, num_processes, process_id, timeout):
    given = (coordinator, num_processes, process_id)
    if num_processes == 1:
        return False
    if given == (None, None, None):
        # JAX would take one of the GPUs here for the only process.
        if any(os.environ.get(name) == "1" for name in _COUNTS):
            return False
    elif None in given:
        raise UserError(
            "--coordinator, --num_processes and --process_id belong together: give all three, or "
            "none in SLURM, Open MPI, Kubernetes or on TPUs. " + _ALONE
        )
    elif num_processes < 1 or not 0 <= process_id < num_processes:
        raise UserError(f"--process_id={process_id} is none of 0 to {num_processes - 1}. {_ALONE}")
    elif not coordinator.rpartition(":")[2].isdecimal() or ":" not in coordinator:
        raise UserError(f"--coordinator={coordinator} is no host:port, such as node1:12345")
    _on_abort(lambda: "the processes of this run did not find each other")
    try:
        with warnings.catch_warnings():
            if "JOB_COMPLETION_INDEX" not in os.environ:  # any pod would be told to join others
                warnings.simplefilter("ignore")
            jax.distributed.initialize(*given, heartbeat_timeout_seconds=int(3 * timeout))
        jax.devices()  # here they meet
    except ValueError as error:
        nothing = coordinator is None and "JAX_COORDINATOR_ADDRESS" not in os.environ
        if nothing and "defined" in str(error):  # JAX found no cluster
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
            return False
        raise UserError(f"the processes cannot be joined: {error}\n{_ALONE}") from error
    except Exception as error:  # of Kubernetes' client, of a metadata server, ...
        raise UserError(f"the processes cannot be joined: {error!r}\n{_ALONE}") from error
    return is_multiprocess()


class _Heartbeat(threading.Thread):
    """Gives this process's signs of life, looks for those of the others, and ends this process when
    one is lost or has said that it fails."""

    def __init__(self, timeout: float):
        super().__init__(name="watch", daemon=True)
        self.over = threading.Event()
        self._timeout, self._heard = timeout, {}
        self._me, self._all = jax.process_index(), jax.process_count()
        self._round = time.monotonic()
        _on_abort(self._abandoned)

    def run(self) -> None:
        beat, self._heard = 0, dict.fromkeys(range(self._all), ("", 0))
        while not self.over.is_set():
            beat += 1
            try:
                store().key_value_set(f"beat/{self._me}", str(beat), allow_overwrite=True)
                lost = self._lost(beat) if self._me == 0 else []
                ended = await_key("ended", PAUSE)
            except JaxRuntimeError:
                lost, ended = [0], None
            self._round = time.monotonic()
            if self.over.is_set():
                return
            if ended:
                _leave(*json.loads(ended))
            if lost:
                message = self._lost_line(lost[0])
                _tell_all(EXIT_RESUME, message)
                _leave(EXIT_RESUME, message)

    def report(self, error: BaseException) -> None:
        """Tells the others why this process ends. Where the end of another may be the reason, as
        for whatever a collective operation raises, it waits for that to be seen, which ends it."""
        if not isinstance(error, UserError | KeyboardInterrupt | SystemExit):
            time.sleep(self._timeout + 3 * PAUSE)
            _wait_if_leaving()
        elif not is_primary():  # what all of them found is told by process 0
            time.sleep(2 * PAUSE)
        self.over.set()
        status = getattr(error, "status", 130) if isinstance(error, KeyboardInterrupt) else 1
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            status = error.code
        told = str(error) or type(error).__name__
        _tell_all(status, f"process {self._me} of {self._all} ended: {told}")
        # Python's exit would wait for the others, as JAX's farewell does.
        atexit.register(_leave, status)

    def _lost(self, beat):
        # In beats of its own: where this process was held up, so may have been the others.
        for name, sign in store().key_value_dir_get("beat"):
            process = int(name.rpartition("/")[2])
            if self._heard[process][0] != sign:
                self._heard[process] = (sign, beat)
        return [k for k, (_, at) in self._heard.items() if (beat - at) * PAUSE > self._timeout]

    def _lost_line(self, process):
        return (
            f"process {process} of {self._all} was lost. The same command, in any number of "
            "processes, goes on from the last checkpoint."
        )

    def _abandoned(self):
        """Why XLA aborts this process: the line where process 0 is gone, else None."""
        if time.monotonic() - self._round > self._timeout:
            return self._lost_line(0)
        host, _, port = distributed.global_state.coordinator_address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError:
            return self._lost_line(0)
        return None


def _on_abort(explain):
    """Has an abort by XLA's C++ code, which is how it ends a process that has lost process 0, say
    `explain()` and exit with AGAIN, if there is an explanation."""

    def handle(_):
        _wait_if_leaving()
        if line := explain():
            _leave(EXIT_RESUME, line)
        signal_(signal.SIGABRT, None)

    # Python's own handlers would only be run by the main thread, later.
    signal_ = ctypes.CDLL(None).signal
    _on_abort.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)  # kept alive here
    signal_(signal.SIGABRT, _on_abort.handler)


_leaving = threading.Lock()


def _wait_if_leaving():
    """For ever, where another thread is ending this process."""
    if _leaving.locked():
        threading.Event().wait()


def _leave(status: int, message: str = "") -> None:
    """Ends this process without JAX's farewell, which waits for all processes."""
    while not _leaving.acquire(blocking=False):
        _wait_if_leaving()
    if message:
        print(f"\nerror: {message}", file=sys.stderr)
    if distributed.global_state.process_id == 0:
        time.sleep(3 * PAUSE)  # the others hear of it from here
    _clean()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)


def _tell_all(status, message):
    with suppress(JaxRuntimeError):  # another process was first
        store().key_value_set("ended", json.dumps([status, message]))
