"""Files of records to plain objects, one at a time: JSON Lines, JSON, CSV and TSV, Parquet.

What is wrong with one record is said of that record, with its place, and the reader goes on behind it. Memory stays
flat: a line is read with a bound, Parquet in batches. Only a JSON list is held whole.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from forge.errors import ForgeError, one_line
from forge.reading import json_records, tables
from forge.reading.raw_records import Known, Rejected, Row

READERS = {
    ".jsonl": json_records.lines,
    ".ndjson": json_records.lines,
    ".json": json_records.lines_or_whole,
    ".csv": tables.delimited,
    ".tsv": tables.delimited,
    ".parquet": tables.parquet,
}
SUFFIXES = tuple(READERS)


def rows(path: Path, name: str, known: Known) -> Iterator[Row | Rejected]:
    """Records of one file, in order. `known(keys)` says whether records with these keys can be used.

    It decides between forms that look alike: lines or one object in a .json, the separator of a .csv. Raises
    ForgeError (2) when the file as a whole cannot be read.
    """
    reader = READERS.get(path.suffix.lower())
    try:
        if not path.is_file():
            what = "is no regular file" if path.exists() else "is not there"
            raise ForgeError(f"{name} {what}", "correct data.sources: path")
        if reader is None:
            raise ForgeError(f"{name}: no format of records ends in {path.suffix!r}", f"known: {' '.join(SUFFIXES)}")
        if reader is not tables.parquet:
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
