"""Errors that a user can fix, shown as one message without a traceback."""

import difflib
from collections.abc import Iterable

EXIT_RESUME = 75  # exit status: repeat the command to resume (EX_TEMPFAIL of sysexits.h)


class UserError(Exception):
    """Wrong input from the user; the message says what is wrong and how to fix it."""


def unknown_name(kind: str, name: str, choices: Iterable[str], like: str = "") -> UserError:
    """Returns the error for a `kind` of name, such as "model", that is not one of `choices`.

    It suggests the choice that is closest to `like`, by default to the name.
    """
    choices = sorted(choices)
    matches = difflib.get_close_matches(like or name, choices, n=1)
    hint = f" Did you mean {matches[0]!r}?" if matches else ""
    return UserError(f"unknown {kind} {name!r}.{hint} There are: {', '.join(choices)}.")


def printable_lines(error: BaseException) -> str:
    """Returns an error's message for a terminal, line by line: names in it are untrusted."""
    return "\n".join(map(printable, str(error).split("\n")))


def one_line(error: BaseException, max_length: int) -> str:
    """Returns the start of an error's message in one printable line, or its type if the message is empty."""
    return printable(" ".join(str(error).split())[:max_length]) or type(error).__name__


def printable(text: str) -> str:
    """Escapes control, formatting and undecodable characters, such as \\x1b, which could rearrange a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
