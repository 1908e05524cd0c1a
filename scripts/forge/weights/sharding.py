"""Weights to safetensors shards, each tensor written as soon as it is there, hashed on the way.

Names and index are those of transformers' save_pretrained. Writing and hashing run beside the reading and merging.
"""

import hashlib
import itertools
import json
import math
import queue
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from forge import files
from forge.progress import Told, untold
from forge.weights.checkpoint import AT_ONCE, INDEX, SINGLE
from forge.weights.merging import Weights

NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
UNITS = {"MB": 10**6, "GB": 10**9}
WAITING = 2  # pieces, 32 MB each at most, between the one who reads and the one who writes


def write(weights: Weights, folder: Path, most: str, told: Told = untold) -> dict[str, str]:
    """Write all tensors; `most`: of a shard, as "1GB". The SHA-256 of each weight file by its name.

    `told`: after each tensor.
    """
    shards = divided(weights, int(most[:-2]) * UNITS[most[-2:]])
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
    )
    done, of = itertools.count(1), sum(map(len, shards))
    hashes = {
        name: write_shard(weights, folder / name, shard, lambda: told(next(done), of))
        for name, shard in zip(names, shards, strict=True)
    }
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(size_of(weights, tensor) for shard in shards for tensor in shard)},
            "weight_map": {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
        }
        files.write_json(folder / INDEX, index)
    return hashes


def size_of(weights: Weights, name: str) -> int:
    return math.prod(weights.checkpoint.entries[name].shape) * BYTES[weights.dtype]


def divided(weights: Weights, most: int) -> list[list[str]]:
    """The tensors' names, in the base's order, in groups of at most `most` bytes; a larger tensor has its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name in weights.checkpoint.entries:
        size = size_of(weights, name)
        if shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_shard(weights: Weights, path: Path, names: list[str], told: Callable[[], None]) -> str:
    """SHA-256 of the written file. `told` is called after each tensor."""
    header, place = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        end = place + size_of(weights, name)
        shape = weights.checkpoint.entries[name].shape
        header[name] = {"dtype": NAMES[weights.dtype], "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with Writer(path) as out:
        out.put(struct.pack("<Q", len(text)) + text)
        for name in names:
            for piece in pieces(weights, name):
                out.put(piece)
                del piece  # a view: it would hold this weight in memory while the next one is merged
            told()
    return out.digest.hexdigest()


def pieces(weights: Weights, name: str):
    """The tensor's bytes, some at a time; one that stays as it is goes through in small ones."""
    import torch

    if weights.unchanged(name):
        for piece in weights.checkpoint.pieces(name):
            yield piece.numpy()
        return
    for rows in weights.rows(name):
        flat = rows.contiguous().view(torch.uint8).reshape(-1).numpy()
        for start in range(0, len(flat), AT_ONCE):
            yield flat[start : start + AT_ONCE]


class Writer:
    """Writes and hashes in threads of their own what `put` hands over. An error there is raised by `put` or the end."""

    def __init__(self, path: Path):
        self.path = path
        self.digest = hashlib.sha256()
        self.taken = 0  # bytes so far
        self.waiting: queue.Queue = queue.Queue(maxsize=WAITING)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> "Writer":
        self.thread.start()
        return self

    def put(self, data) -> None:
        if self.error is not None:
            raise self.error
        self.taken += memoryview(data).nbytes
        self.waiting.put(data)

    def __exit__(self, kind, error, trace) -> None:
        self.waiting.put(None)
        self.thread.join()
        if kind is None and self.error is not None:
            raise self.error

    def _write(self) -> None:
        data = b""
        try:
            with self.path.open("wb", buffering=0) as handle, ThreadPoolExecutor(1) as hasher:
                while (data := self.waiting.get()) is not None:
                    view = memoryview(data).cast("B")
                    hashed = hasher.submit(self.digest.update, view)
                    while view:
                        view = view[handle.write(view) :]
                    hashed.result()
                    del view, hashed
                    data = b""  # not held while the next one is waited for
        except BaseException as error:
            self.error = error
            while data is not None:  # so that nobody waits for a place
                data = self.waiting.get()
