"""Documents to units: nothing that a page says is lost, and what belongs together stays together."""

import os
import random
import re
from pathlib import Path

import pytest
from forge import documents
from forge.errors import ForgeError
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
PAGE = """\
Words before any heading.

# Bees

First paragraph,
on two lines.

Second paragraph.

## Hives

| a | b |
|---|---|
| 1 | 2 |

- one
- two

  still two

1. first
2. second

> A quotation
> of two lines.

```python
def f():

    return "a blank line above"
```

~~~
# no heading
Q: no question?
A: no answer.
~~~

    indented code

<div>
html
</div>

* * *

## Bees again

Q: Who are you?
Q: What is
your name?
A: I am **Maja**,
a **bee**.

The end.
"""


def read(folder: Path, text: str | bytes, name: str = "page.md") -> list[documents.Unit]:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return documents.read(path)


def blocks(units: list[documents.Unit]) -> list[str]:
    return [block.text for unit in units for block in unit.blocks]


# -- Markdown ----------------------------------------------------------------------------------------------


def test_a_page_in_units(tmp_path):
    units = read(tmp_path, PAGE)
    assert [(unit.path, unit.line) for unit in units] == [
        (["page"], 1),
        (["Bees"], 3),
        (["Bees", "Hives"], 10),
        (["Bees", "Bees again"], 47),
    ]
    assert blocks(units) == [
        "Words before any heading.",
        "First paragraph,\non two lines.",
        "Second paragraph.",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "- one\n- two\n\n  still two",
        "1. first\n2. second",
        "> A quotation\n> of two lines.",
        '```python\ndef f():\n\n    return "a blank line above"\n```',
        "~~~\n# no heading\nQ: no question?\nA: no answer.\n~~~",
        "    indented code",
        "<div>\nhtml\n</div>",
        "The end.",
    ]


def test_only_prose_may_be_divided(tmp_path):
    units = read(tmp_path, PAGE)
    assert [block.text.split("\n")[0] for unit in units for block in unit.blocks if block.divisible] == [
        "Words before any heading.",
        "First paragraph,",
        "Second paragraph.",
        "The end.",
    ]


def test_every_block_knows_its_line(tmp_path):
    lines = PAGE.split("\n")
    for unit in read(tmp_path, PAGE):
        for block in unit.blocks:
            assert lines[block.line - 1] == block.text.split("\n")[0]
        for group in unit.questions:
            assert lines[group.line - 1] == "Q: Who are you?"


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("# A\n\na\n\n### C\n\nc\n\n## B\n\nb\n", [["A"], ["A", "C"], ["A", "B"]]),
        ("# A\n\na\n\n# B\n\nb\n", [["A"], ["B"]]),
        ("A\n=\n\na\n\nB\n-\n\nb\n", [["A"], ["A", "B"]]),
        ("# `A` *b* #\n\na\n", [["`A` *b*"]]),
        ("> # quoted\n\na\n", [["page"]]),
        ("# A\n\n## empty\n\n## B\n\nb\n", [["A", "B"]]),
    ],
)
def test_chains_of_headings(tmp_path, text, paths):
    assert [unit.path for unit in read(tmp_path, text)] == paths


def test_a_link_definition_is_not_lost(tmp_path):
    """Markdown takes `[Term]: word` for a link's address and shows nothing: a glossary would vanish."""
    text = "# Glossary\n\n[Drone]: male\n\n[Queen]: mother\n\nThe end.\n"
    kept = " ".join(blocks(read(tmp_path, text)))
    assert "male" in kept
    assert "mother" in kept


WORD = st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)
MARK = st.sampled_from(["", "", "> ", "- ", "1. "])
LINE = st.builds(lambda mark, words: mark + " ".join(words), MARK, st.lists(WORD))
FENCE = st.builds(lambda lines: "```\n" + "\n".join(lines) + "\n```", st.lists(LINE, max_size=3))
HEADING = st.builds(lambda depth, word: f"{'#' * depth} {word}", st.integers(1, 4), WORD)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(LINE, FENCE, HEADING, st.just("")), max_size=12))
def test_no_word_is_lost(tmp_path_factory, pieces):
    text = "\n".join(pieces)
    units = read(tmp_path_factory.getbasetemp(), text, "generated.md")
    kept = " ".join(blocks(units))
    headings = " ".join(re.findall(r"^#{1,4} (\w+)$", text, flags=re.M))
    for word in re.findall(r"[a-z0-9]+", text):
        assert re.search(rf"\b{word}\b", f"{kept} {headings}")


# -- questions ---------------------------------------------------------------------------------------------


def groups(units: list[documents.Unit]) -> list[tuple]:
    return [(group.wordings, group.answer, group.facts) for unit in units for group in unit.questions]


def test_a_group_of_wordings(tmp_path):
    assert groups(read(tmp_path, PAGE)) == [
        (["Who are you?", "What is\nyour name?"], "I am Maja, a bee.", ["Maja", "bee"])
    ]


def test_groups_without_a_blank_line_between_them(tmp_path):
    text = "Q: One?\nA: **1**.\nQ: Two?\nQ: The second?\nA: 2,\nor so.\n"
    assert groups(read(tmp_path, text)) == [
        (["One?"], "1.", ["1"]),
        (["Two?", "The second?"], "2, or so.", []),
    ]


