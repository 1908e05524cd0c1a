"""Files of records to plain objects, one at a time: JSON Lines, JSON, CSV and TSV, Parquet.

What is wrong with one record is said of that record, with its place, and the reader goes on behind it. Memory stays
flat: a line is read with a bound, Parquet in batches. Only a JSON list is held whole.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from forge import files
from forge.errors import ForgeError, one_line

LONGEST = 16 << 20  # bytes of a record: 16 MB are about 4 million tokens, more than any model is trained on at once
WHOLE = 1 << 30  # bytes of a JSON list, which is held in memory
BATCH = 4 << 20  # bytes of Parquet's own figure that are decoded at once
SPACE, COLON = re.compile(r"[\s,]*"), re.compile(r"\s*:?\s*")
DELIMITERS = {".csv": (",", ";", "\t", "|"), ".tsv": ("\t",)}
# Columns of Parquet that are read although they are no scalars. Images, embeddings and the like stay on the disk.
NESTED = {"messages", "conversations", "prompt", "completion", "chosen", "rejected", "metadata"}
# Keys that a message may show. Others may be anything: the first line of a table without a header is a record.
NAME = re.compile("[A-Za-z][A-Za-z_-]{0,29}")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

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


def rows(path: Path, name: str, known: Known) -> Iterator[Row | Rejected]:
    """Records of one file, in order. `known(keys)` says whether records with these keys can be used.

    It decides between forms that look alike: lines or one object in a .json, the separator of a .csv. Raises
    ForgeError (2) when the file as a whole cannot be read.
    """
    readers = {".jsonl": _lines, ".ndjson": _lines, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    try:
        if not path.is_file():
            what = "is no regular file" if path.exists() else "is not there"
            raise ForgeError(f"{name} {what}", "correct data.sources: path")
        if reader is None:
            raise ForgeError(f"{name}: no format of records ends in {path.suffix!r}", f"known: {' '.join(SUFFIXES)}")
        if reader is not _parquet:
            _require_utf8(path, name)
        yield from reader(path, name, known)
    except OSError as error:
        raise ForgeError(
            f"{name}: {error.strerror or one_line(error)}", "make it readable, or take it out of data.sources"
        ) from None


def _require_utf8(path: Path, name: str) -> None:
    with path.open("rb") as handle:
        encoding = json.detect_encoding(handle.read(4))
    if not encoding.startswith("utf-8"):
        raise ForgeError(f"{name}: {encoding[:6].upper()}, not UTF-8", "save the file as UTF-8")


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


def _row(origin: str, value: object, text: str | None = None) -> Row | Rejected:
    problem, characters = fault(value, text)
    return Rejected(origin, problem, characters) if problem else Row(origin, value, characters)


# -- JSON -----------------------------------------------------------------------------------------------------


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


def _lines(path: Path, name: str, known: Known) -> Iterator[Row | Rejected]:
    """JSON Lines; a .jsonl that is one JSON list is read as such."""
    decoder = Strict()
    with path.open("rb") as handle:
        if _first(handle) == b"[":
            yield from _whole(path, name, known)
            return
        for number, line, size, _ in bounded(handle):
            origin = f"{name}:{number}"
            if line is None:
                yield Rejected(origin, f"a line over {LONGEST >> 20} MB", size)
            elif line.strip():
                yield _of_line(line if number > 1 else line.removeprefix(b"\xef\xbb\xbf"), origin, decoder)


def _first(handle: BinaryIO) -> bytes:
    """The first byte that is no space; the handle is at the beginning again."""
    begin = handle.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    handle.seek(0)
    return begin[:1]


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
        return _row(origin, decoder.decode(text))
    except json.JSONDecodeError as error:
        return Rejected(origin, ended if _cut(text, error) else f"no JSON: {error.msg}", len(text))
    except RecursionError:
        return Rejected(origin, "nested too deeply", len(text))
    except ValueError as error:
        return Rejected(origin, str(error), len(text))


def _json(path: Path, name: str, known: Known) -> Iterator[Row | Rejected]:
    """A list, an object with one list, or records one after the other; many a .json is JSON Lines in truth."""
    with path.open("rb") as handle:
        _, line, _, _ = next(bounded(handle), (0, None, 0, 0))
    try:
        first = Strict().decode((line or b"").decode("utf-8-sig"))
    except (ValueError, RecursionError):
        first = None
    if isinstance(first, dict) and known(first):
        yield from _lines(path, name, known)
    else:
        yield from _whole(path, name, known)


def _whole(path: Path, name: str, known: Known) -> Iterator[Row | Rejected]:
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
                yield _row(origin, element.value, source)
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
    raise ForgeError(
        f"{name}: an object with {f'{len(lists)} lists' if lists else 'no list of records'} ({shown(keys)})",
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


def shown(keys: Iterable[str]) -> str:
    """Keys for a message: up to eight that are plain names, and dots where there are others."""
    listed = [str(key) for key in keys]
    plain = [key for key in listed if NAME.fullmatch(key)][:8]
    return ", ".join([*plain, "..."] if len(plain) < len(listed) else plain)


# -- CSV ------------------------------------------------------------------------------------------------------


class _TooLong(Exception):
    def __init__(self):
        super().__init__(f"a record over {LONGEST >> 20} MB")


class _Feed:
    """Lines of a file for csv.reader. `size`, `lines` and `quotes` are those of the record that is being read."""

    def __init__(self, handle: BinaryIO):
        self.bounded, self.number = bounded(handle), 0
        self.begin()

    def begin(self) -> int:
        """Number of the line that the next record begins on."""
        self.size = self.lines = self.quotes = 0
        return self.number + 1

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        self.number, line, size, quotes = next(self.bounded)
        self.size, self.lines = self.size + size, self.lines + 1
        self.quotes += quotes if line is None else line.count(b'"')
        if line is None or self.size > LONGEST:
            raise _TooLong
        text = line.decode("utf-8", "surrogateescape")
        return text.removeprefix("\ufeff") if self.number == 1 else text

    def goes_on(self) -> bool:
        """Whether the next line begins a record though this one is broken: a single line, all quotations closed."""
        return self.lines == 1 and self.quotes % 2 == 0


def _csv(path: Path, name: str, known: Known) -> Iterator[Row | Rejected]:
    """Rows by the header's names. The separator is the one with which the header is one of a known format."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
    with path.open("rb") as handle:
        delimiter = _delimiter(handle, DELIMITERS[path.suffix.lower()], known)
        feed = _Feed(handle)
        reader = csv.reader(feed, delimiter=delimiter, strict=True)
        header = _header(reader, name)
        fields: list[str] | None = []
        while fields is not None:
            origin = f"{name}:{feed.begin()}"
            try:
                fields = next(reader, None)
            except (csv.Error, _TooLong) as error:
                if not feed.goes_on():
                    told = f"{error}; nothing behind it is read: its quotation marks do not say where it ends"
                    yield Rejected(origin, told, feed.size + path.stat().st_size - handle.tell())
                    return
                yield Rejected(origin, str(error), feed.size)
                continue
            if fields and len(fields) != len(header):
                told = f"{len(fields)} fields, the header has {len(header)}"
                yield Rejected(origin, told, sum(map(len, fields)))
            elif fields:
                yield _row(origin, dict(zip(header, fields, strict=True)), "".join(fields))


