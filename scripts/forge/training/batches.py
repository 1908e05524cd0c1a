"""The order in which rows are trained: the same for the same seed and epoch, whether a run was interrupted or not."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class Order(Sampler[int]):
    """Indices of rows, shuffled anew in each epoch.

    `lengths` in tokens; with `rows_at_once`, the rows of one optimizer step, rows of like length come together. The
    order depends on the seed and the epoch alone (transformers' own draws from the global generator), so a run that
    resumes within an epoch goes on with the batches that were still to come. `blanks`: how many rows without loss
    stand behind those in the data set; they come last.
    """

    def __init__(self, lengths: list[int], rows_at_once: int | None, seed: int, blanks: int = 0):
        self.lengths, self.rows_at_once, self.seed, self.blanks = lengths, rows_at_once, seed, blanks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by transformers at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + self.blanks

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.rows_at_once is None:
            rows = torch.randperm(len(self.lengths), generator=generator).tolist()
        else:
            rows = get_length_grouped_indices(self.lengths, self.rows_at_once, generator=generator)
        return iter([*rows, *range(len(rows), len(self))])


def shared(rows_at_once: int, accumulation: int, processes: int) -> tuple[int, int] | None:
    """Rows at once and batches a step of each process, so that all together train as many rows a step as one would.

    At most `rows_at_once`; None where the rows of a step cannot be dealt out evenly. accelerate deals batches in turn,
    so a step has the same rows as in one process, whichever process has which.
    """
    rows, left = divmod(rows_at_once * accumulation, processes)
    if left:
        return None
    at_once = max(size for size in range(1, rows_at_once + 1) if rows % size == 0)
    return at_once, rows // at_once


def set_epoch(loader, epoch: int) -> None:
    """Tell the epoch to every sampler in a loader, however deep.

    accelerate and transformers reach two samplers deep: that of a run of several processes that goes on within an
    epoch lies deeper, and would draw the first epoch's order.
    """
    sampler = loader.batch_sampler
    while sampler is not None:
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
