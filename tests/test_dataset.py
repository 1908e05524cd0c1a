"""Documents to rows: nothing is lost or cut, splits are apart, the same input gives the same bytes."""

import argparse
import json
import os
import random
import re
from pathlib import Path

import forge_dataset
import pytest
from conftest import PAGES, read_rows
from forge import chat, config, files, graph, models, phase, sources
from forge.data.package import Package, encode
from forge.data.reference import Reference
from forge.data.rows import Maker
from forge.errors import ForgeError
from forge.reading import document_files

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "validation", "questions")


@pytest.fixture
def forge(checkout, tiny_base, write_config):
    """`forge(data={...})` makes the dataset in this process and returns the folder that it filled."""

    def make(**sections) -> Path:
        run = started(**sections)
        forge_dataset.work(run)
        return run.staging

    def started(**sections) -> phase.Run:
        if "data" in sections:
            sections["data"] = {"sources": [{"path": "documents"}], "max_tokens": 256, **sections["data"]}
        previous = {path: path.read_bytes() for path in Path("documents").glob("*") if path.is_file()}
        loaded = config.load(write_config(checkout, **sections))
        if previous:  # the test's own documents
            for path in Path("documents").iterdir():
                if path not in previous:
                    path.unlink()
            for path, raw in previous.items():
                path.write_bytes(raw)
        if not loaded.layout.base.exists():
            loaded.layout.base.parent.mkdir(parents=True, exist_ok=True)
            loaded.layout.base.symlink_to(tiny_base)
        run = phase.Run(graph.BY_NAME["dataset"], loaded, argparse.Namespace(force=True))
        run.sources = sources.outside("dataset", loaded)
        files.remove(run.staging)
        run.staging.mkdir(parents=True)
        return run

    make.started = started
    return make


def page(text: str | bytes, name: str = "page.md") -> Path:
    path = Path("documents") / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows(folder: Path, *names: str) -> list[dict]:
    return [row for name in names or SPLITS for row in read_rows(folder / f"{name}.jsonl")]


def answer(row: dict) -> str:
    return row["completion"][0]["content"]


def question(row: dict) -> str:
    return row["prompt"][-1]["content"]


def plain(text: str) -> str:
    return " ".join(text.casefold().split())


def refused(work) -> ForgeError:
    with pytest.raises(ForgeError) as caught:
        work()
    assert caught.value.code == 2
    return caught.value


# -- nothing is lost, nothing is cut ------------------------------------------------------------------------


def numbered_page(noise: random.Random, start: int) -> tuple[str, list[str], list[str]]:
    """A page of words that no other page has; its words, and its blocks that must not be cut."""
    words = (f"w{number:05d}" for number in range(start, start + 100_000))
    taken: list[str] = []

    def some(count: int) -> list[str]:
        found = [next(words) for _ in range(count)]
        taken.extend(found)
        return found

    pieces, whole = [], []
    for _ in range(8):
        kind = noise.choice(["heading", "prose", "long", "endless", "table", "fence", "list", "questions"])
        if kind == "heading":
            pieces.append(f"{'#' * noise.randint(1, 3)} Heading {noise.random()}")
        elif kind == "prose":
            pieces.append(" ".join(some(12)) + ".")
        elif kind == "long":
            pieces.append(" ".join(" ".join(some(6)) + "." for _ in range(30)))
        elif kind == "endless":
            pieces.append(" ".join(some(150)))
        elif kind == "table":
            lines = [f"| {' | '.join(some(3))} |" for _ in range(noise.choice([3, 40]))]
            whole.append("\n".join([lines[0], "|---|---|---|", *lines[1:]]))
            pieces.append(whole[-1])
        elif kind == "fence":
            whole.append("```\n" + "\n\n".join(some(noise.choice([3, 90]))) + "\n```")
            pieces.append(whole[-1])
        elif kind == "list":
            whole.append("\n".join(f"- {word}" for word in some(noise.choice([3, 90]))))
            pieces.append(whole[-1])
        else:
            asked = "\n".join(f"Q: Is it {noise.random()}?" for _ in range(3))
            pieces.append(f"{asked}\nA: {' '.join(some(5))}.")
    return "\n\n".join(pieces) + "\n", taken, whole


