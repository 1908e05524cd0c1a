"""Records: every format in every kind of file to the same turns, and every wrong record named with its place."""

import csv
import datetime
import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from forge.errors import ForgeError
from forge.reading import conflicts, json_records, raw_records, records
from forge.reading.records import Record, Rejected
from hub_standin import COMMIT, Hub

ROOT = Path(__file__).resolve().parents[1]
SECRET = "sk-4f9a81c2d7e6"
ASKED, SAID = "How many queens live in a hive?", "One queen lives in a hive."
OTHER = "Two queens live in a hive."
ONE_TURN = [{"role": "user", "content": ASKED}]
ANSWER = [{"role": "assistant", "content": SAID}]
WRONG = [{"role": "assistant", "content": OTHER}]
BRIEF = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]


def put(folder: Path, content: object, name: str = "a.jsonl") -> Path:
    """A file of bytes, of text, or of a list of rows as JSON Lines."""
    path = folder / name
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def read(path: Path) -> list[Record | Rejected]:
    return list(records.read(path, path.name))


def only(folder: Path, row: dict | str | bytes, name: str = "a.jsonl") -> Record | Rejected:
    (found,) = read(put(folder, [row] if isinstance(row, dict) else row, name))
    return found


def reasons(found: list[Record | Rejected]) -> list[tuple[str, str | None]]:
    return [(item.origin, item.reason if isinstance(item, Rejected) else None) for item in found]


def refused(path: Path) -> ForgeError:
    with pytest.raises(ForgeError) as caught:
        read(path)
    assert caught.value.code == 2
    assert caught.value.remedy
    return caught.value


def turns(*texts: str, said: str = "role", text: str = "content", names=("user", "assistant")) -> list[dict]:
    return [{said: names[place % 2], text: content} for place, content in enumerate(texts)]


# -- formats --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"messages": turns(ASKED, SAID), "category": "bees", "score": 0.5, "tags": ["a"]},
            Record("supervised", "", ONE_TURN, ANSWER, format="messages", meta={"category": "bees", "score": 0.5}),
        ),
        (
            {"messages": [BRIEF, *EARLIER, *turns(ASKED, SAID)]},
            Record("supervised", "", [BRIEF, *EARLIER, *ONE_TURN], ANSWER, format="messages"),
        ),
        (
            {
                "system": "Be brief.",
                "conversations": turns(ASKED, SAID, said="from", text="value", names=("human", "gpt")),
            },
            Record("supervised", "", [BRIEF, *ONE_TURN], ANSWER, format="sharegpt"),
        ),
        (
            {"instruction": ASKED, "input": " ", "output": SAID, "system": "", "id": 7},
            Record("supervised", "", ONE_TURN, ANSWER, format="alpaca", meta={"id": 7}),
        ),
        (
            {"instruction": "Answer.", "input": ASKED, "output": SAID, "system": "Be brief."},
            Record(
                "supervised",
                "",
                [BRIEF, {"role": "user", "content": f"Answer.\n\n{ASKED}"}],
                ANSWER,
                format="alpaca",
            ),
        ),
        ({"prompt": ASKED, "completion": SAID}, Record("supervised", "", ONE_TURN, ANSWER, format="prompt_completion")),
        ({"prompt": ASKED, "response": SAID}, Record("supervised", "", ONE_TURN, ANSWER, format="prompt_completion")),
        ({"question": ASKED, "answer": SAID}, Record("supervised", "", ONE_TURN, ANSWER, format="prompt_completion")),
        (
            {"prompt": [BRIEF, *ONE_TURN], "completion": ANSWER, "metadata": {"jailbreak": True, "list": []}},
            Record("supervised", "", [BRIEF, *ONE_TURN], ANSWER, format="prompt_completion", meta={"jailbreak": True}),
        ),
        (
            {"prompt": ASKED, "chosen": SAID, "rejected": OTHER, "label": "bees"},
            Record("preference", "", ONE_TURN, None, ANSWER, WRONG, format="preference", meta={"label": "bees"}),
        ),
        (
            {"system": "Be brief.", "question": ASKED, "chosen": SAID, "rejected": OTHER},
            Record("preference", "", [BRIEF, *ONE_TURN], None, ANSWER, WRONG, format="preference"),
        ),
        (
            {"prompt": [*EARLIER, *ONE_TURN], "chosen": ANSWER, "rejected": WRONG},
            Record("preference", "", [*EARLIER, *ONE_TURN], None, ANSWER, WRONG, format="preference"),
        ),
        (  # whole conversations, the prompt beside them
            {"prompt": ASKED, "chosen": turns(ASKED, SAID), "rejected": turns(ASKED, OTHER)},
            Record("preference", "", ONE_TURN, None, ANSWER, WRONG, format="preference"),
        ),
        (  # whole conversations alone
            {"chosen": [BRIEF, *EARLIER, *turns(ASKED, SAID)], "rejected": [BRIEF, *EARLIER, *turns(ASKED, OTHER)]},
            Record("preference", "", [BRIEF, *EARLIER, *ONE_TURN], None, ANSWER, WRONG, format="preference"),
        ),
        (
            {
                "chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {SAID}",
                "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: {OTHER}",
            },
            Record("preference", "", ONE_TURN, None, ANSWER, WRONG, format="preference"),
        ),
        (
            {"prompt": ASKED, "completion": SAID, "label": True},
            Record("kto", "", ONE_TURN, ANSWER, label=True, format="kto"),
        ),
        (
            {"prompt": ASKED, "response": OTHER, "label": 0},
            Record("kto", "", ONE_TURN, WRONG, label=False, format="kto"),
        ),
        (
            {"text": f"Human: Hello\nAssistant: Good day\nHuman: {ASKED}\nAssistant: {SAID}"},
            Record("supervised", "", [*EARLIER, *ONE_TURN], ANSWER, format="transcript"),
        ),
    ],
    ids=range(18),
)
def test_every_format_is_read(tmp_path, row, expected):
    expected.origin = "a.jsonl:1"
    assert only(tmp_path, row) == expected


