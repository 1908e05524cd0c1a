"""A micro-batch as a plan sees it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Batch:
    """`lengths` of the rows in tokens, `targets` of all their tokens carry loss; `stage` sft, dpo or kto.

    dpo: lengths and targets of the longer answer of each pair, prompt included. `packed`: one row after the other,
    without padding.
    """

    lengths: tuple[int, ...]
    targets: int
    stage: str = "sft"
    packed: bool = True

    @property
    def answers(self) -> int:
        """How many answers to a row's prompt are computed at once."""
        return 2 if self.stage == "dpo" else 1
