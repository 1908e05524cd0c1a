"""What each document came to, kept from run to run: an unchanged file is not read into rows again.

One SQLite file in build/<name>/. A key is made of the file's name and bytes and of all that its rows depend on; what
a finished run did not use is removed. Rows stand in it as they stand in the dataset: secrets redacted. It holds
nothing that cannot be had again, so whatever goes wrong with it only costs time.
"""

import contextlib
import importlib.metadata
import json
import os
import sqlite3
import struct
import zlib
from pathlib import Path

from forge.files import sha256_file, sha256_json

LEVEL = 1  # zlib's fastest: rows of 1 GB of documents take a third of their size
OFTEN = 500  # parts between two commits: a run that is stopped goes on from the last
# What reads and counts documents: another version may give other rows.
LIBRARIES = ("markdown-it-py", "docutils", "beautifulsoup4", "markdownify", "mammoth", "pypdf", "rensa")
LIBRARIES += ("detect-secrets", "phonenumbers", "tokenizers", "transformers")
ROOMS = ("reading", "screening", "data")  # of forge: their code makes rows


class Cache:
    """`Cache(path, base)`; `base` is the digest of all that rows depend on besides their document and the code."""

    def __init__(self, path: Path, base: str):
        self.path, self.base = path, base
        self.database: sqlite3.Connection | None = None
        self.owner, self.puts, self.broken = os.getpid(), 0, False

    def key(self, name: str, digest: str) -> str:
        return sha256_json([self.base, name, digest])

    def connect(self) -> sqlite3.Connection:
        """The connection of this process. SQLite's must not cross a fork: a worker leaves its parent's alone."""
        if self.database is None or self.owner != os.getpid():
            self.kept, self.owner = self.database, os.getpid()  # kept: closing it here would release the parent's locks
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.database = sqlite3.connect(self.path, timeout=60)
            self.database.execute("PRAGMA journal_mode=WAL")  # workers read while the main process writes
            self.database.execute("PRAGMA synchronous=OFF")  # after a power cut it may be damaged: then it is made anew
            self.database.execute("CREATE TABLE IF NOT EXISTS parts (key TEXT PRIMARY KEY, part BLOB)")
            self.database.commit()
        return self.database

    def get(self, key: str) -> dict | None:
        if self.broken:
            return None
        try:
            found = self.connect().execute("SELECT part FROM parts WHERE key = ?", (key,)).fetchone()
            self.database.commit()  # a read that stays open would keep the log from being emptied
            return _decode(found[0]) if found else None
        except (sqlite3.Error, OSError, zlib.error, struct.error, ValueError):
            self.broken = True
            return None

    def begin(self) -> None:
        """Before the first `put`. A damaged file is made anew."""
        for _ in range(2):
            self.broken = False
            try:
                self.connect().execute("SELECT count(*) FROM parts")
                self.database.execute("CREATE TEMP TABLE IF NOT EXISTS used (key TEXT PRIMARY KEY)")
                self.database.execute("DELETE FROM used")
                self.database.commit()
                return
            except (sqlite3.Error, OSError):
                self.remove()

    def put(self, key: str, part: dict | None) -> None:
        """Note a key as used; store its part when it is new."""
        if self.broken:
            return
        try:
            if part is not None:
                self.database.execute("INSERT OR REPLACE INTO parts VALUES (?, ?)", (key, pack(part)))
            self.database.execute("INSERT OR IGNORE INTO used VALUES (?)", (key,))
            self.puts += 1
            if self.puts % OFTEN == 0:
                self.database.commit()
        except sqlite3.Error:  # a full disk, say
            self.remove()

    def finish(self) -> None:
        """Keep what this run used, and nothing else."""
        if not self.broken:
            try:
                self.database.execute("DELETE FROM parts WHERE key NOT IN (SELECT key FROM used)")
            except sqlite3.Error:
                self.remove()
        self.close()

    def close(self) -> None:
        """Keep what is stored so far."""
        with contextlib.suppress(sqlite3.Error):
            if self.database is not None:
                self.database.commit()
                self.database.close()
        self.database = None

    def remove(self) -> None:
        """Give it up for this run; the next one begins anew."""
        self.broken = True
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


def pack(part: dict) -> bytes:
    told = json.dumps(part["told"], ensure_ascii=False).encode("utf-8", "surrogatepass")
    pieces = [told, part["meta"], part["signatures"], part["lines"]]
    return zlib.compress(struct.pack("<4Q", *map(len, pieces)) + b"".join(pieces), LEVEL)


def _decode(packed: bytes) -> dict:
    raw = zlib.decompress(packed)
    sizes, place, pieces = struct.unpack_from("<4Q", raw), 32, []
    for size in sizes:
        pieces.append(raw[place : place + size])
        place += size
    told, meta, signatures, lines = pieces
    return {"told": json.loads(told), "meta": meta, "signatures": signatures, "lines": lines}


def code_digest() -> str:
    """Digest of the modules and tables that make rows, and of the libraries' versions."""
    forge = Path(__file__).parents[1]
    paths = [path for room in ROOMS for path in (forge / room).iterdir() if path.suffix in (".py", ".txt")]
    paths += [forge / f"{name}.py" for name in ("chat", "questions")]
    versions = []
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append([name, importlib.metadata.version(name)])
    return sha256_json([[[path.name, sha256_file(path)] for path in sorted(paths)], versions])
