"""The fate of every row: which split it goes to, or why it is dropped."""

import itertools
import json
from pathlib import Path

import pytest
from conftest import read_rows
from forge import files
from forge.data.package import Package, encode
from forge.data.rows import Part, Row

SETTINGS = {
    "data": {"validation_share": 0.0, "near_duplicates": 0.7, "kto_balance": None},
    "project": {"seed": 1, "identity": {"question": "Who are you?"}},
}
NUMBERS = itertools.count()


def words(topic: str, count: int = 40) -> str:
    """Text that shares no word with that of another topic."""
    return " ".join(f"{topic}{number}" for number in range(count))


def row(question: str, answer: str, *, unit: str | None = None, kind: str = "supervised", **more) -> Row:
    values = {
        "id": files.sha256_json([question, answer])[:16],
        "origin": more.pop("origin", f"file:{next(NUMBERS)}"),
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }
    return Row(kind, values, unit or question, 10, **{"alike": answer, "good": answer, **more})


def pair(question: str, chosen: str, rejected: str, **more) -> Row:
    made = row(question, chosen, kind="preference", bad=rejected, alike=question, **more)
    made.values.pop("completion")
    made.values["chosen"] = [{"role": "assistant", "content": chosen}]
    made.values["rejected"] = [{"role": "assistant", "content": rejected}]
    return made


def labelled(question: str, answer: str, label: bool, **more) -> Row:
    made = row(question, answer, kind="kto", alike=question, **more)
    made.values["label"] = label
    made.good, made.bad = (answer, None) if label else (None, answer)
    return made


def scenario(prompt: str, **more) -> Row:
    made = row(prompt, "", kind="evaluation", alike=prompt, **more)
    made.good = None
    made.values["prompt"] = prompt
    return made


def packed(folder: Path, *rows: Row, **data) -> dict[str, list[dict]]:
    """Files that come of the rows, by name; `data` are settings."""
    folder.mkdir(exist_ok=True)
    settings = {**SETTINGS, "data": {**SETTINGS["data"], **data}}
    package = Package(folder, settings)
    half = len(rows) // 2
    for part in (rows[:half], rows[half:]):
        package.add(encode(Part(rows=list(part)), 1))
    package.assign()
    package.write()
    assert {path.suffix for path in folder.iterdir()} <= {".jsonl"}  # nothing else is left
    return {path.stem: read_rows(path) for path in folder.iterdir()}


def questions(rows: list[dict]) -> list[str]:
    return [item["prompt"] if isinstance(item["prompt"], str) else item["prompt"][-1]["content"] for item in rows]


def reasons(found: dict) -> list[tuple[str, str]]:
    return [(item["origin"], item["reason"]) for item in found.get("dropped", [])]


def test_rows_keep_their_order_and_their_bytes(tmp_path):
    made = [row(f"Question {number}?", words(f"a{number}x")) for number in range(20)]
    found = packed(tmp_path / "out", *made)
    [moved] = found["validation"]  # a set without validation gives up one row
    assert found["train"] == [item.values for item in made if item.values != moved]
    assert set(found) == {"train", "validation"}


def test_of_equal_rows_the_first_stays(tmp_path):
    found = packed(
        tmp_path / "out",
        row("One?", words("a"), origin="first:1"),
        row("Two?", words("b")),
        row("One?", words("a"), origin="second:1", unit="elsewhere"),
    )
    assert reasons(found) == [("second:1", "the same row as first:1")]
    assert found["dropped"][0]["text"] == words("a")


def test_a_group_of_near_duplicates_stays_on_one_side(tmp_path):
    """40 pairs of almost equal texts, each in a unit of its own: never one here and one there."""
    made = []
    for number in range(40):
        text = words(f"t{number}x", 60)
        made += [row(f"A {number}?", text), row(f"B {number}?", text + " and more")]
    found = packed(tmp_path / "out", *made, validation_share=0.5)
    sides = {name: {question.split()[1] for question in questions(found[name])} for name in ("train", "validation")}
    assert not sides["train"] & sides["validation"]
    assert len(found["train"]) + len(found["validation"]) == 80
    assert 10 <= len(sides["validation"]) <= 30


def test_a_unit_stays_on_one_side(tmp_path):
    made = [
        row(f"Part {part} of {unit}?", words(f"u{unit}p{part}x"), unit=f"unit {unit}")
        for unit in range(30)
        for part in range(3)
    ]
    found = packed(tmp_path / "out", *made, validation_share=0.4)
    units = {name: {q.split()[-1] for q in questions(found[name])} for name in ("train", "validation")}
    assert not units["train"] & units["validation"]
    assert 3 <= len(units["validation"]) <= 25


