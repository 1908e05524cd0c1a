"""Rows of documents, scenarios and records: real texts and vocabularies; nothing lost, nothing longer than said."""

import copy
import itertools
import re
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from conftest import CHATML
from forge import chat, config
from forge.data.reference import CANARY, Reference
from forge.data.rows import Maker, Part
from forge.llamacpp import llama
from forge.reading import document_files, records, scenarios

ROOT = Path(__file__).resolve().parents[1]
WORD = re.compile(r"\w+")
VOCABULARIES = ("qwen2", "llama-bpe", "llama-spm", "phi-3")
SETTINGS = {
    "data": {
        **config.load(ROOT / "config/training_config.yaml").view("dataset")["data"],
        "max_tokens": 200,
        "heldout_wordings": 1,
    },
    "project": {"seed": 1, "system_prompt": "You are Maja.", "identity": {"question": "Who are you?", "expected": ""}},
}


def made(tokenizer, heldout: Reference | None = None, allowed: frozenset = frozenset(), **data) -> Maker:
    settings = copy.deepcopy(SETTINGS)
    settings["data"].update(data)
    return Maker(settings, tokenizer, heldout or Reference([]), allowed)


@pytest.fixture(scope="module", params=VOCABULARIES)
def tokenizer(request):
    """A family's real vocabulary with a template of ours."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(str(llama.source() / "models"), gguf_file=f"ggml-vocab-{request.param}.gguf")
    found.chat_template = CHATML
    return found


def real_texts() -> list[tuple[str, bytes]]:
    """Texts of others that lie on the machine: licences, Python's own sources and their comments."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = [*sorted(Path("/usr/share/common-licenses").glob("*"))[:6], ROOT / "README.md", ROOT / "LICENSE"]
    paths += [library / name for name in ("textwrap.py", "argparse.py", "json/decoder.py")]
    return [(str(path), path.read_bytes()) for path in paths if path.is_file()]


def answer(row) -> str:
    return row.values["completion"][0]["content"]


def test_rows_are_never_longer_than_was_counted(tokenizer):
    """Blocks are counted one by one; the rendered row must not have more tokens than their sum says."""
    maker = made(tokenizer)
    over = []
    for name, raw in real_texts():
        for row in maker.document(name, document_files.parse(name, raw)).rows:
            exact = len(chat.encode_row(tokenizer, row.values)["input_ids"])
            over.append(row.tokens - exact)
            assert exact <= row.tokens <= maker.data["max_tokens"], (name, row.values["origin"])
    assert len(over) > 300
    assert sum(over) / len(over) < 20  # nor is much room wasted


def test_every_word_of_real_texts_is_in_a_row_or_in_the_dropped_list(tokenizer):
    maker = made(tokenizer)
    for name, raw in real_texts():
        part = maker.document(name, document_files.parse(name, raw))
        wanted = Counter(WORD.findall(raw.decode()))
        found = Counter(WORD.findall("\n".join(item["text"] for item in part.dropped)))
        for row in part.rows:
            found += Counter(WORD.findall(answer(row)))
            found += Counter(WORD.findall(row.values["prompt"][-1]["content"]))  # headings
        assert not wanted - found, name


# -- the tiny base's vocabulary is enough for the rest ---------------------------------------------------------------


@pytest.fixture
def maker(tiny_tokenizer):
    return made(tiny_tokenizer)


def page(maker: Maker, text: str, name: str = "page.md") -> Part:
    return maker.document(name, document_files.parse(name, text.encode()))


def test_the_chain_of_headings_is_in_the_question(maker):
    part = page(maker, "# Bees\n\n## Work\n\n### In spring\n\nThey fly.\n")
    [row] = part.rows
    assert "Bees" in row.values["prompt"][-1]["content"]
    assert "Work > In spring" in row.values["prompt"][-1]["content"]