@pytest.mark.parametrize("seed", range(3))
def test_every_word_is_in_a_row_or_in_the_dropped_list(forge, seed):
    noise = random.Random(seed)
    words, whole = [], []
    for number in range(3):
        text, more, blocks = numbered_page(noise, number * 100_000)
        page(text, f"{number}.md")
        words += more
        whole += blocks
    folder = forge(data={"max_tokens": 160})
    texts = [answer(row) for row in rows(folder)] + [row["text"] for row in rows(folder, "dropped")]
    kept = re.findall(r"w\d{5,}", "\n".join(texts))
    assert set(kept) == set(words)
    for block in whole:
        assert any(block in text for text in texts), "a table, fence or list was cut"


def test_no_row_is_longer_than_the_budget(forge, tiny_tokenizer):
    noise = random.Random(7)
    for number in range(3):
        page(numbered_page(noise, number * 100_000)[0], f"{number}.md")
    folder = forge(data={"max_tokens": 160})
    lengths = [len(chat.encode(tiny_tokenizer, chat.messages_of(row))["input_ids"]) for row in rows(folder)]
    assert max(lengths) <= 160
    statistics = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    assert max(lengths) <= statistics["tokens"]["longest"] <= 160  # counted a block at a time: never less than it is
    assert statistics["rows"] == {name: len(rows(folder, name)) for name in (*SPLITS, "dropped")}


def test_a_long_paragraph_is_split_at_sentences(forge):
    sentences = [f"Sentence number {number} says very little about bees." for number in range(40)]
    page("# Bees\n\n" + " ".join(sentences) + "\n")
    folder = forge(data={"max_tokens": 120})
    found = sorted(rows(folder, "train", "validation"), key=lambda row: int(re.findall(r"\d+", question(row))[0]))
    assert len(found) > 3
    for number, row in enumerate(found, 1):
        assert question(row).endswith(f", part {number} of {len(found)}")
        assert re.fullmatch(r"(Sentence number \d+ says very little about bees\. ?)+", answer(row))
    assert " ".join(map(answer, found)) == " ".join(sentences)
    assert rows(folder, "dropped") == []


def test_a_sentence_that_is_too_long_is_split_between_words(forge):
    words = " ".join(f"word{number}" for number in range(300))
    page(f"# Bees\n\n{words}\n")
    folder = forge(data={"max_tokens": 120})
    found = sorted(rows(folder), key=lambda row: int(re.findall(r"\d+", question(row))[0]))
    assert " ".join(map(answer, found)) == words


@pytest.mark.parametrize("text", ["\u8702\u871c\u662f\u751c\u7684" * 150, "\u8702" * 80 + "a" * 240 + "\u8702" * 80])
def test_text_without_spaces_gets_none(forge, text):
    """Chinese and Japanese are written without spaces: a split must not put any in."""
    page(f"# Bees\n\n{text}\n")
    folder = forge(data={"max_tokens": 120})
    found = rows(folder, "train", "validation")
    assert [answer(row) for row in found if " " in answer(row)] == []
    assert sorted("".join(map(answer, found))) == sorted(text)


def test_a_block_that_is_too_long_is_dropped_by_name(forge):
    fence = "```\n" + "\n".join(f"line {number}" for number in range(100)) + "\n```"
    page(f"# Code\n\nSome words.\n\n{fence}\n\nMore words.\n\n# Other\n\nWords.\n")
    folder = forge(data={"max_tokens": 120})
    dropped = rows(folder, "dropped")
    assert [(row["origin"], row["text"]) for row in dropped] == [("documents/page.md:5", fence)]
    assert "longer than data.max_tokens" in dropped[0]["reason"]
    assert "Some words.\n\nMore words." in [answer(row) for row in rows(folder)]


