"""Documents to units: nothing that a page says is lost, and what belongs together stays together."""

import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from forge.errors import ForgeError
from forge.reading import document_files, documents
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
    return document_files.read(path).units


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
    text = "# Words\n\n[Drone]: male\n\n[Queen]: mother\n\nThe end.\n"
    assert blocks(read(tmp_path, text)) == ["[Drone]: male", "[Queen]: mother", "The end."]
    text = text.replace("Words", "Glossary")
    assert definitions(read(tmp_path, text)) == [("Drone", "male", 3), ("Queen", "mother", 5)]
    assert blocks(read(tmp_path, text)) == ["The end."]


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


def test_every_block_knows_its_kind(tmp_path):
    assert [block.kind for unit in read(tmp_path, PAGE) for block in unit.blocks] == [
        *["prose"] * 3,
        *["table", "list", "list", "quote"],
        *["code"] * 3,
        *["prose"] * 2,
    ]


def test_a_page_in_pieces(tmp_path, monkeypatch):
    """A long text is parsed in pieces; where they end makes no difference."""
    whole = read(tmp_path, PAGE)
    for size in range(1, len(PAGE), 7):
        monkeypatch.setattr(documents, "PIECE", size)
        assert read(tmp_path, PAGE) == whole


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(LINE, FENCE, HEADING, st.just(""), st.just("```")), max_size=30), st.integers(1, 40))
def test_pieces_make_no_difference(pieces, size):
    raw = "\n".join(pieces).encode()
    whole = document_files.parse("a.md", raw)
    before, documents.PIECE = documents.PIECE, size
    try:
        assert document_files.parse("a.md", raw) == whole
    finally:
        documents.PIECE = before


# -- what is dropped, and that nothing else is ----------------------------------------------------------------


def dropped(text: str, name: str = "page.md") -> list[tuple]:
    return [(item.text, item.line, item.reason) for item in document_files.parse(name, text.encode()).dropped]


def test_a_heading_that_stands_in_no_path_is_named():
    text = "# A\n\n## B\n\n## C\n\ntext\n\n### D\n\n# E\n"
    reason = "a heading without text under it"
    assert dropped(text) == [("B", 3, reason), ("D", 9, reason), ("E", 11, reason)]
    assert dropped("# Only\n") == [("Only", 1, reason)]


def test_a_line_of_underscores_is_named():
    assert dropped("a\n\n___\n\n---\n\nb\n") == [("___", 3, "a line")]


FRONT = "---\ntitle: 'The Bees'\ntags: [a, b]\n  - c\n# note\n---\n"


def test_front_matter_is_dropped_and_its_title_stands_above_all():
    assert dropped(FRONT + "\nText.\n") == [(FRONT.rstrip(), 1, "front matter")]
    document = document_files.parse("page.md", (FRONT + "\nText.\n\n## Hives\n\nMore.\n").encode())
    assert [(unit.path, unit.line) for unit in document] == [(["The Bees"], 1), (["The Bees", "Hives"], 10)]
    assert [block.line for unit in document for block in unit.blocks] == [8, 12]
    twice = document_files.parse("page.md", (FRONT + "# The Bees\n\nText.\n").encode())
    assert [unit.path for unit in twice] == [["The Bees"]]
    assert [item.reason for item in twice.dropped] == ["front matter"]


@pytest.mark.parametrize(
    "text",
    ["---\n\nkey: a\n---\n", "---\nSome text: here\nand more\n---\n", "---\nkey: a\n", "text\n---\nkey: a\n---\n"],
)
def test_other_lines_are_no_front_matter(text):
    assert [reason for _, _, reason in dropped(text + "\nend\n") if reason == "front matter"] == []


WORDS = re.compile(r"\w+")


def said(document: documents.Document) -> list[str]:
    """Words of blocks, questions, definitions and what was dropped, headings aside, in order."""
    found = [(item.line, item.text) for item in document.dropped if item.reason != "a heading without text under it"]
    for unit in document:
        found += [(block.line, block.text) for block in unit.blocks]
        found += [(entry.line, f"{entry.term} {entry.text}") for entry in unit.definitions]
        for group in unit.questions:
            found.append((group.line, " ".join([*(f"Q {text}" for text in group.wordings), "A", group.answer])))
    return [word for _, text in sorted(found, key=lambda item: item[0]) for word in WORDS.findall(text)]


