"""Many sequences through a GGUF at once, on the CPU and in little memory: logits of chosen tokens, and greedy answers.

The weights stay mapped: llama.cpp would pack them anew for the processor, which is faster for a single answer and a
second copy in memory (4 GB of a 7B in Q4_K_M). Sequences that go through the weights together read them once.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from forge.errors import ENVIRONMENT, INTEGRITY, ForgeError
from forge.llamacpp import llama
from forge.progress import Told, untold

CACHE_BYTES = 5e8  # keys and values of the answers that are written at once
ANSWERS_AT_ONCE = 32


@dataclass
class Answer:
    """Token ids without the end token; whether it `stopped` by itself."""

    tokens: list[int]
    stopped: bool = False


class Piece(NamedTuple):
    """The next `tokens` of a sequence, the first at position `begin`; logits are wanted at `places` of them."""

    sequence: int
    begin: int
    tokens: list[int]
    places: list[int]


@contextlib.contextmanager
def mapped(path: Path) -> Iterator:
    """llama.cpp's own model of a file. Raises ForgeError (6) when it does not load."""
    llama_cpp = llama.library()
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers, parameters.use_extra_bufts = 0, False
    model = llama_cpp.llama_model_load_from_file(str(path).encode("utf-8"), parameters)
    if not model:
        raise ForgeError(f"llama.cpp cannot load {path}", f"delete {path} and run make gguf again", INTEGRITY)
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


def vocabulary_size(model) -> int:
    llama_cpp = llama.library()
    return llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))


def logits(model, rows: list[list[int]], places: list) -> list[np.ndarray]:
    """For each row of token ids its logits at `places` (int [n]): float32 [n, vocabulary], by one decoding of all.

    `model`: of `mapped`. Every row is a sequence of its own: none sees another. Raises ForgeError (7) when there is
    not the memory for it.
    """
    pieces = [Piece(*item) for item in zip(range(len(rows)), [0] * len(rows), rows, map(list, places), strict=True)]
    with started(model, len(rows), sum(map(len, rows))) as context:
        return [np.array(found) for found in decode(context, pieces, vocabulary_size(model))]


def answers(model, prompts: list[list[int]], limit: int, told: Told = untold) -> list[Answer]:
    """Greedy answers of at most `limit` tokens to prompts of token ids.

    `model`: of `mapped`. `told`: how many are answered. Raises ForgeError (7) when there is not the memory for it.
    """
    found: list[Answer] = []
    for group in grouped(prompts, limit, cache_bytes(model)):
        before = len(found)
        found += answered(model, group, limit, lambda done, before=before: told(before + done, len(prompts)))
    return found


def cache_bytes(model) -> float:
    """Of the keys and values of a token, 16 bits each."""
    llama_cpp = llama.library()
    head = llama_cpp.llama_model_n_embd(model) / llama_cpp.llama_model_n_head(model)
    return 4 * llama_cpp.llama_model_n_layer(model) * llama_cpp.llama_model_n_head_kv(model) * head


def grouped(prompts: list[list[int]], limit: int, each: float) -> Iterator[list[list[int]]]:
    """Neighbours whose answers are at most ANSWERS_AT_ONCE and take CACHE_BYTES, `each` a token."""
    longest = max(map(len, prompts), default=0) + limit
    size = int(max(1, min(ANSWERS_AT_ONCE, CACHE_BYTES // (each * longest))))
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def answered(model, prompts: list[list[int]], limit: int, told: Callable[[int], None]) -> list[Answer]:
    """`told`: how many have ended, after every token."""
    llama_cpp = llama.library()
    vocabulary, size = llama_cpp.llama_model_get_vocab(model), vocabulary_size(model)
    found = [Answer([]) for _ in prompts]
    pieces = [Piece(number, 0, prompt, [len(prompt) - 1]) for number, prompt in enumerate(prompts)]
    with started(model, len(prompts), sum(len(prompt) + limit for prompt in prompts)) as context:
        while pieces:
            chosen = [int(scores[0].argmax()) for scores in decode(context, pieces, size)]
            done, pieces = pieces, []
            for piece, token in zip(done, chosen, strict=True):
                answer = found[piece.sequence]
                answer.stopped = llama_cpp.llama_vocab_is_eog(vocabulary, token)
                if answer.stopped:
                    continue
                answer.tokens.append(token)
                if len(answer.tokens) < limit:
                    pieces.append(Piece(piece.sequence, piece.begin + len(piece.tokens), [token], [0]))
            told(len(prompts) - len(pieces))
    return found


@contextlib.contextmanager
def started(model, sequences: int, tokens: int) -> Iterator:
    """llama.cpp's context for so many sequences, with room for so many tokens in all."""
    llama_cpp = llama.library()
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = tokens, tokens, min(tokens, 512)
    parameters.n_seq_max, parameters.kv_unified = sequences, True
    parameters.n_threads = parameters.n_threads_batch = os.cpu_count() or 1
    context = llama_cpp.llama_init_from_model(model, parameters)
    if not context:
        raise ForgeError(f"llama.cpp has no memory for {tokens} tokens", "close other programs", ENVIRONMENT)
    try:
        yield context
    finally:
        llama_cpp.llama_free(context)


def decode(context, pieces: list[Piece], vocabulary: int) -> list[list[np.ndarray]]:
    """Each piece's logits at its places, float32 [vocabulary] each: llama.cpp's own memory, until the next decoding."""
    llama_cpp = llama.library()
    count = sum(len(piece.tokens) for piece in pieces)
    batch = llama_cpp.llama_batch_init(count, 0, 1)
    try:
        wanted = fill(batch, pieces)
        if llama_cpp.llama_decode(context, batch) != 0:
            raise ForgeError(f"llama.cpp cannot run {count} tokens at once", "close other programs", ENVIRONMENT)
    finally:
        llama_cpp.llama_batch_free(batch)

    def at(place: int) -> np.ndarray:
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, place), (vocabulary,))

    return [[at(place) for place in places] for places in wanted]


def fill(batch, pieces: list[Piece]) -> list[list[int]]:
    """Put the pieces into a batch one after the other; for each where in it its places are."""
    wanted, place = [], 0
    for piece in pieces:
        wanted.append([place + chosen for chosen in piece.places])
        for position, token in enumerate(piece.tokens):
            batch.token[place], batch.pos[place] = token, piece.begin + position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, piece.sequence
            batch.logits[place] = position in piece.places
            place += 1
    batch.n_tokens = place
    return wanted