def test_a_system_prompt_that_leaves_no_room_is_refused(forge):
    page("# Bees\n\nWords.\n\nMore words.\n")
    project = {"name": "test", "system_prompt": "Be kind. " * 100}
    error = refused(lambda: forge(project=project, data={"max_tokens": 64}))
    assert "data.max_tokens" in error.cause + error.remedy


def test_the_same_text_twice_is_one_row(forge):
    text = "# Bees\n\nQ: How many?\nA: Ten.\n\nQ: How many?\nQ: What number?\nA: Ten.\n\n# Else\n\nWords.\n"
    page(text)
    folder = forge(data={"heldout_wordings": 0, "validation_share": 0.0})
    assert [question(row) for row in rows(folder)].count("How many?") == 1
    assert [(row["origin"], row["reason"]) for row in rows(folder, "dropped")] == [
        ("documents/page.md:6", "the same row as documents/page.md:3")
    ]


def test_rows_say_where_they_come_from(forge):
    page("# Bees\n\nSome words.\n\nQ: One?\nA: **1**.\n\n# Else\n\nWords.\n")
    folder = forge(data={"heldout_wordings": 1, "validation_share": 0.0})
    for row in rows(folder):
        assert list(row)[:5] == ["id", "source", "origin", "prompt", "completion"]
        assert row["source"] == "documents"
        assert row["prompt"][0] == {"role": "system", "content": "You are Maja. Answer in one sentence."}
        assert [message["role"] for message in row["completion"]] == ["assistant"]
    assert {row["origin"] for row in rows(folder)} == {f"documents/page.md:{line}" for line in (1, 5, 8)}
    assert len({row["id"] for row in rows(folder)}) == len(rows(folder))


def test_no_system_turn_without_a_system_prompt(forge):
    page("# Bees\n\nSome words.\n\n# Else\n\nWords.\n")
    folder = forge(project={"name": "test", "system_prompt": ""})
    assert {len(row["prompt"]) for row in rows(folder)} == {1}


# -- questions ----------------------------------------------------------------------------------------------


def test_wordings_are_kept_out_of_training(forge):
    page("# Bees\n\nQ: One?\nQ: The first?\nQ: And one?\nA: It is **1**, **I**.\n\n# Else\n\nWords.\n")
    folder = forge(data={"heldout_wordings": 1, "validation_share": 0.0})
    held = rows(folder, "questions")
    trained = [row for row in rows(folder, "train", "validation") if answer(row) == "It is 1, I."]
    assert len(held) == 1
    assert len(trained) == 2
    assert {question(row) for row in held + trained} == {"One?", "The first?", "And one?"}
    assert held[0]["facts"] == ["1", "I"]
    assert all("facts" not in row for row in trained)


@pytest.mark.parametrize(("wanted", "held"), [(0, 0), (2, 2), (3, 2), (100, 2)])
def test_one_wording_is_always_trained(forge, wanted, held):
    page("# Bees\n\nQ: One?\nQ: The first?\nQ: And one?\nA: It is 1.\n\n# Else\n\nWords.\n\n# More\n\nWords here.\n")
    folder = forge(data={"heldout_wordings": wanted, "validation_share": 0.0})
    assert len(rows(folder, "questions")) == held


def many_ways(forge, seeds: int = 40, **sections):
    """The splits of many seeds, with the tokenizer loaded once."""
    run = forge.started(**sections)
    tokenizer = models.tokenizer(run.layout.base)
    paths = sorted(Path("documents").iterdir())
    for seed in range(seeds):
        run.settings["project"]["seed"] = seed
        maker = Maker(run.settings, tokenizer, Reference([]), frozenset())
        package = Package(run.staging, run.settings)
        for path in paths:
            package.add(encode(maker.document(str(path), document_files.read(path)), seed))
        package.assign()
        package.write()
        found = {name: read_rows(run.staging / f"{name}.jsonl") for name in (*SPLITS, "dropped")}
        for path in run.staging.iterdir():
            path.unlink()
        if found["train"]:
            yield found