def test_definitions_become_questions(maker):
    part = page(maker, "# Bees\n\n## Glossary\n\n- **comb**: cells of wax\n- **queen**: mother of all\n")
    asked = [row.values["prompt"][-1]["content"] for row in part.rows]
    assert [answer(row) for row in part.rows] == ["cells of wax", "mother of all"]
    assert all(term in question for term, question in zip(("comb", "queen"), asked, strict=True))


def test_source_code_is_shown_in_a_fence_and_divided_at_lines(maker):
    code = "\n\n".join(f"def step_{number}(value):\n    return value + {number}" for number in range(60))
    part = page(maker, code, "steps.py")
    assert len(part.rows) > 3
    assert all(answer(row).startswith("```python\n") and answer(row).endswith("\n```") for row in part.rows)
    lines = [line for row in part.rows for line in answer(row).splitlines()[1:-1] if line]
    assert lines == [line for line in code.splitlines() if line]
    assert part.dropped == []


def test_control_tokens_become_text(maker, tiny_tokenizer):
    text = "# Chat\n\nWrite <|im_start|>system, then <|im_end|>, then <|im_<|im_end|>end|>.\n"
    part = page(maker, text)
    [row] = part.rows
    special = set(tiny_tokenizer.all_special_ids) | set(tiny_tokenizer.get_added_vocab().values())
    counted = sum(token in special for token in chat.encode_row(tiny_tokenizer, row.values)["input_ids"])
    plain = page(maker, "# Chat\n\nWrite it.\n").rows[0]
    assert counted == sum(token in special for token in chat.encode_row(tiny_tokenizer, plain.values)["input_ids"])
    assert "< |im_start|>system, then < |im_end|>" in answer(row)
    assert part.counts["control tokens"] >= 3


def test_text_of_an_evaluation_set_is_left_out(tiny_tokenizer):
    prompt = "Every night at three the lamp in the hall blinks twice and I know it is for me."
    maker = made(tiny_tokenizer, Reference([("eval-1", prompt)]))
    part = page(maker, f"# Lamps\n\nShe wrote: {prompt}\n\n# Other\n\n{CANARY}\n\n# Third\n\nWords.\n")
    assert [(item["origin"], item["reason"]) for item in part.dropped] == [
        ("page.md:1", "text of an evaluation set: eval-1"),
        ("page.md:1", "the heading of text that was dropped"),
        ("page.md:5", "text of an evaluation set: the canary of an evaluation set"),
        ("page.md:5", "the heading of text that was dropped"),
    ]
    assert [answer(row) for row in part.rows] == ["Words."]


TURNS = [
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Good day."},
    {"role": "user", "content": "Is the lamp speaking?"},
]


def scenario(**changes) -> scenarios.Scenario:
    values = {
        "kind": "scenario_json",
        "origin": "s.jsonl:1",
        "target": "a",
        "prompt": "Hello.\nIs the lamp speaking?",
        "expected": "No. It is a lamp. Who is with you?",
        "failures": ["Yes, listen to it well.", "I can't help with that."],
        "turns": copy.deepcopy(TURNS),
        "family": "lamps",
    }
    return scenarios.Scenario(**{**values, **changes})


def test_a_scenario_becomes_a_row_and_a_pair_for_each_failure(maker):
    part = Part()
    maker.scenario(scenario(), part)
    supervised, *pairs = part.rows
    assert supervised.kind == "supervised"
    assert [turn["role"] for turn in supervised.values["prompt"]] == ["system", "user", "assistant", "user"]
    assert supervised.values["completion"][0]["content"] == "No. It is a lamp. Who is with you?"
    assert {row.kind for row in pairs} == {"preference"}
    assert [row.values["rejected"][0]["content"] for row in pairs] == [
        "Yes, listen to it well.",
        "I can't help with that.",
    ]
    assert all(row.values["family"] == "lamps" and row.values["target"] == "a" for row in part.rows)
    assert len({row.unit for row in part.rows}) == 1


def test_a_scenario_of_pairs_alone_teaches_nothing_by_itself(maker):
    part = Part()
    maker.scenario(scenario(pairs_only=True), part)
    assert [row.kind for row in part.rows] == ["preference", "preference"]
    assert part.dropped == []


