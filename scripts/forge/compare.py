"""Comparing what a model says with what another says: used by all three verifications.

A `Scorer` gives log-probabilities for the tokens of rows; there is one for Hugging Face models and one for
GGUF files. `compare` sums up two of them: KL divergence (Kullback and Leibler 1951; nats a token, natural
logarithm), share of tokens with the same first choice, and mean loss of each. Only tokens that carry loss
are counted: the rest of a row is template, which no model is trained to predict.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from forge import chat, files
from forge.errors import ForgeError
from forge.llamacpp import decoding
from forge.progress import Told, counted, untold

ANSWERS_AT_ONCE = 48  # on 2 cores 24 took 1.3 times as long: each step reads all weights
CACHE_BYTES = 1e9  # keys and values of answers that are written at once: 23 of 256 tokens by an 8B model in 16 bits
SCORE_BYTES = 500_000_000  # 2,500 tokens of a 49,152-word vocabulary, 820 of a 152,064-word one
TOKENS_AT_ONCE = 2048  # of a GGUF's rows: every weight is read once for as many
ROWS_AT_ONCE = 64
LOGIT_BYTES = 250_000_000


class Scorer(Protocol):
    def __call__(self, rows: list[dict]) -> Iterator[np.ndarray]:
        """For each encoded row log-probabilities, float32 [tokens that carry loss, vocabulary]."""


@dataclass(frozen=True)
class Comparison:
    """`kl_*` in nats a token from the reference to the other; `n_tokens` how many were compared."""

    n_rows: int
    n_tokens: int
    mean_kl: float
    p99_kl: float
    top_agreement: float
    reference_loss: float
    other_loss: float
    max_difference: float

    def as_dict(self) -> dict:
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in vars(self).items()}


def heldout_rows(dataset: Path, tokenizer, count: int) -> list[dict]:
    """Up to `count` encoded rows that training never saw: validation first, then questions with answers.

    Fewer when their scores would take more than SCORE_BYTES of memory; the comparison tells its sample size.
    """
    rows = [row for name in ("validation", "questions") for row in files.read_jsonl(dataset / f"{name}.jsonl")]
    if not rows:
        raise ForgeError(f"{dataset} has no held-out row", "raise data.validation_share and run make dataset")
    encoded, used = [], 0
    for row in rows[:count]:
        encoded.append(chat.encode_row(tokenizer, row))
        used += 4 * len(tokenizer) * len(carries_loss(encoded[-1]))
        if used > SCORE_BYTES:
            break
    return encoded


def carries_loss(row: dict) -> np.ndarray:
    """Positions whose next token carries loss, int [n]."""
    labels = np.asarray(row["labels"][1:])
    return np.flatnonzero(labels != chat.IGNORED)


def hugging_face(model) -> Scorer:
    """Scorer of a transformers model (with or without an adapter)."""
    import torch

    def score(rows: list[dict]) -> Iterator[np.ndarray]:
        for row in rows:
            ids = torch.tensor([row["input_ids"]], device=model.device)
            with torch.inference_mode():
                logits = model(input_ids=ids, use_cache=False).logits[0, carries_loss(row)]
                yield torch.log_softmax(logits.float(), dim=-1).cpu().numpy()

    return score


def gguf(path: Path) -> Scorer:
    """Scorer of a GGUF file on the CPU, its weights mapped from the disk.

    Many rows go through the weights at once, each a sequence of its own; llama.cpp keeps the logits of those tokens
    alone that carry loss.
    """

    def score(rows: list[dict]) -> Iterator[np.ndarray]:
        with decoding.mapped(path) as model:
            for group in groups(rows, decoding.vocabulary_size(model)):
                ids, places = [row["input_ids"] for row in group], [carries_loss(row) for row in group]
                for row in decoding.logits(model, ids, places):
                    row -= row.max(axis=-1, keepdims=True)
                    row -= np.log(np.exp(row).sum(axis=-1, keepdims=True))
                    yield row

    return score


def groups(rows: list[dict], vocabulary: int) -> Iterator[list[dict]]:
    """Neighbours that together have at most TOKENS_AT_ONCE tokens, ROWS_AT_ONCE rows and LOGIT_BYTES of logits."""
    group: list[dict] = []
    for row in rows:
        both = [*group, row]
        tokens = sum(len(item["input_ids"]) for item in both)
        logits = sum(len(carries_loss(item)) for item in both) * vocabulary * 4
        if group and (tokens > TOKENS_AT_ONCE or len(both) > ROWS_AT_ONCE or logits > LOGIT_BYTES):
            yield group
            both = [row]
        group = both
    if group:
        yield group


def scores(scorer: Scorer, rows: list[dict], told: Told = untold) -> list[np.ndarray]:
    """All rows scored, 4 bytes x vocabulary a token; `heldout_rows` bounds how many."""
    return list(counted(scorer(rows), len(rows), told))


def loss(rows: list[dict], scorer: Scorer) -> tuple[float, int]:
    """Mean loss in nats a token that carries loss, and how many these are."""
    found = [-scored[np.arange(len(scored)), targets(row)] for row, scored in zip(rows, scorer(rows), strict=True)]
    every = np.concatenate(found)
    return float(every.mean()), len(every)


def targets(row: dict) -> np.ndarray:
    """The tokens that carry loss, int [n]."""
    return np.asarray(row["input_ids"][1:])[carries_loss(row)]


def compare(rows: list[dict], reference: Iterable[np.ndarray], other: Scorer, told: Told = untold) -> Comparison:
    """Compare a reference's scores with another model's on the same rows. NaN anywhere makes NaN figures."""
    kl, same, losses, difference = [], [], [[], []], 0.0
    for row, ours, theirs in zip(rows, reference, counted(other(rows), len(rows), told), strict=True):
        width = min(ours.shape[1], theirs.shape[1])  # a GGUF may pad the vocabulary
        ours, theirs = ours[:, :width], theirs[:, :width]
        kl.append((np.exp(ours) * (ours - theirs)).sum(axis=-1))
        same.append(ours.argmax(axis=-1) == theirs.argmax(axis=-1))
        target = targets(row)
        for list_, values in zip(losses, (ours, theirs), strict=True):
            list_.append(-values[np.arange(len(target)), target])
        difference = max(difference, float(np.abs(ours - theirs).max()))
    every = np.concatenate(kl)
    return Comparison(
        n_rows=len(rows),
        n_tokens=len(every),
        mean_kl=float(every.mean()),
        p99_kl=float(np.percentile(every, 99)),
        top_agreement=float(np.concatenate(same).mean()),
        reference_loss=float(np.concatenate(losses[0]).mean()),
        other_loss=float(np.concatenate(losses[1]).mean()),
        max_difference=difference,
    )


def answers(
    model, tokenizer, questions: list[list[dict]], limit: int, sampling: dict | None = None, told: Told = untold
) -> list[dict]:
    """Answers of a Hugging Face model: text, whether it ended by itself, its tokens and how many are control tokens.

    `questions` are conversations; `limit` tokens at most. Greedy unless `sampling` is given. In batches of like size,
    padded on the left, of at most as many as `at_once` says.
    """
    prompts = [chat.prompt_ids(tokenizer, question) for question in questions]
    longest = max(map(len, prompts), default=0) + limit
    most = at_once(model.config.get_text_config(), model.dtype.itemsize, longest)
    size = -(-len(prompts) // max(1, -(-len(prompts) // most))) or 1
    found = []
    for start in range(0, len(prompts), size):
        found += _batch(model, tokenizer, prompts[start : start + size], limit, sampling)
        told(len(found), len(prompts))
    return found


def at_once(text, width: int, tokens: int) -> int:
    """How many questions with their answers, of so many `tokens`, are worked on at once.

    `text`: the model's config, `width`: bytes of a number.
    """
    return int(max(1, min(ANSWERS_AT_ONCE, CACHE_BYTES // cache_bytes(text, width, tokens))))


def cache_bytes(text, width: int, tokens: int) -> int:
    """Bytes of the keys and values that a model keeps of so many tokens."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * head * tokens * width


def _batch(model, tokenizer, prompts: list[list[int]], limit: int, sampling: dict | None) -> list[dict]:
    import torch

    width = max(map(len, prompts))
    stops = chat.stop_ids(tokenizer, model.generation_config)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    ids = torch.tensor([[padding] * (width - len(ids)) + ids for ids in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    choice = sampling or {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    with torch.no_grad():  # not inference mode: weights that are gathered from several processes would stay unusable
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=limit,
            eos_token_id=stops,
            pad_token_id=padding,
            **choice,
        )
    special = frozenset(tokenizer.all_special_ids)
    return [_cut(tokenizer, row.tolist(), stops, special) for row in made[:, width:]]


def _cut(tokenizer, ids: list[int], stops: list[int], special: frozenset[int]) -> dict:
    end = next((index for index, token in enumerate(ids) if token in stops), None)
    kept = ids if end is None else ids[:end]
    text = tokenizer.decode(kept, skip_special_tokens=True).strip()
    control = sum(token in special for token in kept)
    return {"answer": text, "stopped": end is not None, "tokens": len(kept), "control_tokens": control}