@pytest.mark.parametrize(
    ("given", "label"), [(True, True), (False, False), (1, True), (0, False), ("true", True), (" False ", False)]
)
def test_what_counts_as_a_label(tmp_path, given, label):
    assert only(tmp_path, {"prompt": ASKED, "completion": SAID, "label": given}).label is label


@pytest.mark.parametrize("given", [None, 2, -1, 1.0, "yes", "", "harmful", [True], {"a": 1}])
def test_what_is_no_label(tmp_path, given):
    found = only(tmp_path, {"prompt": ASKED, "completion": SAID, "label": given})
    assert found.reason == "label is neither true nor false"


@pytest.mark.parametrize(
    ("names", "roles"),
    [(("human", "gpt"), None), (("User", "ASSISTANT"), None), (("prompter", "bot"), None), (("user", "model"), None)],
)
def test_names_of_roles(tmp_path, names, roles):
    found = only(tmp_path, {"messages": turns(ASKED, SAID, names=names)})
    assert (found.prompt, found.completion) == (ONE_TURN, ANSWER)


@pytest.mark.parametrize("name", ["tool", "function", "observation", "ipython", "tool_call"])
def test_turns_of_tools_are_named(tmp_path, name):
    row = {"messages": [*EARLIER, {"role": name, "content": "12"}, *ANSWER]}
    assert only(tmp_path, row).reason == "messages[2]: a turn of a tool, which is not supported"


def test_a_call_of_a_tool_is_named(tmp_path):
    row = {"messages": [*ONE_TURN, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}
    assert only(tmp_path, row).reason == "messages[1]: a turn of a tool, which is not supported"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": None}, "messages is missing, no list of turns"),
        ({"messages": ["hello"]}, "messages[0] is text, no turn"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
        ({"messages": [{"content": "a"}]}, "messages[0].role is missing"),
        ({"messages": turns(ASKED, " \n")}, "messages[1].content is empty"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content is a number, no text"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content is a list, no text"),
        (
            {"messages": [{"role": "critic", "content": "a"}]},
            "messages[0]: a role that is none of system, user, assistant",
        ),
        ({"messages": ONE_TURN}, "messages does not end with the assistant"),
        ({"messages": [*ONE_TURN, *ANSWER, *ANSWER]}, "messages: two turns of the assistant in a row"),
        ({"messages": [*ONE_TURN, *ONE_TURN, *ANSWER]}, "messages: two turns of the user in a row"),
        ({"messages": ANSWER}, "messages: the assistant begins"),
        ({"messages": [BRIEF, *ANSWER]}, "messages: the assistant begins"),
        ({"messages": [BRIEF]}, "messages does not end with the assistant"),
        ({"messages": [*EARLIER, BRIEF, *ONE_TURN, *ANSWER]}, "messages: a system turn that is not the first"),
        (
            {"messages": [BRIEF, *ONE_TURN, *ANSWER], "system": "Be brief."},
            "two system prompts: the key system, and a turn",
        ),
        (
            {"messages": [*ONE_TURN, {**ANSWER[0], "weight": 0}]},
            "the last turn of messages is marked as not to be trained",
        ),
        ({"instruction": ASKED, "output": 1.5}, "output is a number, no text"),
        ({"instruction": True, "output": SAID}, "instruction is true or false, no text"),
        ({"instruction": ASKED, "input": {"a": 1}, "output": SAID}, "input is an object, no text"),
        ({"prompt": ASKED, "completion": ""}, "completion is empty"),
        ({"prompt": "", "completion": SAID}, "prompt is empty"),
        ({"prompt": ASKED, "completion": None}, "completion is missing"),
        ({"prompt": [*ONE_TURN, *ANSWER], "completion": SAID}, "completion: two turns of the assistant in a row"),
        ({"prompt": ASKED, "chosen": SAID, "rejected": f" {SAID}\n"}, "chosen and rejected are the same"),
        ({"prompt": ASKED, "chosen": SAID, "rejected": {"a": "b"}}, "rejected is an object, no text"),
        ({"chosen": SAID, "rejected": OTHER}, "prompt is missing, and chosen is no conversation"),
        (
            {"chosen": turns(ASKED, SAID), "rejected": turns("Another?", OTHER)},
            "chosen and rejected differ before their last turn",
        ),
        (
            {"prompt": "Another?", "chosen": turns(ASKED, SAID), "rejected": turns(ASKED, OTHER)},
            "prompt does not stand in the conversation of chosen",
        ),
        ({"prompt": ASKED, "completion": "TODO"}, "completion is a placeholder"),
        ({"prompt": ASKED, "completion": "[Your answer here]"}, "completion is a placeholder"),
        ({"prompt": ASKED, "completion": "..."}, "completion is a placeholder"),
        ({"prompt": ASKED, "completion": "I'm sorry, but I can't assist with that."}, "completion is a canned refusal"),
        ({"prompt": ASKED, "chosen": "N/A", "rejected": OTHER}, "chosen is a placeholder"),
        ({"prompt": ASKED, "chosen": SAID, "rejected": "I cannot help with that."}, "rejected is a canned refusal"),
        (
            {
                "prompt": ASKED,
                "chosen": SAID,
                "rejected": "[ADVERSARIAL_CONTENT] [Harmful response generation not yet implemented]",
            },
            "rejected is a placeholder",
        ),
    ],
    ids=range(37),
)
def test_what_is_wrong_with_a_record(tmp_path, row, reason):
    found = only(tmp_path, row)
    assert (found.origin, found.reason) == ("a.jsonl:1", reason)