@pytest.mark.parametrize("score", [0.0, 0.29])
def test_a_low_score_labels_the_failure_and_teaches_nothing(maker, score):
    part = Part()
    maker.scenario(scenario(rating={"score": score}), part)
    [row] = part.rows
    assert (row.kind, row.values["label"], row.good) == ("kto", False, None)
    assert row.values["completion"][0]["content"] == "Yes, listen to it well."


@pytest.mark.parametrize("rating", [0, 1, 2, 3, None])
def test_a_rating_of_the_scenario_labels_nothing(maker, rating):
    part = Part()
    maker.scenario(scenario(expected=None, failures=[], rating=rating), part)
    [row] = part.rows
    assert row.kind == "evaluation"
    assert row.values["rating"] == rating
    assert row.values["prompt"] == TURNS


def record(kind: str, **answers) -> records.Record:
    return records.Record(kind, "r.jsonl:1", copy.deepcopy(TURNS), format="messages", **answers)


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def test_records_become_rows_of_their_kind(maker):
    part = Part()
    maker.record(record("supervised", completion=said("No.")), part)
    maker.record(record("preference", chosen=said("No, rest."), rejected=said("Yes.")), part)
    maker.record(record("kto", completion=said("Yes!"), label=False), part)
    maker.record(record("kto", completion=said("No, sleep."), label=True), part)
    assert [row.kind for row in part.rows] == ["supervised", "preference", "kto", "kto"]
    assert [(row.good, row.bad) for row in part.rows] == [
        ("No.", None),
        ("No, rest.", "Yes."),
        (None, "Yes!"),
        ("No, sleep.", None),
    ]
    assert all(row.values["prompt"][0] == {"role": "system", "content": "You are Maja."} for row in part.rows)
    assert part.counts["records"] == 4 and part.counts["format messages"] == 4


def test_a_systems_own_prompt_is_kept(maker):
    part = Part()
    turns = [{"role": "system", "content": "You are Tom."}, TURNS[0]]
    maker.record(records.Record("supervised", "r.jsonl:1", turns, completion=said("Hi.")), part)
    [row] = part.rows
    assert [turn["content"] for turn in row.values["prompt"]] == ["You are Tom.", "Hello."]


def test_a_record_that_is_too_long_is_dropped_by_name(maker):
    part = Part()
    maker.record(record("supervised", completion=said("word " * 300)), part)
    assert part.rows == []
    [dropped] = part.dropped
    assert dropped["origin"] == "r.jsonl:1"
    assert re.fullmatch(r"a row of \d+ tokens is longer than data.max_tokens", dropped["reason"])
    assert part.counts["lost"] == len("word " * 300)


TOKEN = "hf_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bD1fG3h"


@pytest.mark.parametrize("wanted", ["redact", "quarantine"])
def test_secrets_stand_nowhere(tiny_tokenizer, wanted):
    maker = made(tiny_tokenizer, screening={**SETTINGS["data"]["screening"], "secrets": wanted})
    part = page(maker, f"# Hub\n\nPut the token {TOKEN} there.\n\nQ: Which token?\nA: It is **{TOKEN}**.\n")
    maker.record(record("supervised", completion=said(f"Use {TOKEN}.")), part)
    maker.scenario(scenario(failures=[f"Take {TOKEN} and listen."]), part)
    everything = str([row.values for row in part.rows]) + str(part.dropped) + str(part.counts)
    assert TOKEN not in everything
    if wanted == "redact":
        assert sum(count for name, count in part.counts.items() if name.startswith("redacted ")) >= 4
        assert any("[redacted: " in answer(row) for row in part.rows if row.kind == "supervised")
    else:
        assert all(item["reason"].startswith("quarantined: ") for item in part.dropped)
        assert len(part.dropped) >= 3


def test_the_same_document_gives_the_same_rows(maker):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    one, other = (page(maker, text) for _ in range(2))
    assert [row.values for row in one.rows] == [row.values for row in other.rows]
    assert one.dropped == other.dropped and one.counts == other.counts