def test_splits_do_not_depend_on_the_order_of_files(tmp_path):
    made = [row(f"Question {number}?", words(f"a{number // 2}x") + f" {number}") for number in range(40)]
    one = packed(tmp_path / "one", *made, validation_share=0.3)
    other = packed(tmp_path / "other", *reversed(made), validation_share=0.3)
    for name in ("train", "validation"):
        assert sorted(questions(one[name])) == sorted(questions(other[name]))


def test_what_must_be_trained_takes_its_near_duplicates_along(tmp_path):
    made = [row(f"Fact {number}?", words(f"a{number}x"), trained=True) for number in range(10)]
    made += [row(f"Page {number}?", words(f"a{number}x") + " more") for number in range(10)]
    made += [row("Other?", words("other"))]
    found = packed(tmp_path / "out", *made, validation_share=0.99)
    assert len(found["train"]) == 20
    assert questions(found["validation"]) == ["Other?"]


def test_an_answer_taught_and_warned_of_is_a_conflict(tmp_path):
    found = packed(
        tmp_path / "out",
        row("Am I king?", words("yes"), origin="a:1"),
        row("Something?", words("b")),
        row("Else?", words("c")),
        pair("Am I king?", words("no"), words("yes"), origin="b:1"),
    )
    assert sorted(reasons(found)) == [
        ("a:1", "its answer is taught here and warned of at b:1"),
        ("b:1", "its answer is taught here and warned of at a:1"),
    ]
    assert "preference" not in found


def test_swapped_pairs_and_contrary_labels_are_conflicts(tmp_path):
    found = packed(
        tmp_path / "out",
        pair("One?", words("a"), words("b"), origin="a:1"),
        pair("One?", words("b"), words("a"), origin="a:2"),
        labelled("Two?", words("c"), True, origin="a:3"),
        labelled("Two?", words("c"), False, origin="a:4"),
        labelled("Three?", words("d"), False, origin="a:5"),
        row("Four?", words("e")),
        row("Five?", words("f")),
    )
    assert sorted(origin for origin, reason in reasons(found) if "warned of" in reason) == ["a:1", "a:2", "a:3", "a:4"]
    assert questions(found["kto"]) == ["Three?"]


def test_training_is_kept_free_of_what_is_evaluated_on(tmp_path):
    prompt = words("lamp", 30)
    found = packed(
        tmp_path / "out",
        scenario(prompt, origin="db#1"),
        row(prompt + " really", words("a"), alike=prompt + " really", origin="a:1"),
        pair(prompt.upper(), words("b"), words("c"), origin="a:2"),
        row("Who?", words("d")),
        row("What?", words("e")),
    )
    assert dict(reasons(found)) == {
        "a:1": "almost the same as db#1, which is kept to evaluate on",
        "a:2": "almost the same as db#1, which is kept to evaluate on",
    }
    assert questions(found["evaluation"]) == [prompt]


def test_sets_of_the_project_are_looked_at_and_not_written(tmp_path):
    prompt = words("lamp", 30)
    reference = row("", "", kind="reference", alike=prompt, origin="set-1")
    found = packed(
        tmp_path / "out",
        reference,
        row(prompt, words("a"), alike=prompt, origin="a:1"),
        row("Who?", words("d")),
        row("What?", words("e")),
    )
    assert reasons(found) == [("a:1", "almost the same as set-1, which is kept to evaluate on")]
    assert set(found) == {"train", "validation", "dropped"}


def test_equal_scenarios_are_named_as_such(tmp_path):
    found = packed(
        tmp_path / "out",
        scenario(words("x"), origin="db#1"),
        scenario(words("x"), origin="db#2"),
        row("A?", words("a")),
        row("B?", words("b")),
    )
    assert reasons(found) == [("db#2", "the same scenario as db#1")]


def test_no_question_stands_on_both_sides(tmp_path):
    held = row("When is it?", words("a"), kind="questions", alike=None, origin="a:1")
    found = packed(
        tmp_path / "out",
        held,
        row("when is  IT?", words("b"), origin="a:2", trained=True),
        row("Other?", words("c")),
        row("Another?", words("d")),
    )
    assert reasons(found) == [("a:2", "its question is kept out of training")]
    assert questions(found["questions"]) == ["When is it?"]


