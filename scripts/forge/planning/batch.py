"""A micro-batch as a plan sees it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Batch:
    """`lengths` of the rows in tokens, `targets` of all their tokens carry loss; `stage` sft, dpo or kto.

    dpo: lengths of the longer answer of each pair, prompt included; both answers are computed at once. `packed`: one
    row after the other, without padding.
    """

    lengths: tuple[int, ...]
    targets: int
    stage: str = "sft"
    packed: bool = True
