"""What a run was made with."""

import importlib.metadata


def version(package: str) -> str:
    """Of an installed package; "not installed" of one that is only there, such as a checkout of
    this project whose folder is on the path."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
