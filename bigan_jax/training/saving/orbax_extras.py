"""Bytes as an item of an Orbax checkpoint: written as they are, where JSON would make them
a text first."""

import dataclasses
import logging
import sys
from functools import cache
from inspect import iscoroutine
from pathlib import Path

from orbax.checkpoint import CheckpointHandler
from orbax.checkpoint.args import CheckpointArgs, register_with_handler

_FILE = "bytes"


class _Handler(CheckpointHandler):
    def save(self, directory: Path, args: "BytesSave") -> None:
        Path(directory, _FILE).write_bytes(args.content)

    def restore(self, directory: Path, args: "BytesRestore") -> bytes:
        path = Path(directory, _FILE)
        if path.stat().st_size > args.most:
            raise ValueError(f"{directory.name} is larger than {args.most // 2**20} MiB")
        return path.read_bytes()


@register_with_handler(_Handler, for_save=True)
@dataclasses.dataclass
class BytesSave(CheckpointArgs):
    """What an item is to hold."""

    content: bytes


@register_with_handler(_Handler, for_restore=True)
@dataclasses.dataclass
class BytesRestore(CheckpointArgs):
    """Asks for what an item holds, as bytes; ValueError where these are more than so many."""

    most: int


@cache
def silence_abandoned_reads() -> None:
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