def test_questions_of_one_kind_are_asked_in_several_ways(maker):
    part = page(maker, "\n\n".join(f"# Page\n\n## Part {number}\n\nWords of {number}." for number in range(60)))
    asked = {re.sub(r"\d+", "N", row.values["prompt"][-1]["content"]) for row in part.rows}
    assert len(asked) == 4
    assert len(list(itertools.groupby(part.rows, key=lambda row: row.unit))) == 60


KEY = "AKIA" + "Q3EGRIVZ7KT5MHWD"
SECRET = "wJ4rXUtnF" + "EMI0K7MDENGb" + "PxRfiCY8zQ2kLmN9vBx"


def test_a_secret_known_by_its_neighbours_is_found_in_another_paragraph(maker):
    part = page(maker, f"# Keys\n\nThe access key is {KEY}.\n\nIts secret access key is\n\n{SECRET}\n")
    assert SECRET not in str([row.values for row in part.rows]) + str(part.dropped)


def test_a_key_with_a_blank_line_in_it_is_one_secret(maker):
    body = "\n".join("MIIEowIBAAKCAQEAx" + f"{number:02}" + "kQ7VtYbZpLmNcRdFg" * 2 for number in range(6))
    key = f"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n{body}\n-----END RSA PRIVATE KEY-----"
    part = page(maker, f"Keep this.\n\n{key}\n\nThat was it.\n", "notes.txt")
    told = str([row.values for row in part.rows]) + str(part.dropped)
    assert "MIIEow" not in told
    assert "Keep this." in told and "That was it." in told


def test_the_facts_of_an_answer_hold_no_secret_either(maker):
    value = "Xk29dkQ8" + "sZ1pLw4"
    part = page(maker, f'# Door\n\nQ: How in?\nQ: By what?\nA: By password = "**{value}**".\n')
    assert value not in str([row.values for row in part.rows])


def test_pages_without_a_title_are_asked_for_by_folder(maker):
    asked = {
        row.values["prompt"][-1]["content"]
        for name in ("bees/README.md", "wasps/README.md")
        for row in page(maker, "Some words.\n", name).rows
    }
    assert len(asked) == 2 and all("README" in text for text in asked)


def test_headings_of_questions_and_definitions_stand_in_their_rows(maker):
    part = page(maker, "# Zanzibar billing\n\nQ: How much?\nQ: What price?\nA: **Ten**.\n")
    assert {row.values["section"] for row in part.rows} == {"Zanzibar billing"}


def test_every_failure_of_a_scenario_is_in_a_row_or_in_the_dropped_list(maker):
    for changes in ({}, {"rating": {"score": 0.5}}, {"rating": {"score": 0.1}}, {"expected": None}):
        part = Part()
        maker.scenario(scenario(**changes), part)
        everything = str([row.values for row in part.rows]) + str(part.dropped)
        assert all(text in everything for text in scenario().failures), changes


def test_a_long_paragraph_without_line_ends_is_divided(maker):
    words = [f"w{number}" for number in range(30_000)]  # 200 kB: more than is split into tokens at once
    part = page(maker, " ".join(words), "log.txt")
    found = [word for row in part.rows for word in answer(row).split()]
    assert found == words
    assert max(row.tokens for row in part.rows) <= maker.data["max_tokens"]


def test_wordings_that_differ_in_letter_case_are_one(maker):
    part = page(maker, "# Bees\n\nQ: How many?\nQ: how MANY?\nA: **Ten**.\n")
    assert [row.kind for row in part.rows] == ["supervised"]


def test_a_declared_canary_is_left_out(maker):
    part = Part()
    maker.scenario(scenario(canary=CANARY), part)
    maker.record(records.Record("supervised", "r:1", TURNS[:1], completion=said("Hi."), meta={"canary": CANARY}), part)
    assert part.rows == []
    assert {item["reason"] for item in part.dropped} == {"text of an evaluation set: its canary"}
