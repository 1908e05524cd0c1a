"""The gate of the training set: every bad row is named, and no question is both taught and asked."""

import json
import tracemalloc
from array import array
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import validate_dataset
from forge import disk, models, preflight
from forge.errors import BAD_INPUT, ForgeError

KEPT_OUT = "training rows whose question is kept out"


def row(question: str, answer: str = "Good day", **more) -> dict:
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
        **more,
    }


def write(path: Path, *rows: dict | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def run(tmp_path, tiny_base, tiny_tokenizer, monkeypatch):
    """A run of the phase over dataset/, whose train and validation have two rows and one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "prepare", lambda: None)
    monkeypatch.setattr(models, "tokenizer", lambda base: tiny_tokenizer)
    monkeypatch.setattr(disk, "require", lambda run: None)
    monkeypatch.setattr(preflight, "examine", lambda *given: ([], []))  # test_preflight.py
    dataset = tmp_path / "dataset"
    write(dataset / "train.jsonl", row("What is wax?"), row("What is honey?"))
    write(dataset / "validation.jsonl", row("What is a hive?"))
    (dataset / "statistics.json").write_text('{"dropped_share": 0.25}', encoding="utf-8")
    thresholds = {"minimum_training_rows": 2, "maximum_duplicate_share": 0.0, "maximum_dropped_share": 0.5}
    said = []
    return SimpleNamespace(
        settings={"training": {"max_length": 64}, "data": {"thresholds": thresholds}},
        inputs={"dataset": {"settings": {"project": {"system_prompt": ""}}}},
        layout=SimpleNamespace(base=tiny_base, dataset=dataset),
        say=said.append,
        said=said,
    )


def values(run) -> dict:
    return {check["name"]: (check["value"], check["n"], check["passed"]) for check in work(run)}


def work(run) -> list[dict]:
    return validate_dataset.work(run)["checks"]


def refused(run) -> ForgeError:
    with pytest.raises(ForgeError) as caught:
        validate_dataset.work(run)
    assert caught.value.code == BAD_INPUT
    return caught.value


# -- the figures --------------------------------------------------------------------------------------------------


def test_a_good_set(run):
    found = work(run)
    assert {check["name"]: check["value"] for check in found} == {
        "training rows": 2,
        "validation rows": 1,
        "rows longer than training.max_length": 0,
        "rows without loss": 0,
        "rows whose end token carries no loss": 0,
        "rows with two start tokens": 0,
        KEPT_OUT: 0,
        "share of repeated rows": 0.0,
        "share of text in no row": 0.25,
    }
    assert all(check["passed"] for check in found)
    json.dumps(found)  # numpy's own numbers are no JSON values


def test_token_lengths_are_told_in_order(run):
    write(run.layout.dataset / "train.jsonl", *[row("What?", "a " * count) for count in (9, 3, 1, 7, 5)])
    work(run)
    base = 13  # tokens of the template, the question and the last space
    assert [line for line in run.said if line.startswith("  train ")] == [
        f"  train      tokens a row: p50 {base + 5}, p90 {base + 9}, p99 {base + 9}, longest {base + 9} of 64; "
        "carrying loss: 39%"
    ]


def test_repeated_rows_are_counted(run):
    write(run.layout.dataset / "train.jsonl", *[row("What is wax?")] * 3, row("What is honey?"))
    assert values(run)["share of repeated rows"] == (0.5, 4, False)


def test_an_empty_training_file_does_not_pass(run):
    write(run.layout.dataset / "train.jsonl")
    found = values(run)
    assert found["training rows"] == (0, None, False)
    assert found[KEPT_OUT] == (0, 0, True)
    assert found["share of repeated rows"] == (0.0, 0, True)


# -- questions that are kept out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["validation", "questions"])
def test_a_question_of_another_split_is_found(run, name):
    write(run.layout.dataset / f"{name}.jsonl", row("WHAT is  wax?"))
    assert values(run)[KEPT_OUT] == (1, 2, False)


def test_a_question_is_found_as_often_as_it_is_taught(run):
    train = [row("What is wax?", str(number)) for number in range(3)]
    write(run.layout.dataset / "train.jsonl", *train)
    write(run.layout.dataset / "validation.jsonl", row("What is wax?"), row("What is wax?", "Bees make it."))
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in ("Soft", "Hard"))
    pair = {"prompt": train[0]["prompt"], "chosen": chosen, "rejected": rejected}
    write(run.layout.dataset / "preference.jsonl", pair)
    write(run.layout.dataset / "kto.jsonl", row("What is wax?", label=True), row("What is heath?", label=False))
    assert values(run)[KEPT_OUT] == (5, 6, False)


@pytest.mark.parametrize("path", ["dataset/evaluation.jsonl", "scenarios/evaluation/set.jsonl"])
def test_an_evaluation_prompt_is_not_taught(run, path):
    write(Path(path), {"id": "e1", "prompt": "Who bakes?"}, {"id": "e2", "prompt": "what IS wax?"})
    assert values(run)[KEPT_OUT] == (1, 2, False)


def test_an_earlier_turn_of_an_evaluation_prompt_may_be_taught(run):
    turns = [row("What is wax?")["prompt"][0], {"role": "assistant", "content": "Soft"}, row("And then?")["prompt"][0]]
    write(Path("scenarios/evaluation/set.jsonl"), {"id": "e1", "prompt": turns})
    assert values(run)[KEPT_OUT] == (0, 2, True)


@pytest.mark.parametrize("path", ["dataset/evaluation.jsonl", "scenarios/evaluation/set.jsonl"])
def test_a_bad_line_of_an_evaluation_set_is_named(run, path):
    write(Path(path), {"id": "e1", "prompt": "Who bakes?"}, {"id": "e2"})
    assert refused(run).cause.endswith(f"{path}:2: prompt is neither a text nor a list of turns")


# -- rows that cannot be read -----------------------------------------------------------------------------------------

LONE = "\ud800"
ENCODE = "'utf-8' codec can't encode character '\\ud800'"
BAD = [
    (row(LONE), ENCODE),
    (row("Hi", f"Good {LONE}day"), ENCODE),
    (row("Hi", source=LONE), ENCODE),
    (row("Hi", more={"deep": [LONE]}), ENCODE),
    (row("Hi", **{LONE: 1}), ENCODE),
    (row("Hi", source=["a"]), "source is no text"),
    (row("Hi", source={}), "source is no text"),
    (row("Hi", source=None), "source is no text"),
    (row("Hi", id=7), "id is no text"),
    (row("Hi", origin=["a.md"]), "origin is no text"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("name", ["train", "validation", "kto"])
def test_a_bad_row_is_named(run, name, bad, reason):
    path = run.layout.dataset / f"{name}.jsonl"
    write(path, row("What is nectar?"), bad, row("What is clover?"))
    error = refused(run)
    assert error.cause.startswith(f"{path}:2: {reason}")
    assert error.remedy == "correct that line, or run make dataset"


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=range(len(BAD)))
def test_a_bad_row_of_a_single_file_is_named(tmp_path, bad, reason):
    path = tmp_path / "rows.jsonl"
    write(path, row("What is nectar?"), bad)
    with pytest.raises(ForgeError) as caught:
        validate_dataset.load(path)
    assert caught.value.cause.startswith(f"{path}:2: {reason}")


def test_texts_beyond_the_first_plane_are_good(run):
    write(run.layout.dataset / "train.jsonl", row("\U0001f41d?", source="records"), row("What is wax?", id="a"))
    assert values(run)["training rows"] == (2, None, True)  # json.dumps spells the bee as a surrogate pair


def test_a_row_that_the_template_refuses_is_named(run, tiny_tokenizer, monkeypatch):
    template = tiny_tokenizer.chat_template
    refusing = "{% for message in messages %}{% if 'wasp' in message['content'] %}{{ raise_exception('no wasps') }}"
    monkeypatch.setattr(tiny_tokenizer, "chat_template", refusing + "{% endif %}{% endfor %}" + template)
    path = run.layout.dataset / "train.jsonl"
    write(path, row("What is wax?"), row("What is honey?"), row("What is a wasp?"))
    error = refused(run)
    assert error.cause == f"{path}:3: the chat template cannot render a conversation: no wasps"
    assert error.remedy == "name another base, or a template for it in model.chat_template"


def test_lines_are_numbered_across_batches(run):
    path = run.layout.dataset / "train.jsonl"
    good = [row(f"What is {number}?") for number in range(validate_dataset.BATCH + 5)]
    write(path, *good, row(LONE))
    assert refused(run).cause.startswith(f"{path}:{validate_dataset.BATCH + 6}: ")


# -- memory -------------------------------------------------------------------------------------------------------


def test_numbers_are_sorted_where_they_lie():
    numbers = array("Q", [3, 2**64 - 1, 0, 3])
    ordered = validate_dataset.ascending(numbers)
    assert np.shares_memory(ordered, np.asarray(numbers))
    assert ordered.tolist() == [0, 3, 3, 2**64 - 1]
    assert validate_dataset.different(ordered).tolist() == [True, True, False, True]
    assert validate_dataset.different(ordered[:0]).tolist() == []


def test_shared_numbers():
    taught = [array("Q", [5, 2**64 - 1, 5, 1]), array("Q"), array("Q", [7, 5])]
    assert validate_dataset.shared(array("Q", [5, 2**64 - 1, 5, 8]), taught) == 4
    assert validate_dataset.shared(array("Q"), taught) == 0


def test_looking_for_shared_numbers_takes_no_memory_for_what_is_taught():
    taught = [array("Q", range(200_000, 0, -1))]  # 1.6 MB; a set of ints takes 14 MB, np.isin 8 MB
    tracemalloc.start()
    try:
        assert validate_dataset.shared(array("Q", range(0, 500, 5)), taught) == 99
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