def headings(document: documents.Document) -> Counter:
    empty = [item.text for item in document.dropped if item.reason == "a heading without text under it"]
    return Counter(WORDS.findall(" ".join([*empty, *(name for unit in document for name in unit.path)])))


def real(*patterns: str, count: int = 40, largest: int = 200_000) -> list[Path]:
    """Documents of others on this machine, the same ones each time."""
    found = [path for pattern in patterns for path in sorted(Path("/").glob(pattern.lstrip("/")))]
    found = [path for path in dict.fromkeys(found) if path.is_file() and path.stat().st_size <= largest]
    return found[:: len(found) // count + 1]


LIBRARY = Path(os.__file__).parent
PACKAGES = Path(pytest.__file__).parents[1]
TEXTS = real("/usr/share/common-licenses/*", "/usr/share/doc/*/copyright", f"{PACKAGES}/**/*.txt")
PAGES = real("/usr/lib/node_modules/**/*.md", f"{PACKAGES}/**/*.md", "/usr/share/doc/**/*.md")
PROGRAMS = real(f"{LIBRARY}/*.py", f"{LIBRARY}/json/*.py", "/usr/share/bash-completion/*.sh", "/usr/include/*.h")


def parsed(path: Path) -> tuple[str, documents.Document]:
    try:
        document = document_files.read(path)
    except ForgeError as error:
        assert ": not UTF-8 (byte 0x" in error.cause
        pytest.skip(error.cause)
    return path.read_text(encoding="utf-8"), document


@pytest.mark.parametrize("path", TEXTS or [None], ids=str)
def test_every_word_of_a_real_text_is_kept_in_order(path):
    if path is None:
        pytest.skip("no Debian texts on this machine")
    text, document = parsed(path)
    assert said(document) == WORDS.findall(text)


@pytest.mark.parametrize("path", PROGRAMS or [None], ids=str)
def test_every_word_of_a_real_program_is_kept_in_order(path):
    if path is None:
        pytest.skip("no sources on this machine")
    text, document = parsed(path)
    assert said(document) == WORDS.findall(text)
    lines = text.split("\n")
    for block in document.units[0].blocks if document.units else []:
        assert lines[block.line - 1 :][: block.text.count("\n") + 1] == block.text.split("\n")


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("corpus/*.md"), *PAGES], ids=str
)
def test_every_word_of_a_real_page_is_kept_in_order(path):
    """Blocks are a part of the page's words in the same order; what is left over are its headings."""
    text, document = parsed(path)
    words, kept = iter(WORDS.findall(text)), said(document)
    assert all(word in words for word in kept)
    rest = Counter(WORDS.findall(text)) - Counter(kept)
    assert rest - headings(document) == Counter()


# -- definitions -----------------------------------------------------------------------------------------------


def definitions(units: list[documents.Unit]) -> list[tuple]:
    return [(entry.term, entry.text, entry.line) for unit in units for entry in unit.definitions]


@pytest.mark.parametrize("heading", ["Glossary", "Definitions", "TERMS", "2. Terminology", "**Terms**:"])
def test_headings_of_a_glossary(tmp_path, heading):
    units = read(tmp_path, f"# {heading}\n\nQueen: the mother.\n\n## Q\n\nDrone: a male.\n\n# Z\n\nNo: not.\n")
    assert definitions(units) == [("Queen", "the mother.", 3), ("Drone", "a male.", 7)]
    assert blocks(units) == ["No: not."]


@pytest.mark.parametrize("heading", ["Glossary of terms", "My terms", "Determination", "Conditions"])
def test_other_headings_have_no_definitions(tmp_path, heading):
    assert definitions(read(tmp_path, f"# {heading}\n\nQueen: the mother.\n")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("**queen bee**: the mother", [("queen bee", "the mother", 3)]),
        ("**queen:** the mother", [("queen", "the mother", 3)]),
        ("**queen** -- the mother", [("queen", "the mother", 3)]),
        ("queen -- the mother\nof all: bees", [("queen", "the mother\nof all: bees", 3)]),
        ("queen \u2014 the mother", [("queen", "the mother", 3)]),
        ("Queen: the mother\nDrone: a male", [("Queen", "the mother", 3), ("Drone", "a male", 4)]),
        ("Queen: the mother\nof all", [("Queen", "the mother\nof all", 3)]),
        (
            "- Queen: the mother\n- **Drone**: a male\n\n  of bees",
            [("Queen", "the mother", 3), ("Drone", "a male\n\n  of bees", 4)],
        ),
        ("* `hive` -- a box", [("`hive`", "a box", 3)]),
    ],
)
def test_forms_of_a_definition(tmp_path, text, found):
    units = read(tmp_path, f"# Glossary\n\n{text}\n")
    assert definitions(units) == found
    assert blocks(units) == []


