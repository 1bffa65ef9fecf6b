"""The message and the exit status with which a command ends. A user's mistake never shows a traceback."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bigan_jax.errors import UserError, printable, printable_lines


@contextmanager
def exit_with_message(command: Sequence[str], phrase: Callable[[str], str] = str) -> Iterator[None]:
    """Turns errors and interrupts of the body into a message on stderr and an exit status.

    The status is 1 for an error that a user can fix, and that of the signal for an interrupt (`Stopped`).

    Args:
      command: the command line that the user typed, which resumes what was interrupted.
      phrase: returns the message of an error in the words of that command line.
    """
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {phrase(printable_lines(error))}")
    except OSError as error:  # such as a folder without access, or a name too long for the disk
        if error.filename is None:
            raise
        sys.exit(f"error: {printable(f'{error.filename}: {error.strerror}')}")
    except Exception:  # of any kind: JAX fails in several ways without a device
        from bigan_jax.runtime.jax_setup import unavailable_platforms

        if not (problem := unavailable_platforms()):
            raise
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt as stop:
        predicting = "--mode=predict" in sys.argv
        hint = "--output holds the finished part" if predicting else f"resume with: {shlex.join(command)}"
        print(f"{str(stop) or 'interrupted'}; {hint}", file=sys.stderr)
        sys.exit(getattr(stop, "status", 130))