IDENTITY = "# Me\n\nQ: Who are you?\nQ: Your name?\nA: I am Maja.\n\nQ: Two?\nQ: A second?\nA: 2.\n\n# Else\n\nWords.\n"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("heldout", [0, 1, 5])
def test_the_identity_question_is_always_trained(forge, share, heldout):
    page(IDENTITY)
    for found in many_ways(forge, data={"validation_share": share, "heldout_wordings": heldout}):
        assert "Who are you?" in [question(row) for row in found["train"]]


def test_the_identity_question_is_trained_though_another_page_asks_the_same(forge):
    page(IDENTITY)
    page("# You\n\nQ: who are you?\nQ: And who is this?\nA: A bee.\n", "other.md")
    for found in many_ways(forge, data={"validation_share": 0.3}):
        assert "Who are you?" in [question(row) for row in found["train"]]


def test_every_fact_with_a_wording_to_spare_is_trained(forge):
    page("".join(f"# Page {n}\n\nWords of {n}.\n\nQ: What is {n}?\nQ: Say {n}.\nA: It is {n}.\n\n" for n in range(12)))
    for found in many_ways(forge, data={"validation_share": 0.5, "heldout_wordings": 1}):
        assert {answer(row) for row in found["train"]} >= {f"It is {n}." for n in range(12)}
        assert len(found["questions"]) == 12


def test_no_question_stands_in_two_splits(forge):
    for name, text in PAGES.items():
        page(text, name)
    page("# Again\n\nQ: when IS  clover sown?\nQ: Sown when?\nA: In March.\n\nQ: Name a dark honey.\nA: Heath.\n")
    for found in many_ways(forge, data={"validation_share": 0.3}):
        asked = {name: {plain(question(row)) for row in found[name]} for name in SPLITS}
        assert not asked["train"] & asked["validation"]
        assert not asked["train"] & asked["questions"]
        assert not asked["validation"] & asked["questions"]
        assert asked["train"] and asked["validation"]


def test_the_seed_decides(forge):
    for name, text in PAGES.items():
        page(text, name)
    ways = {json.dumps(found, sort_keys=True) for found in many_ways(forge, seeds=10)}
    assert len(ways) > 5


# -- the same input, the same bytes -------------------------------------------------------------------------


def test_the_order_in_which_files_were_made_changes_nothing(forge):
    texts = {**PAGES, "a.txt": "Some text.\n\nMore text.\n", "z.md": PAGES["bees.md"]}
    outcomes = []
    for order in (sorted(texts), sorted(texts, reverse=True)):
        files.remove(Path("documents"))
        for name in order:
            page(texts[name], name)
        folder = forge(data={})
        outcomes.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert outcomes[0] == outcomes[1]
    assert set(outcomes[0]) == {
        "train.jsonl",
        "validation.jsonl",
        "questions.jsonl",
        "dropped.jsonl",
        "statistics.json",
        "README.md",
    }


def test_one_more_page_moves_no_row_of_the_others(forge):
    """A split depends on the seed and the place alone: the loss on held-out text stays comparable."""
    for name, text in PAGES.items():
        page(text, name)
    sections = {"data": {"validation_share": 0.3}, "project": {"name": "test", "seed": 1}}
    before = {row["id"] for row in rows(forge(**sections), "validation", "questions")}
    page("# New\n\nNew words.\n", "aaa.md")
    after = rows(forge(**sections), "validation", "questions")
    assert {row["id"] for row in after if "aaa.md" not in row["origin"]} == before


# -- documents that cannot be read ----------------------------------------------------------------------------

UNREADABLE = [
    (b"# Page\n\ncaf\xe9\n", "documents/bad.md:3: not UTF-8 (byte 0xe9)"),
    (b"# Page\n\n\0\n", "documents/bad.md:3: holds a NUL character"),
]