@pytest.mark.parametrize(
    "text",
    [
        "A sentence of words.",
        "One sentence. Another one: with more",
        "a word that is far too long to be a term of any kind at all: text",
        "Q: What is this?",
        "http://x.org is a page",
        "12:30 is a time",
        "Queen:",
        "1. Queen: the mother",
        "| Queen: | mother |\n|---|---|\n| a | b |",
        "    Queen: code",
    ],
)
def test_what_is_no_definition_stays_a_block(tmp_path, text):
    units = read(tmp_path, f"# Glossary\n\n{text}\n")
    assert definitions(units) == []
    assert blocks(units) == [text]


def test_a_list_in_a_glossary_with_another_item(tmp_path):
    units = read(tmp_path, "# Glossary\n\n- Queen: the mother\n- no term here\n- Drone: a male\n")
    assert definitions(units) == [("Queen", "the mother", 3), ("Drone", "a male", 5)]
    assert [(block.text, block.line, block.kind) for block in units[0].blocks] == [("- no term here", 4, "list")]


def test_questions_in_a_glossary_stay_questions(tmp_path):
    units = read(tmp_path, "# Glossary\n\nQ: What is a queen?\nA: The **mother**.\n")
    assert groups(units) == [(["What is a queen?"], "The mother.", ["mother"])]
    assert definitions(units) == []


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
        document_files.read(path)
    assert caught.value.code == 2
    return caught.value


@pytest.mark.parametrize(
    ("raw", "cause", "remedy"),
    [
        (b"one\ntwo caf\xe9\n", ":2: not UTF-8 (byte 0xe9)", "save the file as UTF-8, or exclude it"),
        (b"\xff\xfeo\0n\0", ":1: UTF-16, not UTF-8", "save the file as UTF-8, or exclude it"),
        (b"\xfe\xff\0o\0n", ":1: UTF-16, not UTF-8", "save the file as UTF-8, or exclude it"),
        (b"\xff\xfe\0\0o\0\0\0", ":1: UTF-32, not UTF-8", "save the file as UTF-8, or exclude it"),
        (b"\0\0\xfe\xff\0\0\0o", ":1: UTF-32, not UTF-8", "save the file as UTF-8, or exclude it"),
        (b"one\n\xff two", ":2: not UTF-8 (byte 0xff)", "save the file as UTF-8, or exclude it"),
        (b"a lone\nsurrogate \xed\xa0\x80", ":2: not UTF-8 (byte 0xed)", "save the file as UTF-8, or exclude it"),
        (b"one\n\xe2\x82", ":2: not UTF-8 (byte 0xe2)", "save the file as UTF-8, or exclude it"),
        (b"one\ntwo\n\0\n", ":3: holds a NUL character", "this is no text file: exclude it"),
    ],
)
@pytest.mark.parametrize("name", ["page.md", "page.txt", "page.py", "page.rst", "page.html", "page.ipynb"])
def test_what_is_no_clean_text_is_refused_with_its_line(tmp_path, raw, cause, remedy, name):
    path = tmp_path / name
    path.write_bytes(raw)
    error = refused(path)
    assert (error.cause, error.remedy) == (f"{path}{cause}", remedy)


def test_a_byte_order_mark_inside_the_text_is_text(tmp_path):
    assert blocks(read(tmp_path, "\ufeffone \ufeff two")) == ["one \ufeff two"]


@pytest.mark.parametrize("name", ["page.md", "page.txt", "page.c", "page.rst", "page.html", "page.ipynb"])
def test_a_line_too_long_is_refused_with_its_line(tmp_path, monkeypatch, name):
    monkeypatch.setattr(documents, "LONGEST_LINE", 3 << 20)
    text = "short\n" * 700_000 + "x" * (5 << 20)
    for end in ("", "\nend"):
        path = tmp_path / name
        path.write_text(text + end, encoding="utf-8")
        error = refused(path)
        assert (error.cause, error.remedy) == (
            f"{path}:700001: one line of 5 MB",
            "break it into lines, or exclude the file",
        )


