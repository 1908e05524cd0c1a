"""Many sequences through a GGUF at once: the same answers as one after the other, in as little memory as is said."""

import pytest
from forge import questions
from forge.llamacpp import decoding, llama

ASKED = [[{"role": "user", "content": text}] for text in ("Who?", "What is honey made from?", "A " * 30)]
LIMIT = 6


@pytest.fixture(scope="module")
def prompts(tiny_gguf):
    model = llama.load(tiny_gguf, context=64, vocab_only=True)
    write = llama.prompt_writer(model)
    found = [model.tokenize(write(turns).encode("utf-8"), add_bos=False, special=True) for turns in ASKED]
    model.close()
    return found


def answered(path, prompts):
    with decoding.mapped(path) as model:
        return decoding.answers(model, prompts, LIMIT)


def test_answers_are_those_of_llama_cpp_python(tiny_gguf):
    model = llama.load(tiny_gguf, context=256)
    alone = [model.create_chat_completion(turns, max_tokens=LIMIT, temperature=0.0)["choices"][0] for turns in ASKED]
    model.close()
    found = questions.ask_gguf(tiny_gguf, ASKED, LIMIT)
    assert [answer["answer"] for answer in found] == [choice["message"]["content"].strip() for choice in alone]
    assert [answer["stopped"] for answer in found] == [choice["finish_reason"] == "stop" for choice in alone]


def test_one_at_a_time_gives_the_same_answers(tiny_gguf, prompts, monkeypatch):
    together = answered(tiny_gguf, prompts)
    monkeypatch.setattr(decoding, "CACHE_BYTES", 1)
    assert answered(tiny_gguf, prompts) == together
    assert [len(answer.tokens) for answer in together] == [LIMIT] * 3


def test_an_answer_ends_before_an_end_token_and_the_others_go_on(tiny_gguf, prompts, monkeypatch):
    before = answered(tiny_gguf, prompts)
    end = before[0].tokens[2]
    monkeypatch.setattr(llama.library(), "llama_vocab_is_eog", lambda vocabulary, token: token == end)
    for old, new in zip(before, answered(tiny_gguf, prompts), strict=True):
        kept = old.tokens[: old.tokens.index(end)] if end in old.tokens else old.tokens
        assert (new.tokens, new.stopped) == (kept, end in old.tokens)


@pytest.mark.parametrize(("each", "sizes"), [(1, [32, 8]), (decoding.CACHE_BYTES / 100, [10] * 4), (1e9, [1] * 40)])
def test_as_many_answers_at_once_as_their_cache_allows(each, sizes):
    groups = decoding.grouped([[1, 2, 3, 4]] * 40, 6, each)
    assert [len(group) for group in groups] == sizes
