"""Corrupts valid files: as bytes, as tokens of text, and inside a checksum or a compression."""

import re
from collections.abc import Callable, Mapping, Sequence

from hypothesis import strategies as st

# One change: its kind, position, operand and amount.
Change = tuple[str, int, int, int]
KINDS = ("bits", "number", "number", "cut", "drop", "repeat", "insert", "swap", "splice", "words")
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 127, 128, 255, 256, 1000, 32767, 32768, 65535, 65536)
NUMBERS += (10**6, 2**24, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
WORDS = (
    b"../../canary/file.txt", b"/etc/passwd", b"\x1b[2J\x1b]0;x\x07", b"\0", b"\xff\xfe", b"%s%n",
    b"<script>alert(1)</script>", b"\xe2\x80\xae", b"A" * 5000, b"[" * 5000, b"\r\n", b"NaN", b"-1",
    b"1e999", b"9" * 400,
)  # fmt: skip

# Replacements for a token of JSON.
SNIPPETS = (
    "null", "true", "0", "-1", "1.5", "1e999", "-1e999", "NaN", "9" * 30, "9" * 400, "9" * 5000,
    '""', '"a"', '"\\u001b[2J"', '"\\ud800"', '"<script>alert(1)</script>"', '"../../canary"',
    '"/etc/passwd"', '"' + "x" * 3000 + '"', "[]", "{}", "[[0]]", '{"a": 1}', "[" * 900 + "]" * 900,
    "[" * 5000, '{"a":' * 900 + "1" + "}" * 900, "[null]", "[1, 0]", "", ",", "}", ":",
    '"__class__"', '"items"', '"a.b"', "2147483648", "1e-320",
)  # fmt: skip
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|\w+|[\[\]{}:,]')

_big = st.integers(0, 2**32 - 1)
changes: st.SearchStrategy[list[Change]] = st.lists(
    st.tuples(st.sampled_from(KINDS), _big, _big, st.integers(0, 2**16 - 1)), max_size=6
)
replacements: st.SearchStrategy[list[tuple[int, int]]] = st.lists(st.tuples(_big, _big), max_size=4)


def corrupt(content: bytes, changes: Sequence[Change], other: bytes = b"") -> bytes:
    """Applies changes one after the other; `other` is content to splice in."""
    content = bytearray(content)
    for kind, position, operand, amount in changes:
        # Half of all changes go to the start, where headers are.
        at = position % (len(content) + 1)
        at = at % 600 if position & 2**31 and len(content) > 600 else at
        length = amount % (1 + min(len(content) - at, 64 if amount & 1 else 4096))
        piece = bytes(content[at : at + length])
        if kind == "bits" and at < len(content):
            content[at] ^= 1 << operand % 8
        elif kind == "number":
            size = 1 << amount % 4
            number = NUMBERS[operand % len(NUMBERS)] % 2 ** (8 * size)
            raw = number.to_bytes(size, "little" if amount & 16 else "big")
            content[at : at + size] = raw
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + length]
        elif kind == "repeat":
            content[at:at] = piece * (1 + operand % 50)
        elif kind == "insert":
            content[at:at] = operand.to_bytes(4, "big") * (1 + amount % 16)
        elif kind == "swap":
            del content[at : at + length]
            to = operand % (len(content) + 1)
            content[to:to] = piece
        elif kind == "splice" and other:
            start = operand % len(other)
            content[at : at + length] = other[start : start + 1 + amount % 4096]
        elif kind == "words":
            word = WORDS[operand % len(WORDS)]
            content[at : at + (len(word) if amount & 1 else 0)] = word
    return bytes(content)


def replace_tokens(text: str, replacements: Sequence[tuple[int, int]]) -> str:
    """Replaces some tokens of a text (words, numbers, strings, brackets) by others."""
    for position, choice in replacements:
        tokens = list(_TOKEN.finditer(text))
        if tokens:
            token = tokens[position % len(tokens)]
            text = text[: token.start()] + SNIPPETS[choice % len(SNIPPETS)] + text[token.end() :]
    return text


def corruptions(
    seeds: Mapping[str, bytes], wrappings: Sequence[str] = ("plain",)
) -> st.SearchStrategy[tuple[str, str, list[Change], str]]:
    """A strategy of (seed, wrapping inside which it is changed, changes, seed to splice in)."""
    names = st.sampled_from(sorted(seeds))
    return st.tuples(names, st.sampled_from(wrappings), changes, names)


def corrupt_inside(content: bytes, changes: Sequence[Change], other: bytes, unwrap: Callable, wrap: Callable) -> bytes:
    """Changes content inside a compression or checksums, so that they remain valid."""
    return wrap(corrupt(unwrap(content), changes, other))
