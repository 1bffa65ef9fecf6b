"""Additions to Orbax: an item type for plain bytes, and a filter for errors of abandoned reads."""

import logging
import sys
from dataclasses import dataclass
from functools import cache
from inspect import iscoroutine
from os import PathLike
from pathlib import Path

from orbax.checkpoint import CheckpointHandler
from orbax.checkpoint.args import CheckpointArgs, register_with_handler

_FILE = "bytes"


class _BytesHandler(CheckpointHandler):
    """JSON, which Orbax has, would first turn bytes into text."""

    def save(self, directory: PathLike, args: "BytesSave") -> None:
        Path(directory, _FILE).write_bytes(args.content)

    def restore(self, directory: PathLike, args: "BytesRestore") -> bytes:
        path = Path(directory, _FILE)
        if path.stat().st_size > args.max_bytes:
            raise ValueError(f"{path.parent.name} is larger than {args.max_bytes // 2**20} MiB")
        return path.read_bytes()


@register_with_handler(_BytesHandler, for_save=True)
@dataclass
class BytesSave(CheckpointArgs):
    """Saves bytes as an item of a checkpoint."""

    content: bytes


@register_with_handler(_BytesHandler, for_restore=True)
@dataclass
class BytesRestore(CheckpointArgs):
    """Restores the bytes of an item; raises ValueError if there are more than `max_bytes`."""

    max_bytes: int


@cache
def silence_abandoned_reads() -> None:
    """Suppresses the errors that Python and asyncio print, now or later, for reads that Orbax abandoned in a damaged
    checkpoint."""
    previous_hook = sys.unraisablehook

    def hook(unraisable):
        source, error = unraisable.object, unraisable.exc_value
        is_read = iscoroutine(source) and "orbax" in source.cr_code.co_filename
        if not is_read and not (isinstance(error, RuntimeError) and "loop is closed" in str(error)):
            previous_hook(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
