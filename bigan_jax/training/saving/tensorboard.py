"""Curves for TensorBoard."""

import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from bigan_jax.runtime.files import write_error


class TensorBoardWriter:
    """A file of events. It is written by the caller's own thread: tensorboardX's SummaryWriter has
    one for it that a full disk ends, and whoever adds to it then waits for ever."""

    def __init__(self, folder: Path, first: int):
        """first: what other files in the folder hold of this step and later ones is not shown."""
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The name has the second only, and two of one second would be one file.
            self._file = EventsWriter(str(folder / "events"), f".{uuid.uuid4().hex}")
        except OSError as error:
            raise write_error(folder, error) from error
        self._file.write_event(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each curve. Raises UserError where it cannot be written."""
        stamp = time.time()
        try:
            for name, value in values.items():
                event = Event(step=step, wall_time=stamp, summary=scalar(name, value))
                self._file.write_event(event)
            self._file.flush()
        except OSError as error:
            raise write_error(self._folder, error) from error

    def close(self) -> None:
        """Raises UserError where it cannot be written."""
        try:
            self._file.close()
        except OSError as error:
            raise write_error(self._folder, error) from error
