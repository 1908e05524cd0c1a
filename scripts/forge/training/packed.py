"""Padded rows of a preference stage, computed packed: as sft's are, one after the other and none seeing another.

trl's DPOTrainer and KTOTrainer hand padded rows to the model and read padded figures; its padding_free of DPO is
switched off in 1.16. On a CPU trl also projects every position to the vocabulary, those without a label too, for the
sake of accelerators that compile each shape: `score_labels_only` takes that back.
"""

import torch
from torch.nn import functional
from trl.trainer import utils

from forge.chat import IGNORED
from forge.training.choices import ROUND

PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask")


class Packed:
    """Called as a model with trl's fused head (trl.trainer.utils.add_fused_lm_head), and gives what it gives."""

    def __init__(self, model):
        self.model = model

    def __call__(self, input_ids, attention_mask, labels, **given):
        """`input_ids`, `attention_mask`, `labels` (rows, tokens); figures come as (rows, tokens - 1)."""
        real = attention_mask.bool()
        wanted = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        ids, wanted, places = (part[real] for part in (input_ids, wanted, attention_mask.cumsum(dim=1) - 1))
        lengths, count = real.sum(dim=1), len(ids)
        blank = -count % ROUND  # a last row without a label, as in supervised.Collator
        if blank:
            ids, wanted = functional.pad(ids, (0, blank)), functional.pad(wanted, (0, blank), value=IGNORED)
            places = torch.cat([places, torch.arange(blank, device=places.device)])
            lengths = functional.pad(lengths, (0, 1), value=blank)
        limits, longest = functional.pad(lengths.cumsum(dim=0), (1, 0)).int(), int(lengths.max())
        found = self.model(
            input_ids=ids[None],
            position_ids=places[None],
            cu_seq_lens_q=limits,
            cu_seq_lens_k=limits,
            max_length_q=longest,
            max_length_k=longest,
            shift_labels=wanted[None],
            **given,
        )
        for name in PER_TOKEN:
            figures = getattr(found, name)
            if figures is not None:
                padded = figures.new_zeros(real.shape).masked_scatter(real, figures[0, :count])
                setattr(found, name, padded[:, :-1])
        return found


def score_labels_only() -> None:
    """Positions without a label are not projected to the vocabulary on a CPU either: half of a pair and more."""
    utils._use_triton = lambda device: True  # read there for this question alone
