"""Writing files so that a kill at any instant leaves either the old state or the new one.

A folder is built aside (`staging_path`), gets its record last, and is swapped in by two renames
(`swap_folder`). Files that share a folder with others are moved in one by one (`move_in`), their record
last. `mend_*` is called before every phase and finishes a swap that a kill cut in two.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from forge.errors import ENVIRONMENT, ForgeError

BLOCK = 1 << 20  # bytes: 1 MB


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _unique(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


# For json.loads and its like: they take NaN, and the last of two equal keys; so they raise ValueError for both.
STRICT_JSON = {"parse_constant": _refuse_constant, "object_pairs_hook": _unique}


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_json(value: object) -> str:
    """Hex SHA-256 of a JSON value in its canonical form (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one rename: readers see the old text or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what `write_text` left half-written in a folder when its process was killed."""
    for path in folder.glob(".*.partial"):
        process = path.name.split(".")[-2]
        if path.is_file() and process.isdigit() and not Path("/proc", process).exists():
            path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_if_changed(path: Path, text: str) -> bool:
    """Write only when the content differs, so that make sees a new time only for a new content."""
    if path.is_file() and path.read_bytes() == text.encode("utf-8"):
        return False
    write_text(path, text)
    return True


def json_line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        handle.writelines(map(json_line, rows))


def read_jsonl(path: Path) -> list[dict]:
    """Rows of a JSONL file; an absent file has none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as handle:
        return [json.loads(line) for line in handle if line.strip()]


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; nothing happens when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def staging_path(target: Path) -> Path:
    """Where `target` is built: beside it, so that the swap is a rename on one file system."""
    return target.with_name(f".{target.name}.partial")


def retired_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


Archive = Callable[[Path], Path | None]


def swap_folder(target: Path, archive: Archive | None = None) -> None:
    """Put the finished staging folder in place; the old one goes where `archive(old)` says, or away."""
    staging, retired = staging_path(target), retired_path(target)
    _retire(retired, archive)
    if target.exists():
        target.rename(retired)
    staging.rename(target)
    _retire(retired, archive)


def mend_folder(target: Path, record: str, archive: Archive | None = None) -> None:
    """Finish a swap that was killed. A staging folder with its record is whole; one without is dropped."""
    staging, retired = staging_path(target), retired_path(target)
    if (staging / record).is_file():
        swap_folder(target, archive)
    elif not target.exists() and retired.exists():
        retired.rename(target)
    remove(staging)
    _retire(retired, archive)


def _retire(retired: Path, archive: Archive | None) -> None:
    if not retired.exists():
        return
    kept = archive(retired) if archive else None
    if kept is None or kept.exists():
        remove(retired)
    else:
        kept.parent.mkdir(parents=True, exist_ok=True)
        retired.rename(kept)


def move_in(staging: Path, folder: Path, record: str) -> None:
    """Move the finished files of `staging` into a folder that others share, the record last.

    The old record goes first: between the two no reader takes a mixture of old and new for a whole.
    """
    if not (staging / record).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in staging.iterdir() if path.name != record)
    if names:
        (folder / record).unlink(missing_ok=True)
    for name in names:
        (staging / name).replace(folder / name)
    (staging / record).replace(folder / record)
    remove(staging)


def size_text(count: int) -> str:
    """`811 B`, `105.5 MB`: decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def require_free_space(folder: Path, needed: int, purpose: str) -> None:
    """Refuse before the work starts when the disk cannot hold what it will write.

    Raises ForgeError (7) with both figures; 2% are added for the file system's own needs.
    """
    probe = folder
    while not probe.exists():
        probe = probe.parent
    free = shutil.disk_usage(probe).free
    needed = int(needed * 1.02)
    if free < needed:
        raise ForgeError(
            f"{purpose} needs {needed / 1e9:.1f} GB of disk in {folder}, {free / 1e9:.1f} GB are free",
            "free some space (scripts/runs.py --prune, make clean-models) or move the checkout to a larger disk",
            ENVIRONMENT,
        )
