"""Mistakes that a user can mend: shown as one message, never as a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input from the person at the keyboard: the message names the thing and the remedy."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """The error for a `name` that is none of `choices`: it names the closest one and lists all."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UserError(f"unknown {kind} {name!r}.{hint} There are: {', '.join(choices)}.")
