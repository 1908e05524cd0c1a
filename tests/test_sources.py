"""What the config's sources name: which files, in which order, and one digest that sees every change."""

import json
import os
import time
from pathlib import Path

import pytest
from forge import config, graph, manifest, schema, sources
from forge.errors import ForgeError


def source(path: str | Path, **more) -> dict:
    return schema.Documents(path=str(path), **more).model_dump()


def names(folder: Path, **more) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sources.files_of(source(folder, **more))]


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "my corpus"
    for name in ("b.md", "a.txt", "deep/er/c.md", "deep/d e.md", "picture.png", ".hidden.md", ".git/x.md", "e.MD"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}", encoding="utf-8")
    return folder


# -- which files -----------------------------------------------------------------------------------------


def test_markdown_and_text_in_order_of_their_names_without_hidden_ones(corpus):
    assert names(corpus) == ["a.txt", "b.md", "deep/d e.md", "deep/er/c.md"]


@pytest.mark.parametrize(
    ("include", "exclude", "found"),
    [
        (["*.md"], [], ["b.md", "deep/d e.md", "deep/er/c.md"]),
        (["**/*"], ["**/*.png", "*.txt"], ["b.md", "deep/d e.md", "deep/er/c.md", "e.MD"]),
        (["deep/**"], [], ["deep/d e.md", "deep/er/c.md"]),
        (["**/*.md"], ["deep/*"], ["b.md"]),
        (["**/c.md"], [], ["deep/er/c.md"]),
        (["nothing"], [], []),
    ],
)
def test_include_and_exclude(corpus, include, exclude, found):
    assert names(corpus, include=include, exclude=exclude) == found


def test_a_file_is_a_source_whatever_its_name(corpus):
    assert sources.files_of(source(corpus / "picture.png")) == [corpus / "picture.png"]


def test_a_tilde_is_the_home_folder(corpus, monkeypatch):
    monkeypatch.setenv("HOME", str(corpus.parent))
    assert sources.files_of(source("~/my corpus"))[0] == corpus / "a.txt"


def test_links(corpus):
    (corpus / "link.md").symlink_to(corpus / "picture.png")
    (corpus / "again").symlink_to(corpus)  # a loop
    (corpus / "deep/up").symlink_to("..")
    assert names(corpus) == ["a.txt", "b.md", "deep/d e.md", "deep/er/c.md", "link.md"]
    (corpus.parent / "root").symlink_to(corpus)
    assert len(names(corpus.parent / "root")) == 5


@pytest.mark.parametrize("kind", ["missing", "pipe"])
def test_a_source_that_is_neither_folder_nor_file(tmp_path, kind):
    path = tmp_path / "corpus"
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(ForgeError) as caught:
        sources.files_of(source(path))
    assert caught.value.code == 2
    assert caught.value.cause == f"data.sources: {path} does not exist"
    assert caught.value.remedy == "put your documents there, or change data.sources in the config"


# -- one digest -------------------------------------------------------------------------------------------


def scan(folder: Path, cache: Path | None = None) -> str:
    return sources.scan([source(folder)], cache)


def test_the_digest_sees_every_change(corpus):
    seen = [scan(corpus)]
    (corpus / "b.md").write_text("text of B.md", encoding="utf-8")
    seen.append(scan(corpus))
    (corpus / "b.md").rename(corpus / "c.md")
    seen.append(scan(corpus))
    (corpus / "c.md").unlink()
    seen.append(scan(corpus))
    (corpus / "c.md").write_text("", encoding="utf-8")
    seen.append(scan(corpus))
    assert len(set(seen)) == len(seen)


def test_the_digest_does_not_see_times_nor_what_is_left_out(corpus):
    before = scan(corpus)
    os.utime(corpus / "b.md", (1, 1))
    (corpus / "picture.png").write_text("another", encoding="utf-8")
    (corpus / ".git/x.md").unlink()
    assert scan(corpus) == before


def test_what_cannot_be_read_is_part_of_the_digest(corpus):
    before = scan(corpus)
    os.mkfifo(corpus / "pipe.md")
    with_pipe = scan(corpus)
    (corpus / "loop.md").symlink_to("loop.md")
    with_loop = scan(corpus)
    assert len({before, with_pipe, with_loop}) == 3


def test_the_cache_gives_the_same_digest_and_forgets_what_is_gone(corpus, tmp_path):
    cache = tmp_path / "build/sources.cache"
    first = scan(corpus, cache)
    assert scan(corpus, cache) == first == scan(corpus)
    assert len(json.loads(cache.read_text(encoding="utf-8"))) == 4
    (corpus / "b.md").unlink()
    assert scan(corpus, cache) == scan(corpus)
    assert len(json.loads(cache.read_text(encoding="utf-8"))) == 3


def test_the_cache_is_written_only_when_something_changed(corpus, tmp_path):
    cache = tmp_path / "sources.cache"
    scan(corpus, cache)
    os.utime(cache, (1000, 1000))
    scan(corpus, cache)
    assert cache.stat().st_mtime == 1000


def test_a_changed_file_of_the_same_size_is_seen_through_the_cache(corpus, tmp_path):
    cache = tmp_path / "sources.cache"
    first = scan(corpus, cache)
    (corpus / "b.md").write_text("text of B.md", encoding="utf-8")
    os.utime(corpus / "b.md", ns=(time.time_ns(), time.time_ns() + 1_000_000))
    assert scan(corpus, cache) != first


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 3}', "\x00"])
def test_a_damaged_cache_is_no_problem(corpus, tmp_path, text):
    cache = tmp_path / "sources.cache"
    cache.write_text(text.replace('"a"', json.dumps(str(corpus / "b.md"))), encoding="utf-8")
    assert scan(corpus, cache) == scan(corpus)


def test_a_file_whose_name_is_no_utf8(corpus):
    """Old Linux systems and unpacked archives leave such names: read, or refused by name, but no crash."""
    path = Path(os.fsdecode(os.fsencode(corpus) + b"/caf\xe9.md"))
    path.write_text("text", encoding="utf-8")
    try:
        assert scan(corpus)
    except ForgeError as error:
        assert error.code == 2
        assert "caf" in error.cause


# -- the phases that read something from outside --------------------------------------------------------------


def test_only_four_phases_read_from_outside(checkout, write_config):
    (checkout / "template.jinja").write_text("{{ messages }}", encoding="utf-8")
    path = write_config(
        checkout, base="org/tiny", model={"base_model_name": "org/tiny", "chat_template": "template.jinja"}
    )
    loaded = config.load(path)
    found = {row.name for row in graph.PHASES if sources.outside(row.name, loaded) is not None}
    assert found == {"model", "dataset", "evaluate", "modelfile"}
    assert (checkout / "build/test/sources.cache").is_file()


def test_an_edited_template_makes_its_phase_stale(checkout, write_config):
    loaded = config.load(write_config(checkout, base="org/tiny"))
    before = sources.outside("modelfile", loaded)
    template = checkout / "Modelfile.template"
    template.write_text(template.read_text(encoding="utf-8") + "# more\n", encoding="utf-8")
    assert sources.outside("modelfile", loaded) != before
    assert manifest.why_stale(graph.BY_NAME["modelfile"], loaded, None) == "it was not done yet"
