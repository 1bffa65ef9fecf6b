"""TensorBoard summaries of a training."""

import time
import uuid
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

from bigan_jax.runtime.files import write_error


class TensorBoardWriter:
    """Writes scalars to an event file from the caller's thread; each method raises UserError if it cannot.

    tensorboardX's SummaryWriter has a thread of its own, which a full disk ends; whoever adds to it then waits
    forever.
    """

    def __init__(self, folder: Path, first_step: int):
        """Creates an event file; TensorBoard hides what other files in the folder have from `first_step` on."""
        self._folder = folder
        with self._write_errors():
            folder.mkdir(parents=True, exist_ok=True)
            # Event files are named by the second; the suffix keeps two of one second apart.
            self._file = EventsWriter(str(folder / "events"), f".{uuid.uuid4().hex}")
        start = SessionLog(status=SessionLog.START)
        self._file.write_event(Event(step=first_step, session_log=start))

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Adds a point to the curve of each name."""
        now = time.time()
        with self._write_errors():
            for name, value in values.items():
                self._file.write_event(Event(step=epoch, wall_time=now, summary=scalar(name, value)))
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with self._write_errors():
            self._file.close()

    @contextmanager
    def _write_errors(self):
        try:
            yield
        except OSError as error:
            raise write_error(self._folder, error) from error
