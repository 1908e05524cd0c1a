"""Records to train on, whatever stands in their files: turns that can be trained, or what is wrong, with its place."""

import json
from pathlib import Path

import harm
import pytest
from forge.errors import ForgeError
from forge.reading import record_files, records
from forge.reading.records import Rejected
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.timeout(600 + 60 * harm.RUNS)
ASKED, SAID, OTHER = "How many queens live in a hive?", "One queen lives in a hive.", "Two queens live in a hive."
BRIEF = {"role": "system", "content": "Be brief."}
GOOD = json.dumps({"prompt": "a", "completion": "b"}).encode()


def turns(*texts: str, said: str = "role", text: str = "content", names=("user", "assistant")) -> list[dict]:
    return [{said: names[place % 2], text: content} for place, content in enumerate(texts)]


TEXT = st.sampled_from([ASKED, SAID, "", " ", "TODO", "a\0b", "\ud800", "Human: a\nAssistant: b", "caf\u00e9"])
SCALAR = st.one_of(TEXT, st.none(), st.booleans(), st.integers(-2, 2), st.floats())
ROLE = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", "nobody", 5])
TURN = st.one_of(
    SCALAR,
    st.fixed_dictionaries({"role": ROLE, "content": SCALAR}),
    st.fixed_dictionaries({"from": ROLE, "value": TEXT}),
)
VALUE = st.one_of(SCALAR, st.lists(TURN, max_size=5), st.dictionaries(st.sampled_from(["a", "role"]), SCALAR))
VALID = [
    {"messages": [BRIEF, *turns(ASKED, SAID)]},
    {"conversations": turns(ASKED, SAID, said="from", text="value", names=("human", "gpt"))},
    {"instruction": ASKED, "input": "", "output": SAID},
    {"prompt": ASKED, "completion": SAID},
    {"prompt": ASKED, "chosen": SAID, "rejected": OTHER},
    {"chosen": turns(ASKED, SAID), "rejected": turns(ASKED, OTHER)},
    {"prompt": ASKED, "completion": SAID, "label": True},
    {"text": f"Human: {ASKED}\nAssistant: {SAID}"},
]
KEYS = sorted({"system", "metadata", "score", "question"}.union(*VALID))
CHANGED = st.dictionaries(st.sampled_from(KEYS), VALUE, max_size=2)
ROWS_OF_ONE_FORMAT = st.builds(
    lambda row, changes: [
        row,
        *({**row, **{key: value for key, value in new.items() if key in row}} for new in changes),
    ],
    st.sampled_from(VALID),
    st.lists(CHANGED, max_size=5),
)
ROWS_OF_ANY = st.lists(st.one_of(VALUE, CHANGED, st.sampled_from(VALID)), max_size=5)
NOISE = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from([b'"', b"{", b"}", b"[", b"]", b",", b"\n", b":", b"prompt", b"completion", b"a"])).map(
        b"".join
    ),
)


def check(path: Path) -> None:
    """Only declared errors; every record can be rendered and written down."""
    try:
        found = list(records.read(path, path.name))
    except ForgeError as error:
        assert error.code == 2
        return
    for item in found:
        if isinstance(item, Rejected):
            assert item.reason
            continue
        answers = [turn for side in (item.completion, item.chosen, item.rejected) if side for turn in side]
        assert len(answers) == (2 if item.kind == "preference" else 1)
        assert (item.label is None) == (item.kind != "kto")
        spoken = [turn["role"] for turn in item.prompt if turn["role"] != "system"]
        assert spoken == [("user", "assistant")[place % 2] for place in range(len(spoken))]
        assert spoken[-1] == "user"
        assert {turn["role"] for turn in answers} == {"assistant"}
        for turn in (*item.prompt, *answers):
            assert turn["content"].strip()
            assert "\0" not in turn["content"]
        json.dumps([item.prompt, answers, item.meta], ensure_ascii=False, allow_nan=False).encode("utf-8")


@harm.poison
@given(
    NOISE, st.sampled_from(record_files.SUFFIXES), st.sampled_from([b"", b"prompt,completion\n", b"[" + GOOD, b"PAR1"])
)
def test_a_file_of_records_of_any_bytes(tmp_path, noise, suffix, begin):
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(begin + noise)
    check(path)


@harm.poison
@given(st.one_of(ROWS_OF_ONE_FORMAT, ROWS_OF_ANY), st.sampled_from(["jsonl", "json"]))
def test_a_file_of_records_of_any_json(tmp_path, rows, form):
    text = json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows))
    path = tmp_path / f"generated.{form}"
    path.write_text(text, encoding="utf-8")
    check(path)