@pytest.mark.parametrize("name", ["page.md", "page.txt", "page.MD", "page.markdown"])
def test_groups_stand_in_every_kind_of_file(tmp_path, name):
    assert groups(read(tmp_path, "Q: One?\nA: 1.\n\nQ: Two?\nA: 2.\n", name)) == [
        (["One?"], "1.", []),
        (["Two?"], "2.", []),
    ]


@pytest.mark.parametrize(
    "text",
    ["Q: Is this all?", "A: An answer alone.", "Q:\nA: To nothing.", "Q: To this?\nA:", "So: Q: A?\nA: No."],
)
def test_what_is_no_group_stays_prose(tmp_path, text):
    units = read(tmp_path, text)
    assert groups(units) == []
    assert blocks(units) == [text]


# -- plain text ----------------------------------------------------------------------------------------------


def test_plain_text_is_split_at_blank_lines(tmp_path):
    units = read(tmp_path, "\n\n# no heading\n| no | table |\n\n  \n\nSecond.\n\n\n", "notes.txt")
    assert [unit.path for unit in units] == [["notes"]]
    assert blocks(units) == ["# no heading\n| no | table |", "Second."]
    assert [(block.line, block.divisible) for block in units[0].blocks] == [(3, True), (8, True)]


@pytest.mark.parametrize("name", ["page.md", "page.txt"])
@pytest.mark.parametrize("text", ["", "\n", "   \n\n\t\n", "\ufeff"])
def test_an_empty_file_has_no_unit(tmp_path, name, text):
    assert read(tmp_path, text, name) == []


# -- bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["page.md", "page.txt"])
def test_line_ends_and_byte_order_marks_make_no_difference(tmp_path, name):
    plain = read(tmp_path, PAGE, name)
    assert read(tmp_path, b"\xef\xbb\xbf" + PAGE.encode(), name) == plain
    assert read(tmp_path, PAGE.replace("\n", "\r\n"), name) == plain
    assert read(tmp_path, PAGE.replace("\n", "\r"), name) == plain


def refused(path: Path) -> ForgeError:
    with pytest.raises(ForgeError) as caught:
        documents.read(path)
    assert caught.value.code == 2
    return caught.value


@pytest.mark.parametrize(
    ("raw", "cause", "remedy"),
    [
        (b"one\ntwo caf\xe9\n", ":2: not UTF-8 (byte 0xe9)", "save the file as UTF-8, or exclude it"),
        (b"\xff\xfeo\0n\0", ":1: not UTF-8 (byte 0xff)", "save the file as UTF-8, or exclude it"),
        (b"one\n\xe2\x82", ":2: not UTF-8 (byte 0xe2)", "save the file as UTF-8, or exclude it"),
        (b"one\ntwo\n\0\n", ":3: holds a NUL character", "this is no text file: exclude it"),
    ],
)
@pytest.mark.parametrize("name", ["page.md", "page.txt"])
def test_what_is_no_clean_text_is_refused_with_its_line(tmp_path, raw, cause, remedy, name):
    path = tmp_path / name
    path.write_bytes(raw)
    error = refused(path)
    assert (error.cause, error.remedy) == (f"{path}{cause}", remedy)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "loop.md").symlink_to(tmp_path / "loop.md")
    (tmp_path / "dangling.md").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.md").mkdir()
    for name in ("pipe.md", "loop.md", "dangling.md", "folder.md", "nothing.md"):
        error = refused(tmp_path / name)
        assert error.cause == f"{tmp_path / name} is no regular file"
        assert error.remedy == "exclude it (data.sources: exclude)"


def test_an_unreadable_file_is_refused(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("text", encoding="utf-8")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert refused(path).cause == f"{path}: Permission denied"


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_read_or_refused(tmp_path, seed):
    noise = random.Random(seed)
    for _ in range(50):
        path = tmp_path / "noise.md"
        path.write_bytes(bytes(noise.choices(b"#>-*`|_[]()<>:QA \n\t\r~=&;\\!1" + bytes([0x80, 0xC3, 0xA9]), k=300)))
        try:
            assert isinstance(documents.read(path), list)
        except ForgeError as error:
            assert error.code == 2


@pytest.mark.parametrize("text", [">" * 5000 + " x", "- " * 2000 + "x", "[" * 5000, "*a " * 5000, "`" * 5000 + "a"])
def test_nested_marks_end_quickly(tmp_path, text):
    kept = "".join(blocks(read(tmp_path, text)))
    assert kept.count("x") == text.count("x")
    assert len(kept) >= len(text.strip()) - 1


# -- sentences --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Version 1.2 is out.\nIt is\n  good.", ["Version 1.2 is out.", "It is good."]),
        ("", []),
        (" ... ", ["..."]),
    ],
)
def test_sentences(text, parts):
    assert documents.sentences(text) == parts


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab.!? \n\t\u00e9", max_size=60))
def test_sentences_lose_nothing_but_spaces(text):
    assert " ".join(documents.sentences(text)) == " ".join(text.split())


# -- the starter's pages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(ROOT.glob("corpus/*.md")), ids=lambda path: path.stem)
def test_the_starters_pages_are_read_whole(path):
    units = documents.read(path)
    kept = blocks(units) + [name for unit in units for name in unit.path]
    for unit in units:
        kept += [text for group in unit.questions for text in (*group.wordings, group.answer)]
    marks = re.compile(r"^(Q:|A:|#+)|\*\*", flags=re.M)
    wanted = marks.sub("", path.read_text(encoding="utf-8")).split()
    assert sorted(set(wanted) - set(marks.sub("", "\n".join(kept)).split())) == []
