"""Every tensor of a GGUF file, read back to numbers, against the merged weight that it was made from.

Two things are shown. The error of each tensor stays within what its type allows for any weights at all: rounding to
evenly spaced steps is off by step / sqrt(12) in the root mean square, and a block's steps span at most twice its
largest weight, which in a block of n is at most sqrt(n) times its root mean square. And how much of what the adapter
changed is in the file: the projection of (file - base) on (merged - base), 1 where all of it is, 0 where none is.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from forge.progress import Told
from forge.quantizing import ggml, source
from forge.quantizing.source import Piece

AT_ONCE = 1 << 22  # weights

# Weights that share a step, and number of steps across a block's range, by ggml's names of types.
STEPS = {
    "q8_0": (32, 255),
    "q6_K": (16, 63),
    "q5_K": (32, 31),
    "q5_1": (32, 31),
    "q5_0": (32, 31),
    "q4_K": (32, 15),
    "q4_1": (32, 15),
    "q4_0": (32, 15),
    "iq4_nl": (32, 15),
    "iq4_xs": (32, 15),
    "q3_K": (16, 7),
    "iq3_s": (32, 15),
    "q2_K": (16, 3),
}
SCALES = 1.1  # steps themselves are rounded, to 6 bits in the coarsest types
SIXTEEN = {"f32": 0.0, "bf16": 2.0**-9, "f16": 2.0**-11}  # largest relative error of rounding to nearest


def limit(kind: str) -> float | None:
    """Largest root-mean-square error, as a share of the weights' own; None for a type without such a bound."""
    if kind in SIXTEEN:
        return SIXTEEN[kind]
    if kind not in STEPS:
        return None
    block, steps = STEPS[kind]
    return SCALES * math.sqrt(block) * 2 / steps / math.sqrt(12)


def compare(merged: Callable, base: Callable, paths: list[str], told: Told) -> dict[str, list[dict]]:
    """For each file and each of its tensors `name`, `type`, `error` (root mean square, as a share of the weights'),
    `limit`, and the two sums of the projection: `there`, (file - base) * (merged - base), and `change`, (merged - base)
    squared.

    `merged`, `base`: functions of a tensor's name that give its pieces (source.pieces), called once for each.
    `told`: after each.
    """
    files = {path: ggml.tensors_of(Path(path)) for path in paths}
    found: dict[str, list[dict]] = {path: [] for path in paths}
    names = list(dict.fromkeys(name for tensors in files.values() for name in tensors))
    for done, name in enumerate(names, 1):
        holders = {path: Sums(name, *tensors[name]) for path, tensors in files.items() if name in tensors}
        for ours, before in together(_rows(merged(name)), _rows(base(name))):
            for sums in holders.values():
                sums.add(ours, before)
        for path, sums in holders.items():
            found[path].append(sums.row())
        told(done, len(names))
    return found


class Sums:
    """What is summed up over one tensor of one file, some rows at a time."""

    def __init__(self, name: str, kind: int, data: np.ndarray):
        self.name, self.kind, self.data = name, kind, data
        self.start = 0  # bytes
        self.error = self.size = self.there = self.change = 0.0

    def add(self, ours: np.ndarray, before: np.ndarray) -> None:
        """Rows of the merged weight and of the base's: float32 [rows, width] each."""
        width = ggml.row_bytes(self.kind, ours.shape[1])
        end = self.start + len(ours) * width
        rows = ggml.to_float(self.kind, self.data[self.start : end].reshape(-1, width))
        delta = ours - before
        self.start = end
        self.size += _dot(ours, ours)
        self.change += _dot(delta, delta)
        self.there += _dot(rows - before, delta)
        self.error += _dot(rows - ours, rows - ours)

    def row(self) -> dict:
        if self.start != len(self.data):
            raise ValueError(f"{self.name} has {len(self.data)} bytes instead of {self.start}")
        kind = ggml.type_name(self.kind)
        error = math.sqrt(self.error / self.size) if self.size else math.sqrt(self.error)
        sums = {"there": self.there, "change": self.change}
        return {"name": self.name, "type": kind, "error": error, "limit": limit(kind), **sums}


def together(left: Iterator[np.ndarray], right: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same rows of both, which come in pieces of different lengths. Raises ValueError when one has more."""
    ours, theirs = next(left, None), next(right, None)
    while ours is not None and theirs is not None:
        count = min(len(ours), len(theirs))
        yield ours[:count], theirs[:count]
        ours = ours[count:] if count < len(ours) else next(left, None)
        theirs = theirs[count:] if count < len(theirs) else next(right, None)
    if ours is not theirs:
        raise ValueError("the merged weight and the base's do not have the same number of rows")


def _rows(pieces: Iterator[Piece]) -> Iterator[np.ndarray]:
    for piece in pieces:
        step = max(1, AT_ONCE * source.ITEM[piece.kind] // piece.data.shape[1])
        for begin in range(0, len(piece.data), step):
            yield ggml.to_float(piece.kind, piece.data[begin : begin + step])


def _dot(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.vdot(left, right))
