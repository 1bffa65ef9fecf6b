"""Bytes as an item of an Orbax checkpoint: written as they are, where JSON would make them
a text first."""

import dataclasses
from pathlib import Path

from orbax.checkpoint import CheckpointHandler
from orbax.checkpoint.args import CheckpointArgs, register_with_handler

_FILE = "bytes"


class _Handler(CheckpointHandler):
    def save(self, directory: Path, args: "Save") -> None:
        Path(directory, _FILE).write_bytes(args.content)

    def restore(self, directory: Path, args: "Restore") -> bytes:
        path = Path(directory, _FILE)
        if path.stat().st_size > args.most:
            raise ValueError(f"{directory.name} is larger than {args.most // 2**20} MiB")
        return path.read_bytes()


@register_with_handler(_Handler, for_save=True)
@dataclasses.dataclass
class Save(CheckpointArgs):
    """What an item is to hold."""

    content: bytes


@register_with_handler(_Handler, for_restore=True)
@dataclasses.dataclass
class Restore(CheckpointArgs):
    """Asks for what an item holds, as bytes; ValueError where these are more than so many."""

    most: int
