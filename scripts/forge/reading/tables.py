"""Records in tables: CSV, TSV and Parquet."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from forge import files
from forge.errors import ForgeError, one_line
from forge.reading import raw_records
from forge.reading.raw_records import Known, Rejected, Row

BATCH = 4 << 20  # bytes of Parquet's own figure that are decoded at once
DELIMITERS = {".csv": (",", ";", "\t", "|"), ".tsv": ("\t",)}
# Columns of Parquet that are read although they are no scalars. Images, embeddings and the like stay on the disk.
NESTED = {"messages", "conversations", "prompt", "completion", "chosen", "rejected", "metadata"}


class _TooLong(Exception):
    def __init__(self):
        super().__init__(f"a record over {raw_records.LONGEST >> 20} MB")


class _Feed:
    """Lines of a file for csv.reader. `size`, `lines` and `quotes` are those of the record that is being read."""

    def __init__(self, handle: BinaryIO):
        self.bounded, self.number = raw_records.bounded(handle), 0
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
        if line is None or self.size > raw_records.LONGEST:
            raise _TooLong
        text = line.decode("utf-8", "surrogateescape")
        return text.removeprefix("\ufeff") if self.number == 1 else text

    def goes_on(self) -> bool:
        """Whether the next line begins a record though this one is broken: a single line, all quotations closed."""
        return self.lines == 1 and self.quotes % 2 == 0


def delimited(path: Path, name: str, known: Known) -> Iterator[Row | Rejected]:
    """Rows by the header's names. The separator is the one with which the header is one of a known format."""
    csv.field_size_limit(max(csv.field_size_limit(), raw_records.LONGEST))
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
                yield raw_records.checked(origin, dict(zip(header, fields, strict=True)), "".join(fields))


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


def parquet(path: Path, name: str, known: Known) -> Iterator[Row | Rejected]:
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
    return raw_records.checked(origin, {key: None if item != item else item for key, item in value.items()})


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
