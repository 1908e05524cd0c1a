"""Log-probabilities of whole answers, many at once: how likely a model holds each of several answers to one question.

Rows are padded on the right and no mask is needed: a causal model's figure for a token does not depend on what comes
after it. Rows of like length share a batch, and logits are asked for from the earliest answer of the batch on.
"""

import inspect

import numpy as np

from forge import chat

TOKENS_AT_ONCE = 2048  # of a batch, padding included
LOGIT_BYTES = 400_000_000  # float32 logits of a batch: 2,000 positions of a 49,152-word vocabulary


def encode(tokenizer, prompt: list[dict], answer: str) -> dict:
    """`input_ids` of a conversation with its answer, and `start`: where the answer's tokens begin.

    The end token is part of the answer, what the template writes after it is not: no model is asked to say that.
    """
    row = chat.encode_row(tokenizer, {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]})
    counted = np.flatnonzero(np.asarray(row["labels"]) != chat.IGNORED)
    return {"input_ids": row["input_ids"][: counted[-1] + 1], "start": int(counted[0])}


def batches(rows: list[dict], vocabulary: int) -> list[list[int]]:
    """Indices of rows, those of like length together, within TOKENS_AT_ONCE and LOGIT_BYTES (one row at least)."""
    order = sorted(range(len(rows)), key=lambda index: (len(rows[index]["input_ids"]), rows[index]["start"]))
    found: list[list[int]] = []
    batch: list[int] = []
    for index in order:
        wider = [*batch, index]
        width = len(rows[index]["input_ids"])
        kept = width - min(rows[one]["start"] for one in wider) + 1
        too_many = len(wider) * width > TOKENS_AT_ONCE or 4 * len(wider) * kept * vocabulary > LOGIT_BYTES
        if batch and too_many:
            found.append(batch)
            wider = [index]
        batch = wider
    return [*found, batch] if batch else found


def log_probabilities(model, rows: list[dict], say=None) -> list[float]:
    """Natural logarithm of the probability of each row's answer: the sum over its tokens, in nats.

    `rows` as `encode` gives them; `say(done, of)` is told after every batch. NaN where the model gives NaN.
    """
    import torch

    found = [float("nan")] * len(rows)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    for batch in batches(rows, vocabulary):
        width = max(len(rows[index]["input_ids"]) for index in batch)
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        for line, index in enumerate(batch):
            ids[line, : len(rows[index]["input_ids"])] = torch.tensor(rows[index]["input_ids"])
        first = min(rows[index]["start"] for index in batch) - 1
        with torch.inference_mode():
            logits = _logits(model, ids.to(model.device), width - first)
            for line, index in enumerate(batch):
                found[index] = _of_answer(logits[line], ids[line], rows[index], first)
        if say:
            say(sum(value == value for value in found), len(rows))
    return found


def _of_answer(logits, ids, row: dict, first: int) -> float:
    """Sum over the answer's tokens; `logits` begin with those for the token at `first` + 1."""
    import torch

    start, end = row["start"], len(row["input_ids"])
    target = ids[start:end].to(logits.device)
    picked = logits[start - 1 - first : end - 1 - first].float()
    return -float(torch.nn.functional.cross_entropy(picked, target, reduction="sum"))


def _logits(model, ids, count: int):
    """Logits of the last `count` positions; of all, where a model cannot leave any out."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:
        return model(input_ids=ids, use_cache=False, logits_to_keep=count).logits
    return model(input_ids=ids, use_cache=False).logits[:, -count:]
