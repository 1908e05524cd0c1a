"""Records in JSON Lines and JSON: one at a time, and after a broken one the next."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from forge.errors import ForgeError
from forge.reading import raw_records
from forge.reading.raw_records import Known, Rejected, Row

WHOLE = 1 << 30  # bytes of a JSON list, which is held in memory
SPACE, COLON = re.compile(r"[\s,]*"), re.compile(r"\s*:?\s*")


@dataclass
class Element:
    """A JSON value of a longer text, from `begin` to `end`. `problem`: what in it is no strict JSON."""

    value: object
    line: int
    begin: int
    end: int
    problem: str | None


class Broken(Exception):
    """JSON that cannot be read on from here. `line` counts from 1, `place` is the broken record's beginning."""

    def __init__(self, problem: str, line: int, place: int):
        super().__init__(problem)
        self.line, self.place = line, place


class Strict:
    """A JSON decoder that reads on behind what JSON does not allow, and remembers the first `problem`."""

    def __init__(self):
        self.problem: str | None = None
        self.decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float, parse_int=self._int
        )

    def decode(self, text: str) -> object:
        """The only value of a text. Raises ValueError or RecursionError, also for what is in `problem`."""
        self.problem = None
        value = self.decoder.decode(text)
        if self.problem:
            raise ValueError(self.problem)
        return value

    def raw_decode(self, text: str, place: int) -> tuple[object, int]:
        """A value and where it ends; see `problem` then. Raises JSONDecodeError or RecursionError."""
        self.problem = None
        return self.decoder.raw_decode(text, place)

    def _object(self, pairs: list[tuple[str, object]]) -> dict:
        found = dict(pairs)
        if len(found) != len(pairs):
            self.problem = self.problem or "a key stands twice"
        return found

    def _constant(self, name: str) -> None:
        self.problem = self.problem or f"{name} is no JSON value"

    def _float(self, digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            self.problem = self.problem or "a number is too large"
        return value

    def _int(self, digits: str) -> int:
        if len(digits) > 4000:  # Python itself stops at 4300
            self.problem = self.problem or "a number is too large"
            return 0
        return int(digits)


def elements(text: str, place: int, as_list: bool, alone: bool = True) -> Iterator[Element]:
    """JSON values from `place` on: those of a list up to its end, or all up to the text's end.

    Raises Broken where no value can be read, or where more follows on a list that stands `alone`; what came before
    was yielded.
    """
    decoder, line, counted = Strict(), 1, 0
    while True:
        place = SPACE.match(text, place).end()
        line += text.count("\n", counted, place)
        counted = place
        if not as_list and place == len(text):
            return
        if as_list and text[place : place + 1] == "]":
            if alone and text[place + 1 :].strip():
                raise Broken("text after the end of the list", line, place + 1)
            return
        try:
            value, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            problem = "the file ends in the middle of a record" if _cut(text, error) else error.msg
            raise Broken(problem, line + text.count("\n", place, error.pos), place) from None
        except RecursionError:
            raise Broken("nested too deeply", line, place) from None
        yield Element(value, line, place, end, decoder.problem)
        place = end


def _cut(text: str, error: json.JSONDecodeError) -> bool:
    return error.msg.startswith("Unterminated string") or not text[error.pos : error.pos + 100].strip()


def lines(path: Path, name: str, known: Known) -> Iterator[Row | Rejected]:
    """JSON Lines; a .jsonl that is one JSON list is read as such."""
    decoder = Strict()
    with path.open("rb") as handle:
        if _first(handle) == b"[":
            yield from whole(path, name, known)
            return
        for number, line, size, _ in raw_records.bounded(handle):
            origin = f"{name}:{number}"
            if line is None:
                yield Rejected(origin, f"a line over {raw_records.LONGEST >> 20} MB", size)
            elif line.strip():
                yield _of_line(line if number > 1 else line.removeprefix(b"\xef\xbb\xbf"), origin, decoder)


def _first(handle: BinaryIO) -> bytes:
    """The first byte that is no space; the handle is at the beginning again."""
    begin = handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    handle.seek(0)
    return begin[:1]


def _of_line(line: bytes, origin: str, decoder: Strict) -> Row | Rejected:
    last = not line.endswith(b"\n")
    ended = f"the {'file' if last else 'line'} ends in the middle of a record"
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        cut = last and error.reason == "unexpected end of data"
        return Rejected(origin, ended if cut else f"not UTF-8 (byte 0x{line[error.start]:02x})", len(line))
    if "\0" in text:
        return Rejected(origin, "holds a NUL character", len(text))
    try:
        return raw_records.checked(origin, decoder.decode(text))
    except json.JSONDecodeError as error:
        return Rejected(origin, ended if _cut(text, error) else f"no JSON: {error.msg}", len(text))
    except RecursionError:
        return Rejected(origin, "nested too deeply", len(text))
    except ValueError as error:
        return Rejected(origin, str(error), len(text))


def lines_or_whole(path: Path, name: str, known: Known) -> Iterator[Row | Rejected]:
    """A list, an object with one list, or records one after the other; many a .json is JSON Lines in truth."""
    with path.open("rb") as handle:
        _, line, _, _ = next(raw_records.bounded(handle), (0, None, 0, 0))
    try:
        first = Strict().decode((line or b"").decode("utf-8-sig"))
    except (ValueError, RecursionError):
        first = None
    if isinstance(first, dict) and known(first):
        yield from lines(path, name, known)
    else:
        yield from whole(path, name, known)


def whole(path: Path, name: str, known: Known) -> Iterator[Row | Rejected]:
    size = path.stat().st_size
    if size > WHOLE:
        raise ForgeError(f"{name}: a JSON list of {size / 1e9:.1f} GB would be held in memory", "save it as JSON Lines")
    text = path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    place, as_list = _list_in(text, name, known)
    try:
        for element in elements(text, place, as_list, alone=text.lstrip()[:1] == "["):
            origin, source = f"{name}:{element.line}", text[element.begin : element.end]
            if element.problem:
                yield Rejected(origin, element.problem, len(source))
            else:
                yield raw_records.checked(origin, element.value, source)
    except Broken as error:
        yield Rejected(f"{name}:{error.line}", f"{error}; nothing behind it is read", len(text) - error.place)


def _list_in(text: str, name: str, known: Known) -> tuple[int, bool]:
    """Where the records begin, and whether they stand in a list."""
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] == "[":
        return start + 1, True
    if text[start : start + 1] != "{":
        raise ForgeError(
            f"{name} holds no records" + (" but plain text" if text.strip() else ": it is empty"),
            "name a file of JSON objects, or take it out of data.sources",
        )
    lists, keys = _lists(text, start)
    if known(keys):
        return start, False
    if len(lists) == 1:
        return next(iter(lists.values())), True
    held = f"{len(lists)} lists" if lists else "no list of records"
    raise ForgeError(
        f"{name}: an object with {held} ({raw_records.shown(keys)})",
        'save the records as JSON Lines, or as {"data": [...]}',
    )


def _lists(text: str, place: int) -> tuple[dict[str, int], list[str]]:
    """Where the lists among the values of the object at `place` begin, and its keys; up to where it breaks off."""
    decoder, lists, keys = Strict(), {}, []
    place += 1
    while (place := SPACE.match(text, place).end()) < len(text) and text[place] == '"':
        try:
            key, place = decoder.raw_decode(text, place)
            keys.append(key)
            place = COLON.match(text, place).end()
            if text[place : place + 1] == "[":
                lists[key] = place + 1
            _, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            break
    return lists, keys
