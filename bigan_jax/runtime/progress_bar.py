"""Progress bars for a terminal, which become a few lines in a log file."""

import math
import sys
from typing import Any

from tqdm import tqdm

_LINES = 10  # in a log file, at most
_MIN_SECONDS = 30  # between two lines of a log file


def progress_bar(total: int, description: str = "", **options: Any) -> tqdm:
    """Returns a progress bar on stderr.

    On a terminal it is tqdm's own. Elsewhere it prints a line per 10 % of the work, but none within 30 seconds of
    another, and one at the end unless `leave` is false.

    Args:
      total: the number of steps of the work.
      description: the text before the numbers.
      **options: more options of tqdm, such as `unit`, `initial`, `leave` and `disable`.
    """
    if sys.stderr.isatty():
        return tqdm(total=total, desc=description, dynamic_ncols=True, mininterval=0.2, **options)
    return _LogLines(
        total=total,
        desc=description and f"{description}: ",  # as tqdm's set_description adds
        bar_format="{desc}{unit} {n_fmt} of {total_fmt} ({percentage:.0f} %), "
        "{elapsed} elapsed, {remaining} left{postfix}",
        miniters=max(1, total / _LINES),
        mininterval=_MIN_SECONDS,
        maxinterval=math.inf,  # tqdm's monitor would refresh a bar without progress
        delay=1e-9,  # otherwise tqdm prints a line before the first step
        **options,
    )


class _LogLines(tqdm):
    """A progress bar that prints lines instead of replacing one, which takes carriage returns."""

    @staticmethod
    def status_printer(file: Any):
        def print_line(text: str) -> None:
            if text:
                file.write(f"{text}\n")
                file.flush()

        return print_line

    def moveto(self, n):
        """Does nothing: there is no cursor to move to the line of another bar."""

    @classmethod
    def write(cls, s, file: Any = None, end="\n", nolock=False):
        """Prints a message. tqdm would repeat the progress after it."""
        print(s, file=file or sys.stdout, end=end, flush=True)

    def close(self):
        """Prints the final progress, unless it vanishes at the end (`leave=False`) or is printed."""
        if not self.disable and self.leave and self.n > self.last_print_n:
            self.display()
        self.delay = math.inf  # as if nothing was ever displayed, which tqdm would clear or end by a new line
        super().close()
