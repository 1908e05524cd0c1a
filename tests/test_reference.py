"""Evaluation sets stay out of training data."""

import json
from pathlib import Path

import pytest
from forge.data import reference
from forge.errors import BAD_INPUT, ForgeError

ROOT = Path(__file__).resolve().parents[1]
LONG = (
    "Every night at three the lamp in the hall blinks twice, and since Tuesday I know that it blinks for me, so I "
    "have begun to write the times down in a green book."
)
SHORT = "The lamp in our hall knows what I think of it."


@pytest.fixture
def sets() -> reference.Reference:
    return reference.Reference([("long", LONG), ("short", SHORT), ("tiny", "Who are you?")])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (LONG, "long"),
        (f"Before. {LONG.upper()} After.", "long"),
        (LONG.replace(",", "").replace(" ", "\n"), "long"),
        (" ".join(LONG.split()[5:18]), "long"),  # 13 words of the middle
        (" ".join(LONG.split()[5:17]), None),  # 12
        (f"He wrote: {SHORT}", "short"),
        (SHORT.removesuffix("of it."), None),
        ("Who are you?", None),  # too short to belong to anybody
        ("A page about lamps in halls.", None),
        ("", None),
        (f"... {reference.CANARY} ...", "the canary of an evaluation set"),
    ],
)
def test_what_is_found(sets, text, name):
    assert sets.holds(text) == name


def test_words_are_whole(sets):
    assert sets.holds(" ".join("x" + word for word in LONG.split())) is None


def test_no_sets_no_hits():
    assert reference.Reference([]).holds(LONG) is None


def test_prompts_of_a_folder(tmp_path):
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    for name, rows in {"b": [{"id": "b1", "prompt": "text"}], "a": [{"id": "a1", "prompt": turns}]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert reference.prompts_of(tmp_path) == [("a1", "one\nthree"), ("b1", "text")]
    assert reference.prompts_of(tmp_path / "none") == []
    assert list(reference.prompts_in(tmp_path / "none.jsonl")) == []


def test_blank_lines_are_no_prompts(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\n{"id": "a1", "prompt": "text"}\r\n  \n\r\n{"id": "a2", "prompt": "more"}')
    assert reference.prompts_of(tmp_path) == [("a1", "text"), ("a2", "more")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"[]", "the line is no object"),
        (b'"text"', "the line is no object"),
        (b"{}", "prompt is neither a text nor a list of turns"),
        (b'{"id": "a", "prompt": null}', "prompt is neither a text nor a list of turns"),
        (b'{"id": "a", "prompt": ["text"]}', "prompt is neither a text nor a list of turns"),
        (b'{"id": "a", "prompt": []}', "prompt has no turn of the user"),
        (b'{"id": "a", "prompt": [{"role": "system", "content": "x"}]}', "prompt has no turn of the user"),
        (b'{"id": "a", "prompt": [{"role": "user"}]}', "prompt is no text"),
        (b'{"prompt": "text"}', "id is no text"),
        (b'{"id": 7, "prompt": "text"}', "id is no text"),
        (b'{"id": "a", "prompt": "a", "prompt": "b"}', "a key stands twice"),
        (b'{"id": "a", "prompt": "\\ud800"}', "'utf-8' codec can't encode"),
        (b'{"id": "a", "prompt": "caf\xe9"}', "'utf-8' codec can't decode"),
        (b"[" * 100_000, ""),
    ],
    ids=lambda value: value[:60].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_a_line_that_is_no_prompt_is_named(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"id": "a1", "prompt": "text"}\n\n' + line + b"\n")
    with pytest.raises(ForgeError) as caught:
        reference.prompts_of(tmp_path)
    assert caught.value.cause.startswith(f"{path}:3: {reason}")
    assert caught.value.remedy == 'write {"id": ..., "prompt": ...} there, or remove that line'
    assert caught.value.code == BAD_INPUT


def test_prompts_are_read_one_after_the_other(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a1", "prompt": "text"}\n{\n', encoding="utf-8")
    assert next(reference.prompts_in(path)) == ("a1", "text")  # before the second line is looked at


def test_the_project_s_own_sets_can_be_read():
    prompts = reference.prompts_of(ROOT / "scenarios/evaluation")
    assert len(prompts) > 700
    assert all(text.strip() for _, text in prompts)