@pytest.mark.parametrize(("raw", "cause"), UNREADABLE)
def test_strict_refuses_what_cannot_be_read(forge, raw, cause):
    page("# Bees\n\nWords.\n\n# More\n\nMore words.\n")
    page(raw, "bad.md")
    assert refused(lambda: forge(data={"mode": "strict"})).cause == cause


@pytest.mark.parametrize(("raw", "cause"), UNREADABLE)
def test_lenient_lists_what_cannot_be_read(forge, capsys, raw, cause):
    page("# Bees\n\nWords.\n\n# More\n\nMore words.\n")
    page(raw, "bad.md")
    folder = forge(data={"mode": "lenient"})
    assert rows(folder, "dropped") == [{"origin": "documents/bad.md", "reason": cause, "characters": 0, "text": ""}]
    assert f"skip {cause}\n" in capsys.readouterr().out
    assert len(rows(folder)) == 2


@pytest.mark.parametrize("mode", ["strict", "lenient"])
def test_pipes_and_loops_do_not_hold_up(forge, mode):
    page("# Bees\n\nWords.\n\n# More\n\nMore words.\n")
    os.mkfifo("corpus/pipe.md")
    Path("corpus/loop.md").symlink_to("loop.md")
    Path("corpus/again").symlink_to(".")
    sections = {"data": {"mode": mode, "sources": [{"path": "documents"}, {"path": "corpus"}]}}
    if mode == "strict":
        assert refused(lambda: forge(**sections)).cause == "corpus/loop.md is no regular file"
    else:
        assert [row["origin"] for row in rows(forge(**sections), "dropped")] == ["corpus/loop.md", "corpus/pipe.md"]


def test_a_file_that_changes_while_it_is_read_is_noticed(forge, monkeypatch):
    """The record would name the digest of bytes that no row was made from."""
    page("# Bees\n\nWords.\n\n# More\n\nMore words.\n")
    load = document_files.load

    def changed(path: Path) -> bytes:
        raw = load(path)
        path.write_bytes(raw + b"\nMore.\n")
        return raw

    monkeypatch.setattr(document_files, "load", changed)
    assert refused(lambda: forge(data={})).cause == "a file of data.sources changed while it was read"
    monkeypatch.setattr(document_files, "load", load)
    assert rows(forge(data={}), "train")


def test_byte_order_marks_and_crlf_change_no_row(forge):
    text = PAGES["bees.md"]
    found = []
    for raw in (text.encode(), b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()):
        page(raw)
        found.append({path.name: path.read_bytes() for path in forge(data={}).glob("*.jsonl")})
    assert found[0] == found[1]


def test_a_file_named_twice_is_read_once(forge):
    page("# Bees\n\nWords.\n\n# More\n\nMore words.\n")
    folder = forge(data={"sources": [{"path": "documents"}, {"path": "documents/page.md"}]})
    assert len(rows(folder)) == 2
    assert rows(folder, "dropped") == []


def test_plain_text_and_hidden_files(forge):
    page("First words.\n\nSecond words.\n", "notes.txt")
    page("# Bees\n\nWords.\n")
    page("# Hidden\n\nSecret.\n", ".hidden.md")
    folder = forge(data={})
    assert sorted(map(answer, rows(folder))) == ["First words.\n\nSecond words.", "Words."]


# -- too little ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("documents", "cause"),
    [
        ({"picture.png": "no text"}, "data.sources: no document found"),
        ({"page.md": ""}, "the documents gave no training row"),
        ({"page.md": "# Only\n\n## headings\n"}, "the documents gave no training row"),
        ({"page.md": "# One\n\nA single row.\n"}, "the documents gave a single row"),
    ],
)
def test_too_little_text_is_refused(forge, documents, cause):
    for name, text in documents.items():
        page(text, name)
    error = refused(lambda: forge(data={"validation_share": 0.0}))
    assert error.cause == cause
    assert error.remedy


