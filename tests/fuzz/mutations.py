"""Valid files, spoiled: as bytes, as text of tokens, and below a checksum or a compression."""

import re
from collections.abc import Callable, Mapping, Sequence

from hypothesis import strategies as st

# Of one change: what is done, where, with what, how much.
Change = tuple[str, int, int, int]
KINDS = ("bits", "number", "number", "cut", "drop", "repeat", "insert", "swap", "splice", "words")
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 127, 128, 255, 256, 1000, 32767, 32768, 65535, 65536)
NUMBERS += (10**6, 2**24, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
WORDS = (
    b"../../canary/file.txt", b"/etc/passwd", b"\x1b[2J\x1b]0;x\x07", b"\0", b"\xff\xfe", b"%s%n",
    b"<script>alert(1)</script>", b"\xe2\x80\xae", b"A" * 5000, b"[" * 5000, b"\r\n", b"NaN", b"-1",
    b"1e999", b"9" * 400,
)  # fmt: skip

# What may stand in the place of a token of JSON.
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


def spoiled(content: bytes, changes: Sequence[Change], other: bytes = b"") -> bytes:
    """The content after the changes, one after the other. other: what is spliced in."""
    content = bytearray(content)
    for kind, where, what, much in changes:
        # Half of all changes go where headers are.
        at = where % (len(content) + 1)
        at = at % 600 if where & 2**31 and len(content) > 600 else at
        length = much % (1 + min(len(content) - at, 64 if much & 1 else 4096))
        piece = bytes(content[at : at + length])
        if kind == "bits" and at < len(content):
            content[at] ^= 1 << what % 8
        elif kind == "number":
            size = 1 << much % 4
            number = NUMBERS[what % len(NUMBERS)] % 2 ** (8 * size)
            raw = number.to_bytes(size, "little" if much & 16 else "big")
            content[at : at + size] = raw
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + length]
        elif kind == "repeat":
            content[at:at] = piece * (1 + what % 50)
        elif kind == "insert":
            content[at:at] = what.to_bytes(4, "big") * (1 + much % 16)
        elif kind == "swap":
            del content[at : at + length]
            to = what % (len(content) + 1)
            content[to:to] = piece
        elif kind == "splice" and other:
            start = what % len(other)
            content[at : at + length] = other[start : start + 1 + much % 4096]
        elif kind == "words":
            word = WORDS[what % len(WORDS)]
            content[at : at + (len(word) if much & 1 else 0)] = word
    return bytes(content)


def retold(text: str, replacements: Sequence[tuple[int, int]]) -> str:
    """The text after some of its tokens (words, numbers, strings, brackets) gave way to others."""
    for where, what in replacements:
        tokens = list(_TOKEN.finditer(text))
        if tokens:
            token = tokens[where % len(tokens)]
            text = text[: token.start()] + SNIPPETS[what % len(SNIPPETS)] + text[token.end() :]
    return text


def spoils(
    seeds: Mapping[str, bytes], below: Sequence[str] = ("plain",)
) -> st.SearchStrategy[tuple[str, str, list[Change], str]]:
    """Which seed, below which wrapping it is changed, how, and what is spliced in."""
    names = st.sampled_from(sorted(seeds))
    return st.tuples(names, st.sampled_from(below), changes, names)


def rewrapped(
    content: bytes, changes: Sequence[Change], other: bytes, unwrap: Callable, wrap: Callable
) -> bytes:
    """Changed below a wrapping that would notice: a compression, checksums."""
    return wrap(spoiled(unwrap(content), changes, other))