@pytest.mark.parametrize("answer", ["42", "No.", "\u4e00\u53ea", "I cannot help with that tyre, it is flat."])
def test_short_answers_are_answers(tmp_path, answer):
    assert only(tmp_path, {"prompt": ASKED, "completion": answer}).completion[0]["content"] == answer


def test_an_exporters_fixed_text_is_no_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(records.scenarios, "EXPORTED", {"d60b4ba35821edfa"})
    found = only(tmp_path, {"text": f"Human: {ASKED}\nAssistant: I am here, for you!"})
    assert found.reason == "completion is a fixed text of an exporter"


# -- files ----------------------------------------------------------------------------------------------------

ROWS = [
    {"prompt": ASKED, "completion": SAID, "category": "bees"},
    {"prompt": 'Two\nlines, and "quotes"; here', "completion": "caf\u00e9 \U0001f41d", "category": "x"},
    {"prompt": "Third?", "completion": "Third.", "category": "y"},
]


def as_csv(rows: list[dict], delimiter: str = ",", end: str = "\n") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0].keys(), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


FORMS = {
    "lines.jsonl": ("".join(json.dumps(row) + "\n" for row in ROWS), ":1", ":2", ":3"),
    "ascii.ndjson": ("\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), ":1", ":3", ":5"),
    "mark.jsonl": ("\ufeff" + "\r\n".join(json.dumps(row) for row in ROWS), ":1", ":2", ":3"),
    "list.jsonl": (json.dumps(ROWS), ":1", ":1", ":1"),
    "list.json": (json.dumps(ROWS, indent=1), ":2", ":7", ":12"),
    "lines.json": ("".join(json.dumps(row) + "\n" for row in ROWS), ":1", ":2", ":3"),
    "indented.json": ("\n".join(json.dumps(row, indent=1) for row in ROWS), ":1", ":6", ":11"),
    "object.json": (json.dumps({"version": "1", "data": ROWS, "license": None}), ":1", ":1", ":1"),
    "plain.csv": (as_csv(ROWS), ":2", ":3", ":5"),
    "semicolon.csv": ("\ufeff" + as_csv(ROWS, ";", "\r\n"), ":2", ":3", ":5"),
    "tabs.tsv": (as_csv(ROWS, "\t"), ":2", ":3", ":5"),
    "rows.parquet": (None, "#1", "#2", "#3"),
}


def parquet(path: Path, columns: dict, **settings) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, **settings)
    return path


@pytest.mark.parametrize("name", FORMS)
def test_every_file_gives_the_same_records(tmp_path, name):
    text, *places = FORMS[name]
    path = tmp_path / name
    if text is None:
        parquet(path, {key: [row[key] for row in ROWS] for key in ROWS[0]}, row_group_size=2)
    else:
        put(tmp_path, text, name)
    assert read(path) == [
        Record(
            "supervised",
            f"{name}{place}",
            [{"role": "user", "content": row["prompt"]}],
            [{"role": "assistant", "content": row["completion"]}],
            format="prompt_completion",
            meta={"category": row["category"]},
        )
        for row, place in zip(ROWS, places, strict=True)
    ]