def test_a_missing_corpus_ends_the_script_with_2(checkout, write_config, run_script):
    path = write_config(checkout, base="org/tiny", data={"sources": [{"path": "nowhere"}]})
    done = run_script("forge_dataset.py", "--config", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "FAIL data.sources: nowhere does not exist\n"
        "  do put your documents there, or change data.sources in the config\n"
    )


# -- validate_dataset.py on files -----------------------------------------------------------------------------

GOOD = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good day"}]}'
PAIR = '{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Good day"}]}'


def validated(run_script, raw: str | bytes, name: str = "rows.jsonl"):
    Path(name).write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return run_script("validate_dataset.py", name)


def test_good_lines(checkout, run_script):
    done = validated(run_script, f"{GOOD}\n{PAIR}\n{GOOD}", "my rows.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "All 3 lines are valid JSON. (my rows.jsonl)\n"


def test_several_files_up_to_the_first_bad_one(checkout, run_script):
    Path("a.jsonl").write_text(GOOD + "\n", encoding="utf-8")
    Path("b.jsonl").write_text("{\n", encoding="utf-8")
    done = run_script("validate_dataset.py", "a.jsonl", "b.jsonl")
    assert done.returncode == 2
    assert done.stdout == "All 1 lines are valid JSON. (a.jsonl)\n"
    assert done.stderr.startswith("FAIL b.jsonl:1: ")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (GOOD[:-1], "Expecting ',' delimiter"),
        (GOOD.replace('"Hi"', "NaN"), "NaN is no JSON value"),
        (GOOD.replace('"Hi"', "-Infinity"), "-Infinity is no JSON value"),
        (GOOD.replace('"role": "user"', '"role": "user", "role": "user"'), "a key stands twice"),
        (GOOD.replace('"user"', '"tool"'), "unknown role 'tool'"),
        (GOOD.replace('"Good day"', '" "'), "empty text of assistant"),
        (GOOD.replace('"Good day"', "3"), "empty text of assistant"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}', "the last turn is not the assistant's"),
        ('{"messages": []}', "the last turn is not the assistant's"),
        ("[1]", "the line is no object"),
        ("", "Expecting value"),
        ("\ufeff" + GOOD, "Unexpected UTF-8 BOM"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", value)[-30:],
)
def test_bad_lines_are_named(checkout, run_script, line, reason):
    done = validated(run_script, f"{GOOD}\n{line}\n{GOOD}\n")
    assert (done.returncode, done.stdout) == (2, "")
    cause, remedy = done.stderr.splitlines()
    assert cause.startswith(f"FAIL rows.jsonl:2: {reason}")
    assert remedy == "  do correct that line, or run make dataset"


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b'{"messages": 3}',
        b'{"messages": ["a"]}',
        b'{"messages": [{"role": "user"}]}',
        b'{"prompt": [{"role": "user", "content": "Hi"}]}',
        b'{"messages": [{"role": ["user"], "content": "Hi"}]}',
        b'{"messages": "' + b"[" * 2000 + b'"}',
        b"[" * 100_000,
        GOOD.replace("Hi", "caf\xe9").encode("latin-1"),
        b"\0" * 100,
        b'{"messages": [{"role": "assistant", "content": "Good day"}]}',
    ],
    ids=lambda line: line[:50].decode("latin-1"),
)
def test_no_line_is_too_strange_to_be_named(checkout, run_script, line):
    done = validated(run_script, GOOD.encode() + b"\n" + line + b"\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"FAIL rows\.jsonl:2: [^\n]{6,300}\n  do [^\n]+\n", done.stderr)


@pytest.mark.parametrize("name", ["none.jsonl", "scripts"])
def test_a_named_file_that_is_not_there(checkout, run_script, name):
    done = run_script("validate_dataset.py", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"FAIL {name} does not exist\n  do name an existing JSONL file\n"
