"""Mistakes that a user can mend: shown as one message, never as a traceback."""

import difflib
from collections.abc import Iterable

EXIT_RESUME = 75  # exit status: the same command, given again, goes on (EX_TEMPFAIL of sysexits.h)


class UserError(Exception):
    """Wrong input from the person at the keyboard: the message names the thing and the remedy."""


def unknown_name(kind: str, name: str, choices: Iterable[str], like: str = "") -> UserError:
    """The error for a `name` that is none of `choices`: it names the one closest to `like`, by
    default to the name, and lists all."""
    choices = sorted(choices)
    close = difflib.get_close_matches(like or name, choices, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UserError(f"unknown {kind} {name!r}.{hint} There are: {', '.join(choices)}.")


def printable_lines(error: BaseException) -> str:
    """What an error says, line by line, for a terminal: names in it may come from strangers."""
    return "\n".join(map(printable, str(error).split("\n")))


def one_line(error: BaseException, most: int) -> str:
    """What an error says, in a printable line of at most so many of its characters; its type where
    it says nothing."""
    return printable(" ".join(str(error).split())[:most]) or type(error).__name__


def printable(text: str) -> str:
    """The text with an escape (such as \\x1b) for each control, formatting or undecodable
    character: a file name cannot move the cursor or turn the direction of what follows it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
