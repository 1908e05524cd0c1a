"""The order in which rows are trained: rows of like length together, the same order for the same seed and epoch."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class GroupedByLength(Sampler[int]):
    """Indices of rows, shuffled in groups of like length: less padding, hence less time.

    `lengths` in tokens, `rows_at_once` the rows of one optimizer step. The order depends on the seed and the
    epoch alone, so a run that resumes within an epoch goes on with the batches that were still to come.
    """

    def __init__(self, lengths: list[int], rows_at_once: int, seed: int):
        self.lengths, self.rows_at_once, self.seed = lengths, rows_at_once, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by transformers at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.rows_at_once, generator=generator))