def test_pairs_of_a_validated_conversation_are_not_trained(tmp_path):
    made = []
    for number in range(30):
        unit, question = f"scenario {number}", f"{words(f'q{number}x', 12)}?"
        made.append(row(question, words(f"g{number}x"), unit=unit, alike=question))
        made.append(pair(question, words(f"g{number}x"), words(f"b{number}x"), unit=unit))
    found = packed(tmp_path / "out", *made, validation_share=0.3)
    assert set(questions(found["preference"])) == set(questions(found["train"]))
    assert not set(questions(found["preference"])) & set(questions(found["validation"]))
    assert len(found["validation"]) + len(found["train"]) == 30


@pytest.mark.parametrize(("most", "kept"), [(None, (30, 5)), (2, (10, 5)), (1, (5, 5))])
def test_labelled_rows_are_balanced_and_take_turns(tmp_path, most, kept):
    made = [labelled(f"{words(f'p{number}x', 12)}?", words(f"a{number}x"), number < 30) for number in range(35)]
    made += [row(f"Other {number}?", words(f"o{number}x")) for number in range(2)]
    found = packed(tmp_path / "out", *made, kto_balance=most)
    labels = [item["label"] for item in found["kto"]]
    assert (labels.count(True), labels.count(False)) == kept
    gaps = [len(list(group)) for value, group in itertools.groupby(labels) if value]
    assert max(gaps) <= -(-kept[0] // kept[1]) + 1  # evenly spread
    assert len(reasons(found)) == 35 - sum(kept)
    assert {reason for _, reason in reasons(found)} <= {"more rows of its label than data.kto_balance allows"}


def test_the_same_rows_give_the_same_bytes(tmp_path):
    made = [row(f"Question {number}?", words(f"a{number % 7}x")) for number in range(30)]
    made += [labelled(f"{words(f'p{number}x', 12)}?", words(f"l{number}x"), bool(number % 3)) for number in range(9)]
    for name in ("one", "other"):
        packed(tmp_path / name, *made, validation_share=0.3)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()
        assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_many_pages_that_ask_the_same_are_trained_together(tmp_path):
    """1 of 60 files named alike in validation would else take all others out of training."""
    made = [row("What does README say?", words(f"a{number}x"), unit=f"file {number}") for number in range(60)]
    made += [row(f"Other {number}?", words(f"o{number}x")) for number in range(60)]
    found = packed(tmp_path / "out", *made, validation_share=0.3)
    assert questions(found["train"]).count("What does README say?") == 60
    assert 5 < len(found["validation"]) < 35
    assert "dropped" not in found


def test_a_tiny_set_gives_up_a_whole_group(tmp_path):
    text = words("a")
    made = [row(f"Part {number}?", text, unit="one") for number in range(3)]
    made += [row(f"Other {number}?", words(f"o{number}x")) for number in range(2)]
    found = packed(tmp_path / "out", *made)
    assert len(found["validation"]) == 1
    assert questions(found["validation"])[0].startswith("Other")


def test_a_single_section_gives_up_a_part_that_no_other_repeats(tmp_path):
    made = [row(f"Part {number}?", words(f"p{number}x"), unit="one") for number in range(4)]
    made.append(row("Part 9?", words("p3x") + " more", unit="one"))
    found = packed(tmp_path / "out", *made)
    assert len(found["validation"]) == 1
    assert questions(found["validation"])[0] not in ("Part 3?", "Part 9?")


def test_conversations_that_end_alike_are_not_the_same(tmp_path):
    def chat(first: str, answer: str) -> Row:
        made = row("Go on.", answer, unit=first)
        turns = [{"role": "user", "content": first}, {"role": "assistant", "content": "Hm."}]
        made.values["prompt"] = [*turns, *made.values["prompt"]]
        made.values["id"] = files.sha256_json([first, answer])[:16]
        return made

    found = packed(
        tmp_path / "out", *(chat(words(f"f{n}x", 12), words(f"a{n}x")) for n in range(30)), validation_share=0.3
    )
    assert len(found["train"]) + len(found["validation"]) == 30
    assert len(found["validation"]) > 2


def test_a_reference_of_few_words_is_not_asked_in_training(tmp_path):
    reference = row("", "", kind="reference", alike="Do bees dance?", origin="set-1")
    reference.values["prompt"] = "Do bees dance?"
    found = packed(
        tmp_path / "out",
        reference,
        *(row(f"{n}?", words(f"o{n}x")) for n in range(3)),
        row("do BEES dance?", words("d")),
    )
    assert "do BEES dance?" not in questions(found["train"] + found["validation"])
