"""Answers of a model: how many are written at once, and that it changes none of them."""

from types import SimpleNamespace

import pytest
from forge import compare, models

LLAMA_8B = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}


@pytest.mark.parametrize(
    ("shape", "width", "tokens", "wanted"),
    [
        (LLAMA_8B, 2, 320, 23),
        (LLAMA_8B, 4, 320, 11),
        ({**LLAMA_8B, "head_dim": 256}, 2, 320, 11),
        ({**LLAMA_8B, "num_key_value_heads": None}, 2, 320, 5),
        (LLAMA_8B, 2, 100_000, 1),
        ({**LLAMA_8B, "num_hidden_layers": 1}, 2, 64, compare.ANSWERS_AT_ONCE),
    ],
)
def test_as_many_answers_at_once_as_their_cache_allows(shape, width, tokens, wanted):
    assert compare.at_once(SimpleNamespace(**shape), width, tokens) == wanted


def test_one_at_a_time_gives_the_same_answers(tiny_base, tiny_tokenizer, monkeypatch):
    model = models.causal_lm(tiny_base, "float32", where="cpu")
    asked = [[{"role": "user", "content": text}] for text in ("Who?", "What is honey made from?", "A " * 30)]
    together = compare.answers(model, tiny_tokenizer, asked, 6)
    monkeypatch.setattr(compare, "CACHE_BYTES", 1)
    assert compare.answers(model, tiny_tokenizer, asked, 6) == together
    assert [answer["tokens"] for answer in together] == [6, 6, 6]