def test_one_record_alone_in_a_json_file(tmp_path):
    """Its only list is no list of records."""
    assert only(tmp_path, json.dumps({"messages": turns(ASKED, SAID)}, indent=1), "a.json").completion == ANSWER


def test_parquet_keeps_what_is_nested_and_leaves_pictures_on_the_disk(tmp_path):
    path = parquet(
        tmp_path / "a.parquet",
        {
            "messages": [turns(ASKED, SAID)],
            "picture": [b"\xff\xd8"],
            "vector": [[0.5, 1.5]],
            "score": [float("nan")],
            "day": [datetime.date(2025, 1, 1)],
            "number": [3],
        },
    )
    assert read(path) == [Record("supervised", "a.parquet#1", ONE_TURN, ANSWER, format="messages", meta={"number": 3})]


def test_labels_of_parquet_are_true_and_false(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"prompt": [ASKED], "completion": [SAID], "label": [False]})
    assert [item.label for item in read(path)] == [False]


def test_a_row_of_parquet_that_is_not_utf8(tmp_path):
    import pyarrow as pa

    texts = pa.array([b"good", b"caf\xe9", b"fine"]).view(pa.string())
    path = parquet(tmp_path / "a.parquet", {"prompt": ["1", "2", "3"], "completion": texts})
    assert reasons(read(path)) == [
        ("a.parquet#1", None),
        ("a.parquet#2", "not UTF-8 (byte 0xe9)"),
        ("a.parquet#3", None),
    ]


def test_parquet_holds_what_json_cannot(tmp_path):
    columns = {"prompt": ["a\0b", "x", "y"], "completion": ["b", "c", "d"], "score": [1.0, float("inf"), None]}
    assert [item.reason for item in read(parquet(tmp_path / "a.parquet", columns))[:2]] == [
        "holds a NUL character",
        "holds a number that is none (NaN or infinity)",
    ]


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_broken_parquet(tmp_path, damage):
    path = parquet(tmp_path / "a.parquet", {"prompt": [ASKED] * 100, "completion": [SAID] * 100})
    raw = path.read_bytes()
    path.write_bytes({"cut": raw[:-20], "noise": raw[:4] + b"\xff" * (len(raw) - 8) + raw[-4:], "empty": b""}[damage])
    assert refused(path).cause.startswith("a.parquet")


def test_a_name_in_parquet_that_is_not_utf8(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"prompt": [ASKED], "completion": [SAID], "category": ["x"]})
    path.write_bytes(path.read_bytes().replace(b"category", b"categor\xe9"))
    assert refused(path).cause.startswith("a.parquet cannot be read behind row 0: 'utf-8' codec can't decode")


def test_two_columns_of_one_name(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]), tmp_path / "a.parquet")
    assert refused(tmp_path / "a.parquet").cause == "a.parquet: two columns have one name"


# -- strict lines ---------------------------------------------------------------------------------------------

GOOD = json.dumps({"prompt": "a", "completion": "b"}).encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "caf\xe9", "completion": "b"}', "not UTF-8 (byte 0xe9)"),
        (b'{"prompt": "a\0", "completion": "b"}', "holds a NUL character"),
        (b'{"prompt": "a\\u0000", "completion": "b"}', "holds a NUL character"),
        (b'{"prompt": "\\ud83d", "completion": "b"}', "holds half a surrogate pair"),
        (b'{"prompt": "a", "completion": "b", "\\udc00": 1}', "holds half a surrogate pair"),
        (b'{"prompt": "a", "completion": "b", "more": ["\\udcff"]}', "holds half a surrogate pair"),
        (b'{"prompt": "\xed\xa0\xbd", "completion": "b"}', "not UTF-8 (byte 0xed)"),
        (b'{"prompt": "a", "prompt": "c", "completion": "b"}', "a key stands twice"),
        (b'{"prompt": "a", "completion": "b", "more": {"x": 1, "x": 2}}', "a key stands twice"),
        (b'{"prompt": "a", "completion": NaN}', "NaN is no JSON value"),
        (b'{"prompt": "a", "completion": "b", "score": -Infinity}', "-Infinity is no JSON value"),
        (b'{"prompt": "a", "completion": "b", "score": 1e999}', "a number is too large"),
        (b'{"prompt": "a", "completion": "b", "score": ' + b"9" * 5000 + b"}", "a number is too large"),
        (b'{"prompt": "a", "completion": "b"', "the line ends in the middle of a record"),
        (b'{"prompt": "a", "compl', "the line ends in the middle of a record"),
        (b'{"prompt": "a" "completion": "b"}', "no JSON: Expecting ',' delimiter"),
        (b"{'prompt': 'a'}", "no JSON: Expecting property name enclosed in double quotes"),
        (GOOD + GOOD, "no JSON: Extra data"),
        (b"[" * 100_000, "nested too deeply"),
        (b'["a", "b"]', "a record is no object"),
        (b"5", "a record is no object"),
    ],
    ids=range(21),
)
def test_a_line_that_is_no_record(tmp_path, line, reason):
    """The lines around it are read; so are those around it in a JSON list, where JSON says where it ends."""
    found = read(put(tmp_path, GOOD + b"\n" + line + b"\n" + GOOD + b"\n"))
    assert reasons(found) == [("a.jsonl:1", None), ("a.jsonl:2", reason), ("a.jsonl:3", None)]
    if line == GOOD + GOOD:
        return  # two records of a list
    first, second, *more = reasons(read(put(tmp_path, b"[" + GOOD + b",\n" + line + b",\n" + GOOD + b"]", "a.json")))
    assert first == ("a.json:1", None)
    if more:
        assert (second, more) == (("a.json:2", reason), [("a.json:3", None)])
    else:
        assert second[1].endswith("; nothing behind it is read")


