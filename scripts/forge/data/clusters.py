"""Near-duplicates: which rows say almost the same, so that no paraphrase stands on both sides of a split.

MinHash signatures of word triples (Broder 1997) by the rensa library; candidates by banding (Leskovec, Rajaraman,
Ullman, "Mining of Massive Datasets", chapter 3); a candidate counts when its signatures agree often enough.
With 25 bands of 5 values, texts whose triples overlap by 0.8 meet in a band with probability 0.9999, by 0.7 with
0.990, by 0.5 with 0.55, by 0.3 with 0.06; the agreement of 128 values then estimates the overlap with a standard error
of at most 0.044.
"""

import re
from collections.abc import Iterable

import numpy as np

VALUES = 128  # 32-bit values of a signature: 512 bytes a row, 256 MB for 500,000 rows, kept in a file
BANDS, WIDTH = 25, 5
SEED = 1
WORD = re.compile(r"\w+")
CHUNK = 1 << 16  # pairs that are compared at once: 64 MB of signatures


def signature(text: str) -> np.ndarray:
    """VALUES unsigned 32-bit integers for a text; texts of the same words in the same order have the same.

    Letter case, punctuation and spaces do not count.
    """
    from rensa import RMinHash

    words = WORD.findall(text.casefold())
    shingles = [" ".join(words[place : place + 3]) for place in range(max(1, len(words) - 2))]
    sketch = RMinHash(num_perm=VALUES, seed=SEED)
    sketch.update(shingles)
    return np.array(sketch.digest(), dtype=np.uint32)


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Estimated overlap (Jaccard, 0 to 1) of signatures, row by row: (n, VALUES) and (n, VALUES) to (n,)."""
    return (one == other).mean(axis=-1)


def pairs(signatures: np.ndarray, threshold: float, chosen: np.ndarray | None = None) -> Iterable[tuple[int, int]]:
    """Pairs of numbers (smaller first) whose signatures' estimated overlap is at least `threshold`.

    `signatures` has the shape (n, VALUES), `chosen` those of its rows that are looked at (all by default); the pairs
    are places in `chosen`. In each band every row is compared with the first one that has the same values there, not
    each with each: in groups of up to 3,000 that were tried all members were joined.
    """
    chosen = np.arange(len(signatures)) if chosen is None else chosen
    if len(chosen) == 0:
        return
    for band in range(BANDS):
        keys = _band_keys(signatures[:, band * WIDTH : (band + 1) * WIDTH][chosen])
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        sizes = np.diff(np.r_[begins, len(ordered)])
        first = np.repeat(order[begins], sizes)
        candidates = np.flatnonzero(first != order)
        for begin in range(0, len(candidates), CHUNK):
            some = candidates[begin : begin + CHUNK]
            left, right = first[some], order[some]
            alike = similarity(signatures[chosen[left]], signatures[chosen[right]]) >= threshold
            yield from zip(left[alike].tolist(), right[alike].tolist(), strict=True)


def _band_keys(columns: np.ndarray) -> np.ndarray:
    """One 64-bit key a row for the values of a band (FNV-1a over its columns)."""
    keys = np.full(len(columns), 0xCBF29CE484222325, dtype=np.uint64)
    for column in range(columns.shape[1]):
        keys ^= columns[:, column].astype(np.uint64)
        keys *= np.uint64(0x100000001B3)
    return keys


class Groups:
    """Disjoint sets of numbers 0 to n - 1 (union-find with path halving); a set is named by its smallest."""

    def __init__(self, count: int):
        self.parent = list(range(count))

    def find(self, item: int) -> int:
        parent = self.parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        self.parent[max(one, other)] = min(one, other)

    def names(self) -> np.ndarray:
        """The name of every item's set, as an array of n numbers."""
        return np.array([self.find(item) for item in range(len(self.parent))], dtype=np.int64)
