"""Heartbeats and messages between process 0 of a run and the others, over TCP.

JAX has such a channel too, but not in its public interface, and it aborts when a process is lost.
"""

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

BEAT_SECONDS = 1.0
_MAX_LINE = 2**20  # bytes of a message
_TOKEN_LENGTH, _HELLO_LENGTH = 32, 40


class PeerChannel:
    """Connections of process 0 with the others; each side sends a line of JSON every second."""

    def __init__(
        self,
        connections: dict[int, socket.socket],
        timeout: float,
        on_lost: Callable[[int], None],
        on_end: Callable[[int, str], None],
    ):
        """Starts the channel's threads.

        Args:
          connections: by process: in process 0 those with all others, elsewhere that with 0.
          timeout: seconds of silence after which a process is lost.
          on_lost: called with the process that is lost: silent, or its connection is closed.
          on_end: called with the exit status and the message of a process that failed.
        """
        self.closing = False  # while True, losses and failures are no longer reported
        self._connections, self._open = connections, set(connections)
        self._on_lost, self._on_end = on_lost, on_end
        self._announced: set[str] = set()
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        for process, connection in connections.items():
            connection.settimeout(timeout)
            threading.Thread(target=self._read, args=(process,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def announce(self, event: str) -> None:
        """Sends an event to all connected processes; `wait_for` waits for it."""
        self._send({"event": event})

    def wait_for(self, event: str) -> None:
        with self._changed:
            while event not in self._announced:
                self._changed.wait(BEAT_SECONDS)  # signals are handled in between

    def end(self, status: int, message: str) -> None:
        """Makes all other processes end with a status and a message."""
        self._send({"status": status, "message": message})

    def wait_until_closed(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._open and time.monotonic() < deadline:
            time.sleep(0.05)

    def _send(self, message):
        line = json.dumps(message).encode() + b"\n"
        with self._sending:
            for connection in self._connections.values():
                with suppress(OSError):  # its reader reports it
                    connection.sendall(line)

    def _beat(self):
        while True:
            self._send({})
            time.sleep(BEAT_SECONDS)

    def _read(self, process):
        with suppress(OSError), self._connections[process].makefile("rb") as lines:
            while line := lines.readline(_MAX_LINE):
                message = json.loads(line)
                if "event" in message:
                    with self._changed:
                        self._announced.add(message["event"])
                        self._changed.notify_all()
                if "status" in message and not self.closing:
                    self._on_end(message["status"], message["message"])
        self._open.discard(process)
        if not self.closing:
            self._on_lost(process)


def listen() -> tuple[socket.socket, dict]:
    """Returns a socket that listens for the other processes, and the "hosts", "port" and "token" for `connect`."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
    hosts = [socket.gethostname()]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing, but chooses the address of the network
        hosts.append(probe.getsockname()[0])
    token = secrets.token_hex(_TOKEN_LENGTH // 2)
    return server, {"hosts": hosts, "port": server.getsockname()[1], "token": token}


def accept(server: socket.socket, token: str, count: int, timeout: float) -> dict[int, socket.socket]:
    """Returns the connections of `count` other processes, by process. Raises OSError if they are late."""
    connections = {}
    deadline = time.monotonic() + timeout
    with server:
        while len(connections) < count:
            server.settimeout(max(0.001, deadline - time.monotonic()))
            connection, _ = server.accept()
            with suppress(OSError, ValueError):
                connection.settimeout(5)
                hello = connection.recv(_HELLO_LENGTH, getattr(socket, "MSG_WAITALL", 0))
                if secrets.compare_digest(hello[:_TOKEN_LENGTH], token.encode()):
                    connections[int(hello[_TOKEN_LENGTH:])] = connection
    return connections


def connect(hosts: Sequence[str], port: int, token: str, process: int, timeout: float) -> socket.socket:
    """Connects a process with process 0 at the first of `hosts` that answers. Raises OSError if none does."""
    failure = OSError("no address of process 0")
    for host in hosts:
        try:
            connection = socket.create_connection((host, port), timeout)
            connection.sendall(f"{token}{process:0{_HELLO_LENGTH - _TOKEN_LENGTH}}".encode())
            return connection
        except OSError as error:
            failure = error
    raise failure