@pytest.mark.parametrize("end", [b'{"prompt": "a", "comp', b'{"prompt": "a", "completion": "caf\xc3', b'{"prompt":'])
def test_a_torn_last_line(tmp_path, end):
    assert reasons(read(put(tmp_path, GOOD + b"\n" + end))) == [
        ("a.jsonl:1", None),
        ("a.jsonl:2", "the file ends in the middle of a record"),
    ]


def test_a_torn_list(tmp_path):
    found = read(put(tmp_path, b"[" + GOOD + b",\n" + GOOD[:20], "a.json"))
    told = "the file ends in the middle of a record; nothing behind it is read"
    assert reasons(found) == [("a.json:1", None), ("a.json:2", told)]
    assert found[1].characters == 20


def test_text_behind_a_list(tmp_path):
    found = read(put(tmp_path, b"[" + GOOD + b"]\nmore", "a.json"))
    assert reasons(found)[1] == ("a.json:1", "text after the end of the list; nothing behind it is read")


def test_a_list_that_is_not_utf8_loses_one_record(tmp_path):
    bad = b'{"prompt": "caf\xe9", "completion": "b"}'
    assert reasons(read(put(tmp_path, b"[" + bad + b",\n" + GOOD + b"]", "a.json"))) == [
        ("a.json:1", "not UTF-8 (byte 0xe9)"),
        ("a.json:2", None),
    ]


def test_a_long_line_is_passed_over_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_records, "LONGEST", 1 << 20)
    monkeypatch.setattr(raw_records.files, "BLOCK", 1 << 16)
    long = b'{"prompt": "' + b"a" * (30 << 20) + b'"}'
    path = put(tmp_path, GOOD + b"\n" + long + b"\n" + GOOD + b"\n" + long)
    tracemalloc.start()
    found = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reasons(found) == [
        ("a.jsonl:1", None),
        ("a.jsonl:2", "a line over 1 MB"),
        ("a.jsonl:3", None),
        ("a.jsonl:4", "a line over 1 MB"),
    ]
    assert found[1].characters == len(long) + 1
    assert peak < 4 << 20


def test_the_longest_line_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_records, "LONGEST", 100)
    fits = b'{"prompt": "a", "completion": "' + b"b" * 67 + b'"}'
    assert len(fits) == 100
    found = read(put(tmp_path, fits + b"\n" + fits.replace(b"b", b"bb", 1) + b"\n" + fits))
    assert [isinstance(item, Record) for item in found] == [True, False, True]


# -- CSV ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["a,b", "c", "d,e"], [(2, None), (3, "1 fields, the header has 2"), (4, None)]),
        (["a,b,c", "d,e"], [(2, "3 fields, the header has 2"), (3, None)]),
        (["", "a,b", "", "d,e", ""], [(3, None), (5, None)]),
        (['"a\nb\n\nc",d', "e,f"], [(2, None), (6, None)]),
        (['"a"b,c', "d,e"], [(2, "',' expected after '\"'"), (3, None)]),
        (["caf\udce9,b", "d,e"], [(2, "not UTF-8 (byte 0xe9)"), (3, None)]),
        (["a\0,b", "d,e"], [(2, "holds a NUL character"), (3, None)]),
        ([",b", "d,e"], [(2, "prompt is empty"), (3, None)]),
        (
            ["a,b", '"c,d', "e,f"],
            [
                (2, None),
                (
                    3,
                    "unexpected end of data; nothing behind it is read: its quotation marks do not say where it ends",
                ),
            ],
        ),
        (
            ["a,b", '"a"b,"c', "d,e"],
            [
                (2, None),
                (
                    3,
                    "',' expected after '\"'; nothing behind it is read: its quotation marks do not say where it ends",
                ),
            ],
        ),
    ],
    ids=range(10),
)
def test_lines_of_a_table(tmp_path, lines, expected):
    text = "\n".join(["prompt,completion", *lines]).encode("utf-8", "surrogateescape")
    assert reasons(read(put(tmp_path, text, "a.csv"))) == [(f"a.csv:{line}", reason) for line, reason in expected]


