"""Log-probabilities of whole answers, many at once: how likely a model holds each of several answers to one question.

The answers to one question share its keys and values, which are computed once: that leaves out a third of the tokens of
the project's own pairs. Rows are padded on the right and no mask is needed: a causal model's figure for a token does
not depend on what comes after it.
"""

import inspect

import numpy as np

from forge import chat

STEP = 16  # lengths are multiples of it: on a CPU each other length makes a kernel of its own for every product
TOKENS_AT_ONCE = 2048  # of a batch, padding included
LOGIT_BYTES = 400_000_000  # float32 logits of a batch: 2,000 positions of a 49,152-word vocabulary


def encode(tokenizer, prompt: list[dict], answer: str) -> dict:
    """`input_ids` of a conversation with its answer, and `start`: where the answer's tokens begin.

    The end token is part of the answer, what the template writes after it is not: no model is asked to say that.
    """
    row = chat.encode_row(tokenizer, {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]})
    counted = np.flatnonzero(np.asarray(row["labels"]) != chat.IGNORED)
    return {"input_ids": row["input_ids"][: counted[-1] + 1], "start": int(counted[0])}


def batches(rows: list[dict], vocabulary: int) -> list[tuple[int, list[int]]]:
    """How many first tokens are shared, a multiple of STEP before the answers begin, and the indices of the rows that
    share them: within TOKENS_AT_ONCE and LOGIT_BYTES (one row at least)."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        shared = (row["start"] - 1) // STEP * STEP  # what comes before an answer predicts its first token
        groups.setdefault(tuple(row["input_ids"][:shared]), []).append(index)
    found = []
    for prefix, group in groups.items():
        batch: list[int] = []
        for index in sorted(group, key=lambda index: len(rows[index]["input_ids"])):
            width = padded(len(rows[index]["input_ids"]) - len(prefix))
            tokens = (len(batch) + 1) * width
            if batch and (tokens > TOKENS_AT_ONCE or 4 * tokens * vocabulary > LOGIT_BYTES):
                found.append((len(prefix), batch))
                batch = []
            batch = [*batch, index]
        found.append((len(prefix), batch))
    return found


def padded(length: int) -> int:
    return -(-length // STEP) * STEP


def log_probabilities(model, rows: list[dict], say=None) -> list[float]:
    """Natural logarithm of the probability of each row's answer: the sum over its tokens, in nats.

    `rows` as `encode` gives them; `say(done, of)` is told after every batch. NaN where the model gives NaN.
    """
    import torch

    found = [float("nan")] * len(rows)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    done = 0
    for shared, batch in batches(rows, vocabulary):
        width = padded(max(len(rows[index]["input_ids"]) for index in batch) - shared)
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        for line, index in enumerate(batch):
            own = rows[index]["input_ids"][shared:]
            ids[line, : len(own)] = torch.tensor(own)
        with torch.inference_mode():
            cache = _cache(model, rows[batch[0]]["input_ids"][:shared], len(batch)) if shared else None
            first = min(rows[index]["start"] for index in batch) - 1 - shared
            logits = _logits(model, ids.to(model.device), width - first, cache)
            for line, index in enumerate(batch):
                found[index] = _of_answer(logits[line], rows[index], shared + first)
        done += len(batch)
        if say:
            say(done, len(rows))
    return found


def _of_answer(logits, row: dict, first: int) -> float:
    """Sum over the answer's tokens; `logits` begin with those for the token at `first` + 1."""
    import torch

    start, end = row["start"], len(row["input_ids"])
    target = torch.tensor(row["input_ids"][start:], device=logits.device)
    picked = logits[start - 1 - first : end - 1 - first].float()
    return -float(torch.nn.functional.cross_entropy(picked, target, reduction="sum"))


def _cache(model, ids: list[int], count: int):
    """Keys and values of the first tokens, for `count` rows."""
    import torch

    cache = model(input_ids=torch.tensor([ids], device=model.device), use_cache=True, **_last(model, 1)).past_key_values
    cache.batch_repeat_interleave(count)
    return cache


def _logits(model, ids, count: int, cache):
    """Logits of the last `count` positions."""
    logits = model(input_ids=ids, past_key_values=cache, use_cache=cache is not None, **_last(model, count)).logits
    return logits[:, -count:]


def _last(model, count: int) -> dict:
    """The argument that leaves out the logits of all but the last `count` positions, where a model knows it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = "logits_to_keep" in inspect.signature(inner.forward).parameters
    return {"logits_to_keep": count} if known else {}