def test_lines_of_the_greatest_length_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LONGEST_LINE", 10)
    text = "0123456789\n" * 3 + "0123456789"
    assert blocks(read(tmp_path, text, "page.txt")) == [text]


def test_a_file_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LARGEST", 2 << 20)
    path = tmp_path / "page.txt"
    path.write_text("ab\n" * 699_050, encoding="utf-8")
    assert document_files.read(path).units
    path.write_text("ab\n" * 699_051, encoding="utf-8")
    error = refused(path)
    assert error.cause == f"{path} is larger than 2 MB"
    assert error.remedy == "split it, or exclude it (data.sources: exclude)"


def test_a_file_that_does_not_tell_its_size_is_read_to_the_limit(tmp_path, monkeypatch):
    path = Path("/proc/self/maps")
    if not path.is_file():
        pytest.skip("no /proc")
    assert document_files.load(path).count(b"\n") > 10
    monkeypatch.setattr(documents, "LARGEST", 10)
    with pytest.raises(ForgeError, match="is larger than"):
        document_files.load(path)


def test_a_fifo_that_takes_the_place_of_a_file_does_not_block(tmp_path, monkeypatch):
    """Between the look at a path and the opening of it, it may become anything."""
    path = tmp_path / "page.md"
    path.write_text("text", encoding="utf-8")
    status = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda self, **_: status)
    assert refused(path).cause == f"{path} is no regular file"


def test_devices_and_sockets_are_refused(tmp_path):
    import socket

    (tmp_path / "zero.md").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.md"))
        for name in ("zero.md", "socket.md"):
            assert refused(tmp_path / name).cause == f"{tmp_path / name} is no regular file"


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
            assert isinstance(document_files.read(path), documents.Document)
        except ForgeError as error:
            assert error.code == 2


@pytest.mark.parametrize("text", [">" * 5000 + " x", "- " * 2000 + "x", "[" * 5000, "*a " * 5000, "`" * 5000 + "a"])
def test_nested_marks_end_quickly(tmp_path, text):
    kept = "".join(blocks(read(tmp_path, text)))
    assert kept.count("x") == text.count("x")
    assert len(kept) >= len(text.strip()) - 1


# -- blocks as a row shows them --------------------------------------------------------------------------------


def test_blocks_as_shown(tmp_path):
    text = "import os\n\n\ndef f():\n    pass\n\ndef g():\n    pass\n"
    unit = read(tmp_path, text, "two.py")[0]
    assert [block.text for block in unit.blocks] == ["import os", "def f():\n    pass", "def g():\n    pass"]
    assert documents.shown(unit.blocks) == f"```python\n{text.rstrip()}\n```"
    assert documents.shown([unit.blocks[0], unit.blocks[2]]) == "```python\nimport os\n\n\ndef g():\n    pass\n```"
    prose = documents.Block("Words.", 1, True)
    assert documents.shown([prose, unit.blocks[0], prose]) == "Words.\n\n```python\nimport os\n```\n\nWords."
    assert documents.shown([]) == ""


@pytest.mark.parametrize(
    ("text", "marks"), [("a", "```"), ("a `` b", "```"), ("```\na\n```", "````"), ("`````", "``````")]
)
def test_a_fence_is_longer_than_what_it_holds(text, marks):
    assert documents.fence(text, "md") == f"{marks}md\n{text}\n{marks}"


# -- the starter's pages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(ROOT.glob("corpus/*.md")), ids=lambda path: path.stem)
def test_the_starters_pages_are_read_whole(path):
    units = document_files.read(path).units
    kept = blocks(units) + [name for unit in units for name in unit.path]
    for unit in units:
        kept += [text for group in unit.questions for text in (*group.wordings, group.answer)]
    marks = re.compile(r"^(Q:|A:|#+)|\*\*", flags=re.M)
    wanted = marks.sub("", path.read_text(encoding="utf-8")).split()
    assert sorted(set(wanted) - set(marks.sub("", "\n".join(kept)).split())) == []