def test_a_long_record_of_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_records, "LONGEST", 1000)
    long = "b" * 2000
    text = f'prompt,completion\na,{long}\nc,d\n"a","{long}"\ne,f\n'
    assert reasons(read(put(tmp_path, text, "a.csv"))) == [
        ("a.csv:2", "a record over 0 MB"),
        ("a.csv:3", None),
        ("a.csv:4", "a record over 0 MB"),
        ("a.csv:5", None),
    ]
    text = 'prompt,completion\na,b\na,"' + "b\n" * 2000
    _, found = read(put(tmp_path, text, "b.csv"))
    assert found.reason.startswith("a record over 0 MB; nothing behind it is read")
    assert found.characters == len(text) - len("prompt,completion\na,b\n")


def test_a_field_longer_than_pythons_own_limit(tmp_path):
    text = "prompt,completion\na," + "b" * 200_000 + "\n"
    assert len(only(tmp_path, text, "a.csv").completion[0]["content"]) == 200_000


def test_a_column_that_stands_twice(tmp_path):
    path = put(tmp_path, "prompt,completion,prompt\na,b,c\n", "a.csv")
    assert refused(path).cause == "a.csv:1: columns 1 and 3 have one name"


# -- the file as a whole --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "a.jsonl holds no record: it is empty"),
        (b"\n\n", "a.jsonl holds no record: it is empty"),
        (b"hello\nworld\n", "a.jsonl holds no record: a.jsonl:1: no JSON: Expecting value"),
        (b"5\n", "a.jsonl holds no record: a.jsonl:1: a record is no object"),
        (b'{"a": 1, "b": 2}', "a.jsonl:1: no known format has the keys a, b"),
        (b'\n{"\x1b[31m": 1}', "a.jsonl holds no record: a.jsonl:2: no JSON: Invalid control character at"),
        (b'{"\\u001b[31m": 1, "answers": 2}', "a.jsonl:1: no known format has the keys answers, ..."),
        (b'{"text": "Bees live in hives."}', "a.jsonl:1: plain text, no conversation"),
        (b'{"text": "good", "label": 1}', "a.jsonl:1: plain text, no conversation"),
        (b'{"prompt": "a", "evaluation_target": "b"}', "a.jsonl:1: a scenario, no record to train on"),
        (GOOD + b'\n{"messages": []}', None),
        ("\ufeff{}".encode("utf-16-le"), "a.jsonl: UTF-16, not UTF-8"),
        ("{}".encode("utf-16-be"), "a.jsonl: UTF-16, not UTF-8"),
        ("{}".encode("utf-32-le"), "a.jsonl: UTF-32, not UTF-8"),
    ],
    ids=range(14),
)
def test_a_file_that_is_refused(tmp_path, content, cause):
    cause = cause or "a.jsonl:2: the keys of messages (messages) in a file of prompt_completion (prompt, completion)"
    assert refused(put(tmp_path, content)).cause == cause


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"[]", "a.json holds no record: it is empty"),
        (b"No scenarios.", "a.json holds no records but plain text"),
        (b"", "a.json holds no records: it is empty"),
        (b'{"data": {"a": 1}}', "a.json: an object with no list of records (data)"),
        (b'{"a": [], "b": []}', "a.json: an object with 2 lists (a, b)"),
        (b'{"data": [', "a.json holds no record: a.json:1: the file ends in the middle of a record"),
    ],
    ids=range(6),
)
def test_a_json_file_that_is_refused(tmp_path, content, cause):
    assert refused(put(tmp_path, content, "a.json")).cause.startswith(cause)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"password: {SECRET}", "a.json"),
        (f"password: {SECRET}", "a.jsonl"),
        (json.dumps({SECRET: [], "a": []}), "a.json"),
        (f"{SECRET},hello\na,b\n", "a.csv"),
        (f"{SECRET},{SECRET}\na,b\n", "a.csv"),
        (json.dumps({"messages": [{"role": SECRET, "content": "a"}]}), "a.jsonl"),
        (json.dumps({"prompt": "a", "completion": "b", "label": SECRET}), "a.jsonl"),
        (f'{{"prompt": "{SECRET}", "completion": {SECRET}}}', "a.jsonl"),
        (f'"{SECRET}"', "a.jsonl"),
    ],
    ids=range(9),
)
def test_no_message_quotes_what_stands_in_the_file(tmp_path, text, name):
    """It may be a secret. The first line of a table without a header is a record, too."""
    try:
        told = [item.reason for item in read(put(tmp_path, text, name))]
    except ForgeError as error:
        told = [error.cause, error.remedy]
    assert told
    assert SECRET[:6] not in "".join(told)


def test_remedies_name_the_kind_of_source(tmp_path):
    assert refused(put(tmp_path, b'{"text": "a"}')).remedy.startswith("use kind: documents")
    scenario = b'{"prompt": "a", "evaluation_target": "b"}'
    assert refused(put(tmp_path, scenario)).remedy == "write kind: scenario_json for that source"


