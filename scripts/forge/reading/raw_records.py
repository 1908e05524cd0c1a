"""Records as they stand in files, before anything is made of them: lines of bounded length, what is wrong, where."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from forge import files

LONGEST = 16 << 20  # bytes of a record: 16 MB are about 4 million tokens, more than any model is trained on at once
# Keys that a message may show. Others may be anything: the first line of a table without a header is a record.
NAME = re.compile("[A-Za-z][A-Za-z_-]{0,29}")

#: Whether records with these keys can be used.
Known = Callable[[Iterable[str]], bool]


@dataclass
class Row:
    """One record as it stands in the file: `origin` is file:line, or file#row in Parquet, counted from 1."""

    origin: str
    value: object
    characters: int


@dataclass
class Rejected:
    """A record that cannot be used. `characters` of its text; bytes where it is no text."""

    origin: str
    reason: str
    characters: int


class Problem(Exception):
    """What is wrong with one record. It quotes nothing that stands there: that may be a secret."""


def checked(origin: str, value: object, text: str | None = None) -> Row | Rejected:
    """The record, or why it is none. `text`: see fault."""
    problem, characters = fault(value, text)
    return Rejected(origin, problem, characters) if problem else Row(origin, value, characters)


def fault(value: object, text: str | None = None) -> tuple[str | None, int]:
    """What cannot be written down of a record (None: nothing), and the number of characters in it.

    `text` is the record as it stood in a file that was decoded with "surrogateescape": bytes that are no UTF-8 show
    there, half a surrogate pair shows only in the value.
    """
    found, characters, waiting = None, 0, [value]
    while waiting:  # no recursion: JSON may be nested deeper than Python's stack
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            waiting += item
        elif isinstance(item, str):
            characters += len(item)
            found = found or _fault_of_text(item, text)
        elif isinstance(item, float) and not math.isfinite(item):
            found = found or "holds a number that is none (NaN or infinity)"
    if characters > LONGEST:
        found = found or f"more than {LONGEST >> 20} MB of text"
    return found, characters


def _fault_of_text(item: str, text: str | None) -> str | None:
    if "\0" in item:
        return "holds a NUL character"
    if item.isascii():
        return None
    try:
        item.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(item[error.start])
        if text is not None and 0xDC80 <= code <= 0xDCFF and item[error.start] in text:
            return f"not UTF-8 (byte 0x{code - 0xDC00:02x})"
        return "holds half a surrogate pair"
    return None


def bounded(handle: BinaryIO) -> Iterator[tuple[int, bytes | None, int, int]]:
    """Number, bytes, size and quotation marks of every line. Of one over LONGEST the bytes are None: it is passed
    over in small blocks, and only there the quotation marks are counted."""
    number = 0
    while line := handle.readline(LONGEST + 1):
        number, size, quotes = number + 1, len(line), 0
        if size > LONGEST and not line.endswith(b"\n"):
            quotes, line = line.count(b'"'), None
            while more := handle.readline(files.BLOCK):
                size, quotes = size + len(more), quotes + more.count(b'"')
                if more.endswith(b"\n"):
                    break
        yield number, line, size, quotes


def shown(keys: Iterable[str]) -> str:
    """Keys for a message: up to eight that are plain names, and dots where there are others."""
    listed = [str(key) for key in keys]
    plain = [key for key in listed if NAME.fullmatch(key)][:8]
    return ", ".join([*plain, "..."] if len(plain) < len(listed) else plain)