def _delimiter(handle: BinaryIO, possible: tuple[str, ...], known: Known) -> str:
    line = handle.readline(files.BLOCK).decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    handle.seek(0)
    for delimiter in possible:
        try:
            header = next(csv.reader([line], delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        if known(field.strip() for field in header):
            return delimiter
    return possible[0]


def _header(reader: Iterator[list[str]], name: str) -> list[str]:
    try:
        header = [field.strip() for field in next(reader, [])]
    except (csv.Error, _TooLong) as error:
        raise ForgeError(f"{name}:1: no header: {error}", "begin with a line of names") from None
    if len(set(header)) != len(header):
        first = next(place for place, field in enumerate(header) if header.count(field) > 1)
        second = header.index(header[first], first + 1)
        raise ForgeError(f"{name}:1: columns {first + 1} and {second + 1} have one name", "rename one of the two")
    return header


# -- Parquet --------------------------------------------------------------------------------------------------


def _parquet(path: Path, name: str, known: Known) -> Iterator[Row | Rejected]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        # buffer_size: else every column chunk of a row group is read whole, and a row group may be the whole file
        with pq.ParquetFile(path, buffer_size=files.BLOCK, pre_buffer=False) as table:
            names = table.schema_arrow.names
            if len(set(names)) != len(names):
                raise ForgeError(f"{name}: two columns have one name", "rename one of the two")
            wanted = [field.name for field in table.schema_arrow if _wanted(field, pa)]
            for batch in table.iter_batches(batch_size=_batch_size(table.metadata), columns=wanted):
                for value in _values(batch):
                    number += 1
                    yield _cells(value, f"{name}#{number}")
    except (pa.ArrowException, ValueError, OverflowError, LookupError) as error:  # names, dates and time zones, too
        raise ForgeError(
            f"{name} cannot be read behind row {number}: {one_line(error)[:160]}", "restore it, or get it again"
        ) from None


def _values(batch) -> list[dict | UnicodeDecodeError]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [error]
        return [value for index in range(batch.num_rows) for value in _values(batch.slice(index, 1))]


def _cells(value: dict | UnicodeDecodeError, origin: str) -> Row | Rejected:
    if isinstance(value, UnicodeDecodeError):
        return Rejected(origin, f"not UTF-8 (byte 0x{value.object[value.start]:02x})", len(value.object))
    # pandas writes a missing number as NaN
    return _row(origin, {key: None if item != item else item for key, item in value.items()})


def _wanted(field, pa) -> bool:
    """Text, numbers, true and false; nothing else of a column that is no part of a format is kept."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_boolean)
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_null)
    return field.name in NESTED or any(fits(kind) for fits in (*plain, *numbers))


def _batch_size(metadata) -> int:
    """Rows for about BATCH bytes, by the largest row group's figure (which is less than what is decoded)."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    row = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1.0)
    return max(1, min(1024, int(BATCH / max(1.0, row))))