@pytest.mark.parametrize("row", [{"messages": turns("a", "b")}, {"prompt": "a", "completion": "b"}])
def test_pairs_and_labels_are_not_read_before_the_file_was_seen(tmp_path, row):
    """A row without its label among labelled ones: nothing of that file is handed out."""
    labelled = [{"prompt": str(number), "completion": "b", "label": True} for number in range(3)]
    reader = records.read(put(tmp_path, [*labelled, row]), "a.jsonl")
    with pytest.raises(ForgeError, match=r"a\.jsonl:4: the keys of"):
        next(reader)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    put(tmp_path, GOOD, "a.txt")
    assert refused(tmp_path / "pipe.jsonl").cause == "pipe.jsonl is no regular file"
    assert refused(tmp_path / "folder.jsonl").cause == "folder.jsonl is no regular file"
    assert refused(tmp_path / "none.jsonl").cause == "none.jsonl is not there"
    assert refused(tmp_path / "a.txt").cause == "a.txt: no format of records ends in '.txt'"


def test_an_unreadable_file(tmp_path):
    path = put(tmp_path, GOOD)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert refused(path).cause == "a.jsonl: Permission denied"


def test_a_list_too_large_to_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(json_records, "WHOLE", 10)
    assert refused(put(tmp_path, b"[" + GOOD + b"]", "a.json")).remedy == "save it as JSON Lines"
    assert only(tmp_path, GOOD, "b.json").completion[0]["content"] == "b"


# -- what rows say against each other -------------------------------------------------------------------------


def pair(prompt: str, chosen: str, rejected: str) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def judged(found: list[Record | Rejected]) -> list[tuple[str, str]]:
    """Origin and reason of the records that speak against each other."""
    kept, seen = [item for item in found if isinstance(item, Record)], conflicts.Conflicts()
    for item in kept:
        seen.add(item)
    return [(item.origin, reason) for item in kept if (reason := seen.reason(item))]


def test_swapped_pairs(tmp_path):
    rows = [pair("1", "a", "b"), pair("2", "a", "b"), pair("1", " b", "a"), pair("1", "b", "c"), pair("1", "a", "b")]
    told = "the opposite pair of the same prompt stands elsewhere"
    assert [item for _, item in reasons(read(put(tmp_path, rows)))] == [told, None, told, None, told]


def test_opposite_labels(tmp_path):
    rows = [
        {"prompt": prompt, "completion": answer, "label": label}
        for prompt, answer, label in [("1", "a", True), ("1", "b", False), ("2", "a", False), ("1", "a", 0)]
    ]
    told = "the same answer to the same prompt is labelled true and false"
    assert [item for _, item in reasons(read(put(tmp_path, rows)))] == [told, None, None, told]


@pytest.mark.parametrize(("count", "found"), [(12, True), (11, False)])
def test_one_rejected_text_for_all(tmp_path, count, found):
    rows = [pair(str(number), f"good {number}", f"bad {number}") for number in range(22 - count)]
    rows += [pair(f"x{number}", f"fine {number}", "That is beyond me." + " " * number) for number in range(count)]
    told = f"its rejected text stands in {count} of 22 pairs: a fixed text, no answer"
    assert [item for _, item in reasons(read(put(tmp_path, rows)))] == [None] * (22 - count) + [
        told if found else None
    ] * count


def test_few_pairs_may_share_a_rejected_text(tmp_path):
    rows = [pair(str(number), f"good {number}", "That is beyond me.") for number in range(19)]
    assert [item for _, item in reasons(read(put(tmp_path, rows)))] == [None] * 19


def test_a_failure_that_is_taught_elsewhere(tmp_path):
    rows = [
        *read(put(tmp_path, [pair("1", "a", "b")], "p.jsonl")),
        *read(put(tmp_path, [{"prompt": "2", "completion": "no", "label": False}], "k.jsonl")),
        *read(
            put(
                tmp_path,
                [
                    {"prompt": [BRIEF, {"role": "user", "content": "1"}], "completion": "b"},
                    {"prompt": "1", "completion": "a"},
                    {"prompt": "2", "completion": "no"},
                    {"prompt": "3", "completion": "no"},
                    {"prompt": "3", "completion": 5},
                ],
                "s.jsonl",
            )
        ),
    ]
    told = "its completion is a rejected answer, or one labelled false, of the same prompt elsewhere"
    assert judged(rows) == [("s.jsonl:1", told), ("s.jsonl:3", told)]


def test_another_system_prompt_may_turn_a_pair_round(tmp_path):
    rows = [{**pair("1", "a", "b"), "system": "Be brief."}, {**pair("1", "b", "a"), "system": "Be long."}]
    found = read(put(tmp_path, rows))
    assert [item.kind for item in found] == ["preference", "preference"]
    assert judged(found) == []


