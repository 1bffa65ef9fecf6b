"""Connects the processes that train one run, and ends all of them when one fails or is lost.

XLA would wait for a lost process, on some platforms forever, or abort. Each process therefore watches the others over
a channel of its own (peers.py), and ends with a message and an exit status when one of them does not respond.
"""

import atexit
import ctypes
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress

import jax

from bigan_jax.errors import EXIT_RESUME, UserError
from bigan_jax.runtime import distributed, peers
from bigan_jax.runtime.distributed import broadcast_json, is_multiprocess, is_primary, require_equal, scratch

_TASK_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_SINGLE = "--num_processes=1 trains in this process alone."
_FAREWELL_SECONDS = 3


@contextmanager
def join_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> Iterator[None]:
    """Runs the body in this process as one of several that train a run, or as the only one.

    If one process fails, the others end with its message and status. If one is lost, they end with a message and
    status 75 (`EXIT_RESUME`). Only process 0 writes to stdout. All leave together.

    Args:
      coordinator: host:port of process 0; requires the next two. Without them JAX reads the environment: SLURM, Open
        MPI, Kubernetes, TPU.
      num_processes: 1 for this one alone.
      process_id: from 0.
      timeout: seconds without a heartbeat after which a process is lost.

    Raises:
      UserError: the arguments are invalid, or the other processes cannot be reached.
    """
    if not _initialize(coordinator, num_processes, process_id, timeout):
        yield
        return
    try:
        require_equal("number of devices", str(jax.local_device_count()))
        with nullcontext() if is_primary() else redirect_stdout(open(os.devnull, "w")):
            yield
    except BaseException as error:
        _report(error, timeout)
        raise
    _channel().closing = True
    jax.distributed.shutdown()
    _clean()


def _channel():
    assert distributed.channel is not None, "this process is one of several"
    return distributed.channel


def _initialize(coordinator, num_processes, process_id, timeout):
    """Returns whether this process is now one of several."""
    arguments = (coordinator, num_processes, process_id)
    if num_processes == 1:
        return False
    if arguments == (None, None, None):
        # JAX would restrict the only process to one of its GPUs.
        if any(os.environ.get(name) == "1" for name in _TASK_COUNTS):
            return False
    elif None in arguments:
        raise UserError(
            "--coordinator, --num_processes and --process_id belong together. "
            f"Set all three, or none in SLURM, Open MPI, Kubernetes or on TPUs. {_SINGLE}"
        )
    elif num_processes < 1 or not 0 <= process_id < num_processes:
        raise UserError(f"--process_id={process_id} must be from 0 to {num_processes - 1}. {_SINGLE}")
    elif not coordinator.rpartition(":")[2].isdecimal() or ":" not in coordinator:
        raise UserError(f"--coordinator={coordinator} must be host:port, such as node1:12345.")
    _on_abort("the processes of this run could not connect to each other")
    try:
        with warnings.catch_warnings():
            if "JOB_COMPLETION_INDEX" not in os.environ:  # JAX warns in any Kubernetes pod
                warnings.simplefilter("ignore")
            jax.distributed.initialize(*arguments, heartbeat_timeout_seconds=int(3 * timeout))
        jax.devices()  # waits for all processes
        if is_multiprocess():
            _open_channel(coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"), timeout)
    except Exception as error:  # of JAX, the Kubernetes client, a metadata server, ...
        configured = coordinator or "JAX_COORDINATOR_ADDRESS" in os.environ
        if isinstance(error, ValueError) and not configured and "defined" in str(error):  # JAX found no cluster
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
            return False
        raise UserError(f"cannot connect to the other processes: {error!r}\n{_SINGLE}") from error
    return is_multiprocess()


def _open_channel(coordinator, timeout):
    process = jax.process_index()
    server, address = peers.listen() if process == 0 else (None, {})
    address = broadcast_json(address)
    if server:
        connections = peers.accept(server, address["token"], jax.process_count() - 1, timeout)
    else:
        if coordinator:
            address["hosts"].insert(0, coordinator.rpartition(":")[0].strip("[]"))
        connections = {0: peers.connect(**address, process=process, timeout=timeout)}
    distributed.channel = peers.PeerChannel(connections, timeout, _end_for_lost, _end)
    _on_abort(None)


def _end_for_lost(process):
    if process == 0:
        time.sleep(1)  # XLA logs the loss as well; the message comes last
    _end(EXIT_RESUME, f"process {process} of {jax.process_count()} was lost. The same command resumes the run.")


def _end(status, message):
    if is_primary():  # the others learn it from process 0
        _channel().end(status, message)
    _leave(status, message)


def _report(error, timeout):
    """Sends the reason why this process ends to the others.

    If a collective operation failed because another process ended, the channel ends this process while it waits here.
    """
    if not isinstance(error, UserError | KeyboardInterrupt | SystemExit):
        time.sleep(timeout + 3 * peers.BEAT_SECONDS)
        _wait_if_leaving()
    elif not is_primary():  # process 0 reports what all of them raise
        time.sleep(2 * peers.BEAT_SECONDS)
    channel = _channel()
    channel.closing = True
    status = getattr(error, "status", 130) if isinstance(error, KeyboardInterrupt) else 1
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        status = error.code
    name = f"process {jax.process_index()} of {jax.process_count()}"
    channel.end(status, f"{name} ended: {str(error) or type(error).__name__}")
    # Python's exit would wait for the others, as JAX's shutdown does.
    atexit.register(_leave, status)


def _on_abort(message):
    """Makes SIGABRT, which XLA raises when process 0 is lost, end the process with a message and status 75.

    Without a message, the channel gets 5 seconds to end the process, which then aborts.
    """

    def handle(_):
        deadline = time.monotonic() + 5 * (message is None)
        while time.monotonic() < deadline:
            _wait_if_leaving()
            time.sleep(0.05)
        if message:
            _leave(EXIT_RESUME, message)
        set_handler(signal.SIGABRT, None)

    # Handlers set by Python's signal module run later, in the main thread.
    set_handler = ctypes.CDLL(None).signal
    _on_abort.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)  # keeps it alive
    set_handler(signal.SIGABRT, _on_abort.handler)


_leaving = threading.Lock()


def _wait_if_leaving():
    """Never returns if another thread is ending this process."""
    if _leaving.locked():
        threading.Event().wait()


def _leave(status, message=""):
    """Ends this process without JAX's shutdown, which waits for all processes."""
    if not _leaving.acquire(blocking=False):
        _wait_if_leaving()
    try:
        with suppress(OSError):  # nobody reads stderr any more
            if message:
                print(f"\nerror: {message}", file=sys.stderr)
        if distributed.channel and is_primary():  # the others receive the reason first
            distributed.channel.wait_until_closed(_FAREWELL_SECONDS)
        _clean()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
    finally:  # all other threads wait for this
        os._exit(status)


def _clean():
    if scratch.cache_info().currsize:
        shutil.rmtree(scratch(), ignore_errors=True)
