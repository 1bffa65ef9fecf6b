"""TensorBoard summaries of a training."""

import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from bigan_jax.runtime.files import write_error


class TensorBoardWriter:
    """Writes scalars to an event file from the caller's thread.

    tensorboardX's SummaryWriter has a thread of its own, which a full disk ends; whoever adds to it then waits
    forever.
    """

    def __init__(self, folder: Path, first_step: int):
        """Creates an event file.

        Args:
          folder: folder of event files.
          first_step: TensorBoard hides what other files in the folder have from this step on.

        Raises:
          UserError: the file could not be written.
        """
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Event files are named by the second; the suffix keeps two of one second apart.
            self._file = EventsWriter(str(folder / "events"), f".{uuid.uuid4().hex}")
        except OSError as error:
            raise write_error(folder, error) from error
        start = SessionLog(status=SessionLog.START)
        self._file.write_event(Event(step=first_step, session_log=start))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to the curve of each name. Raises UserError if it could not be written."""
        now = time.time()
        try:
            for name, value in values.items():
                self._file.write_event(Event(step=step, wall_time=now, summary=scalar(name, value)))
            self._file.flush()
        except OSError as error:
            raise write_error(self._folder, error) from error

    def close(self) -> None:
        """Closes the file. Raises UserError if it could not be written."""
        try:
            self._file.close()
        except OSError as error:
            raise write_error(self._folder, error) from error
