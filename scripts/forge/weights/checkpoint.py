"""The safetensors weights of a model folder, read one tensor or one piece at a time.

They are read, not mapped: mapped pages count in a process's peak, and a model's would add up to its size. The headers
are read and checked when a Checkpoint is made: all shards of the index, each as long as its header says.
"""

import json
import os
import struct
from pathlib import Path
from typing import NamedTuple

from forge.errors import INTEGRITY, ForgeError, one_line

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEADER_LIMIT = 100_000_000  # bytes, safetensors' own
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # those that weights are merged in
AT_ONCE = 1 << 25  # bytes of one piece: 32 MB


class Entry(NamedTuple):
    """Where a tensor lies: `offset` and `size` in bytes of `file`; `dtype` in safetensors' names."""

    file: str
    offset: int
    size: int
    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """`entries`: every tensor by its name, in the order of the files and of the places in them."""

    def __init__(self, folder: Path):
        """Read the headers. Raises ForgeError (6) where a shard is missing, cut short, or not what the index says."""
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self._handles: dict[str, int] = {}
        indexed = _indexed(folder)
        for name in _files(folder, indexed):
            self.entries |= _header(folder / name)
        if indexed is not None:
            _compare(folder, indexed, self.entries)

    def read(self, name: str, start: int = 0, size: int | None = None):
        """Bytes of a tensor as a flat uint8 tensor: `size` of them from `start`, or all."""
        import torch

        entry = self.entries[name]
        buffer = torch.empty(entry.size - start if size is None else size, dtype=torch.uint8)
        view, done = memoryview(buffer.numpy()), 0
        while done < len(view):
            got = os.preadv(self._handle(entry.file), [view[done:]], entry.offset + start + done)
            if got == 0:
                raise _damaged(self.folder / entry.file, "it ends too early")
            done += got
        end = entry.offset + start + done
        os.posix_fadvise(self._handle(entry.file), end, AT_ONCE, os.POSIX_FADV_WILLNEED)  # while this is worked on
        return buffer

    def pieces(self, name: str):
        """All bytes of a tensor, at most AT_ONCE at a time."""
        size = self.entries[name].size
        for start in range(0, size, AT_ONCE):
            yield self.read(name, start, min(AT_ONCE, size - start))

    def tensor(self, name: str):
        """The tensor in its own dtype and shape."""
        import torch

        entry = self.entries[name]
        return self.read(name).view(getattr(torch, DTYPES[entry.dtype])).reshape(entry.shape)

    def unusual(self) -> str | None:
        """The first tensor of a dtype that is neither BF16, F16 nor F32, with that dtype; None when there is none."""
        return next((f"{name} ({e.dtype})" for name, e in self.entries.items() if e.dtype not in DTYPES), None)

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def _handle(self, file: str) -> int:
        if file not in self._handles:
            self._handles[file] = os.open(self.folder / file, os.O_RDONLY)
        return self._handles[file]


def _damaged(path: Path, why: str) -> ForgeError:
    return ForgeError(f"{path} is damaged: {why}", f"delete {path.parent} and run make again", INTEGRITY)


def _indexed(folder: Path) -> dict[str, str] | None:
    """File of each tensor, as the index has it; None without an index."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(file, str) and Path(file).name == file for file in found.values()):
            raise ValueError("a shard is no file of this folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, one_line(error)) from None
    return found


def _files(folder: Path, indexed: dict[str, str] | None) -> list[str]:
    if indexed is not None:
        return sorted(set(indexed.values()))
    if (folder / SINGLE).is_file():
        return [SINGLE]
    raise ForgeError(f"{folder} has no {SINGLE} and no {INDEX}", "run make model again", INTEGRITY)


def _header(path: Path) -> dict[str, Entry]:
    """Tensors of one file: its first 8 bytes are the length of a JSON header, the tensors follow it."""
    try:
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > HEADER_LIMIT:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        begin = 8 + length
        found = {}
        for name, item in sorted(header.items(), key=lambda pair: pair[1]["data_offsets"]):
            start, end = item["data_offsets"]
            found[name] = Entry(path.name, begin + start, end - start, item["dtype"], tuple(item["shape"]))
        told, there = begin + sum(entry.size for entry in found.values()), path.stat().st_size
    except FileNotFoundError:
        raise ForgeError(f"{path}, a shard of the index, is missing", "run make model again", INTEGRITY) from None
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, one_line(error) or "no header") from None
    if told != there:
        raise _damaged(path, f"it has {there} bytes instead of {told}")
    return found


def _compare(folder: Path, indexed: dict[str, str], entries: dict[str, Entry]) -> None:
    there = {name: entry.file for name, entry in entries.items()}
    if there != indexed:
        name = sorted(there.items() ^ indexed.items())[0][0]
        raise _damaged(folder / INDEX, f"index and shards do not agree on {name}")
