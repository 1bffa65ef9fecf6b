"""Reads of a checkpoint that Orbax began and gave up, since one of them failed. Python and asyncio
print a page of traceback for each, whenever it ends or is collected: which nobody can use."""

import logging
import sys
from functools import cache
from inspect import iscoroutine


@cache
def unheard() -> None:
    """From now on nothing is printed of such reads. For once a damaged checkpoint was found."""
    before = sys.unraisablehook

    def hook(found):
        if not _is_abandoned(found):
            before(found)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(_is_news)


def _is_abandoned(found):
    read = iscoroutine(found.object) and "orbax" in found.object.cr_code.co_filename
    late = isinstance(found.exc_value, RuntimeError) and "loop is closed" in str(found.exc_value)
    return read or late


def _is_news(record):
    return "exception was never retrieved" not in record.getMessage()