def test_facts_are_sixteen_bytes_and_any_of_them_is_found_again():
    """numpy leaves zero bytes at the end of a text away."""
    ends = [bytes([number]) * (16 - zeros) + b"\0" * zeros for number in range(1, 5) for zeros in range(4)]
    assert conflicts._common(bytearray(b"".join(ends)), bytearray(b"".join(reversed(ends)))) == set(ends)
    most = bytearray(b"".join(ends) + ends[3] * 17)
    assert conflicts._majority(most) == (ends[3], 18, 33)


# -- the Hub --------------------------------------------------------------------------------------------------

FETCH = """
import json, sys
sys.path.insert(0, sys.argv[1])
from forge import hub
from forge.reading import records
from forge.errors import ForgeError
try:
    found = hub.fetch(*json.loads(sys.argv[2]))
    read = [item.origin for name, path in found for item in records.read(path, name)]
    print(json.dumps([[name for name, _ in found], read]))
except ForgeError as error:
    print(error.cause, error.remedy, sep="\\n")
    sys.exit(error.code)
"""
TOKEN = "hf_" + "a1B2c3D4" * 4


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    put(folder, ROWS, "top.jsonl")
    parquet(folder / "data/train-00000.parquet", {"prompt": [ASKED], "completion": [SAID]})
    put(folder, "{}", "dataset_infos.json")
    put(folder, "raise SystemExit('run')", "loader.py")
    put(folder, "words", "README.md")
    with Hub(folder, "org/bees", kind="datasets") as server:
        yield server


@pytest.fixture
def fetch(tmp_path, hub):
    """`fetch(revision, ...)` in a process of its own, with a cache of its own: the client reads both at its import."""

    def run(*arguments: object, repository: str = "org/bees", **environment: str) -> subprocess.CompletedProcess:
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        return subprocess.run(
            [sys.executable, "-c", FETCH, str(ROOT / "scripts"), json.dumps([repository, *arguments])],
            env={**os.environ, **settings, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


ALL = [
    ["data/train-00000.parquet", "top.jsonl"],
    ["data/train-00000.parquet#1", *(f"top.jsonl:{n}" for n in (1, 2, 3))],
]


def test_a_data_set_is_fetched_and_read_and_never_run(fetch, hub, tmp_path):
    (tmp_path / ".env").write_text(f"HF_TOKEN={TOKEN}\n", encoding="utf-8")
    done = fetch(COMMIT)
    assert (done.returncode, json.loads(done.stdout)) == (0, ALL), done.stderr
    assert hub.tokens == {f"Bearer {TOKEN}"}
    asked = {path.rpartition("/")[2] for _, path in hub.requests if "/resolve/" in path}
    assert asked == {"train-00000.parquet", "top.jsonl"}
    hub.requests.clear()
    done = fetch(COMMIT, HF_HUB_OFFLINE="1")
    assert (done.returncode, json.loads(done.stdout), hub.requests) == (0, ALL, []), done.stderr


def test_what_is_no_name_of_a_data_set(fetch, hub):
    done = fetch(COMMIT, repository="org/bees/more")
    assert (done.returncode, done.stdout) == (2, "'org/bees/more' is no name of a data set\nwrite hub:org/name\n")
    assert hub.requests == []


def test_globs_of_a_data_set(fetch):
    done = fetch(COMMIT, ["data/*.parquet", "**/*.jsonl"], ["top*"])
    assert json.loads(done.stdout)[0] == ["data/train-00000.parquet"]


def test_a_data_set_without_records(fetch):
    done = fetch(COMMIT, ["**/*.csv"])
    assert done.returncode == 2
    assert done.stdout.startswith("org/bees@01234567 holds no file of records (**/*.csv)\n")


@pytest.mark.parametrize("revision", ["main", "0123456", COMMIT.upper(), COMMIT + "0"])
def test_a_revision_is_a_commit(fetch, hub, revision):
    done = fetch(revision)
    assert done.returncode == 2
    assert "is no commit hash" in done.stdout
    assert hub.requests == []


@pytest.mark.parametrize(
    ("refusal", "code", "cause", "remedy"),
    [
        ((403, "GatedRepo"), 7, "org/bees is gated", "accept its terms on huggingface.co/datasets/org/bees"),
        ((401, "RepoNotFound"), 2, "the Hub has no org/bees@0123", "a private data set needs HF_TOKEN in .env"),
        ((404, "RevisionNotFound"), 2, "the Hub has no org/bees@0123", "check data.sources: path and revision"),
        ((400, ""), 7, "the Hub cannot be reached or refused", "run make dataset again"),
    ],
)
def test_refusals_of_the_hub(fetch, hub, refusal, code, cause, remedy):
    hub.refuse = refusal
    done = fetch(COMMIT)
    assert done.returncode == code, done.stdout + done.stderr
    assert cause in done.stdout
    assert remedy in done.stdout


def test_no_hub_at_all(fetch):
    done = fetch(COMMIT, HF_HUB_OFFLINE="1")
    assert done.returncode == 7, done.stdout + done.stderr
    assert done.stdout.startswith("the Hub cannot be reached or refused")
