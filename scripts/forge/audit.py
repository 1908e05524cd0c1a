"""The audit trail: logs/audit.jsonl, one line an event, each holding the SHA-256 of the one before.

Lines are only ever added, under a lock, and synced to the disk before the phase goes on. Every record of a phase holds
the chain's head of its time, so that a tail cut off the log is found as long as one later record is there. Whoever can
rewrite the log and every record can still forge both: keep a copy of a head elsewhere (make verify-audit prints it).
"""

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from forge import files
from forge.errors import INTEGRITY, ForgeError

LOG = Path("logs/audit.jsonl")
GENESIS = "0" * 64
TORN = "torn"  # the event that notes a line which a crash left unfinished
DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")  # of git, SHA-256
TAIL = 1 << 16  # bytes read at once to find the last line


def append(event: str, **what: object) -> dict:
    """Add an event and return the head: `entry` (its number) and `sha256`. Secrets in its texts are replaced."""
    from forge.screening import secrets

    whole = json.dumps(what, ensure_ascii=False)
    text, _ = secrets.redact(whole)
    LOG.parent.mkdir(parents=True, exist_ok=True)
    created = not LOG.exists()
    with LOG.open("a+b") as log, _locked(log):
        last = _mend(log)
        head = _write(log, last, event, _readable(text, whole))
    if created:
        _sync_folder(LOG.parent)
    return head


def _readable(text: str, whole: str) -> dict:
    """What the redacted text says; names alone when the redaction broke its form."""
    before = json.loads(whole)
    try:
        found = json.loads(text)
        return {key: value if key == "config" else _with_digests(value, before[key]) for key, value in found.items()}
    except (ValueError, KeyError):
        return {"redacted": sorted(before)}


def _with_digests(redacted, original):
    """The redacted content with its digests as they were: some look like keys to the detectors, beside such names.

    Not in the config: a key of 40 hexadecimal digits that somebody wrote there is no digest.
    """
    if isinstance(original, dict) and isinstance(redacted, dict) and len(original) == len(redacted):
        pairs = zip(redacted.items(), original.values(), strict=True)
        return {key: _with_digests(value, before) for (key, value), before in pairs}
    if isinstance(original, list) and isinstance(redacted, list):
        return [_with_digests(value, before) for value, before in zip(redacted, original, strict=True)]
    return original if isinstance(original, str) and DIGEST.fullmatch(original) else redacted


@contextlib.contextmanager
def _locked(log: BinaryIO) -> Iterator[None]:
    fcntl.flock(log, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(log, fcntl.LOCK_UN)


def _write(log: BinaryIO, last: dict | None, event: str, what: dict) -> dict:
    entry = {
        "entry": last["entry"] + 1 if last else 1,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "event": event,
        **what,
        "previous": last["sha256"] if last else GENESIS,
    }
    entry["sha256"] = files.sha256_json(entry)
    log.write(files.json_line(entry).encode("utf-8"))
    log.flush()
    os.fsync(log.fileno())
    return {"entry": entry["entry"], "sha256": entry["sha256"]}


def _mend(log: BinaryIO) -> dict | None:
    """The last whole entry. A line that a crash left unfinished is ended, kept, and noted by an entry of its own."""
    lines = _tail(log)
    torn = lines.pop() if lines and not lines[-1].endswith(b"\n") else None
    if torn is not None and (entry := _entry(torn + b"\n")) is not None:
        log.write(b"\n")  # all of it but its end was written
        return entry
    last = None
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            last = json.loads(line)
            break
    if torn is not None:
        log.write(b"\n")
        note = {"bytes": len(torn), "line_sha256": hashlib.sha256(torn).hexdigest()}
        _write(log, last, TORN, note)
        return _mend(log)
    return last


def _tail(log: BinaryIO) -> list[bytes]:
    """Last lines of the log, at least one whole one where there is any."""
    size = log.seek(0, os.SEEK_END)
    length = TAIL
    while True:
        start = log.seek(max(0, size - length))
        lines = log.read().splitlines(keepends=True)
        if start == 0:
            return lines
        if len(lines) > 3:  # the first may be cut
            return lines[1:]
        length *= 4


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- reading ------------------------------------------------------------------------------------------------


def entries(path: Path = LOG) -> tuple[list[dict], list[str]]:
    """Every entry, checked, and notes about torn lines. Raises ForgeError (6) for an edit, a gap, another order."""
    found: list[dict] = []
    notes: list[str] = []
    torn: tuple[int, bytes] | None = None
    previous, raw = GENESIS, path.read_bytes() if path.is_file() else b""
    for number, line in enumerate(raw.splitlines(keepends=True), 1):
        entry = _entry(line)
        if entry is None:
            if torn is not None:
                raise _broken(path, torn[0], "is no entry")
            torn = number, line
            continue
        if torn is not None:
            digest = hashlib.sha256(torn[1].rstrip(b"\n")).hexdigest()
            if entry.get("event") != TORN or entry.get("line_sha256") != digest:
                raise _broken(path, torn[0], "is no entry, and none notes a crash there")
            notes.append(f"line {torn[0]} was left unfinished by a crash, as entry {entry['entry']} notes")
            torn = None
        claimed = entry.pop("sha256", None)
        if files.sha256_json(entry) != claimed:
            raise _broken(path, number, "was edited: it does not have its SHA-256")
        if entry.get("previous") != previous or entry.get("entry") != len(found) + 1:
            raise _broken(path, number, "does not follow the line before: something was taken out, put in or moved")
        previous = claimed
        found.append({**entry, "sha256": claimed})
    if torn is not None:
        if torn[1].endswith(b"\n"):
            raise _broken(path, torn[0], "is no entry")
        notes.append(f"line {torn[0]} is unfinished: the last writer crashed")
    return found, notes


def _entry(line: bytes) -> dict | None:
    try:
        entry = json.loads(line.decode("utf-8"), **files.STRICT_JSON)
    except ValueError:
        return None
    return entry if line.endswith(b"\n") and isinstance(entry, dict) else None


def _broken(path: Path, number: int, what: str) -> ForgeError:
    return ForgeError(
        f"{path}:{number} {what}", "restore the log from a backup; what it says from there on is no proof", INTEGRITY
    )
