"""Documents to units: what belongs together under one heading, and groups of questions with one answer.

Markdown is read by markdown-it-py, so that fences, tables and lists are what the format says they are; plain
text is split at blank lines. Question groups are paragraphs of `Q:` lines (wordings of one question) and an
`A:` line; bold text in the answer is the fact that an answer must contain.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from forge.errors import ForgeError

BOLD = re.compile(r"\*\*(.+?)\*\*")


@dataclass
class Block:
    """A piece that must not be cut: a paragraph, list, table, quotation or fence. `line` counts from 1."""

    text: str
    line: int
    divisible: bool  # prose may be split between sentences, tables and code may not


@dataclass
class Questions:
    """Wordings of one question, its answer, and the facts that a right answer contains."""

    wordings: list[str]
    answer: str
    facts: list[str]
    line: int


@dataclass
class Unit:
    """What stands under one heading. `path` is the chain of headings, the page's title first."""

    file: str
    path: list[str]
    line: int
    blocks: list[Block] = field(default_factory=list)
    questions: list[Questions] = field(default_factory=list)


def read(path: Path) -> list[Unit]:
    """Units of one file, in order. Raises ForgeError (2) naming file and line when it is no clean text."""
    text = _decode(path)
    return _markdown(path, text) if path.suffix.lower() in (".md", ".markdown") else _plain(path, text)


def _decode(path: Path) -> str:
    try:
        raw = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise ForgeError(f"{path}: {error.strerror}", "make it readable, or exclude it") from None
    if raw is None:
        raise ForgeError(f"{path} is no regular file", "exclude it (data.sources: exclude)")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ForgeError(
            f"{path}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x})", "save the file as UTF-8, or exclude it"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ForgeError(f"{path}:{line}: holds a NUL character", "this is no text file: exclude it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _markdown(path: Path, text: str) -> list[Unit]:
    from markdown_it import MarkdownIt

    lines = text.split("\n")
    units = [Unit(str(path), [path.stem], 1)]
    headings: list[tuple[int, str]] = []
    # "[Term]: word" would be read as a link's address and vanish
    tokens = MarkdownIt("commonmark").enable("table").disable("reference").parse(text)
    for index, token in enumerate(tokens):
        if token.level != 0 or token.map is None:
            continue
        begin, end = token.map
        if token.type == "heading_open":
            depth = int(token.tag[1])
            headings = [item for item in headings if item[0] < depth] + [(depth, tokens[index + 1].content.strip())]
            units.append(Unit(str(path), [name for _, name in headings], begin + 1))
        elif token.type != "hr":
            source = "\n".join(lines[begin:end]).strip("\n")
            _add(units[-1], source, begin + 1, divisible=token.type == "paragraph_open")
    return [unit for unit in units if unit.blocks or unit.questions]


def _plain(path: Path, text: str) -> list[Unit]:
    unit = Unit(str(path), [path.stem], 1)
    line = 1
    for piece in re.split(r"(\n\s*\n)", text):
        if piece.strip():
            _add(unit, piece.strip("\n"), line, divisible=True)
        line += piece.count("\n")
    return [unit] if unit.blocks or unit.questions else []


def _add(unit: Unit, text: str, line: int, divisible: bool) -> None:
    if not text.strip():
        return
    for part, first in _groups(text, line) if divisible else [(text, line)]:
        group = _questions(part, first) if divisible else None
        if group:
            unit.questions.append(group)
        else:
            unit.blocks.append(Block(part, first, divisible))


def _groups(text: str, line: int) -> list[tuple[str, int]]:
    """The paragraph and its line, or several when a `Q:` follows an `A:` without a blank line between them."""
    lines, begins, answered = text.split("\n"), [0], False
    for index, content in enumerate(lines):
        if content.startswith("Q:") and answered and text.startswith("Q:"):
            begins.append(index)
            answered = False
        answered = answered or content.startswith("A:")
    return [("\n".join(lines[begin:end]), line + begin) for begin, end in zip(begins, [*begins[1:], None], strict=True)]


def _questions(text: str, line: int) -> Questions | None:
    """A group when the paragraph begins with `Q:` and has an `A:`; the answer may run over lines."""
    if not text.startswith("Q:"):
        return None
    head, mark, answer = text.partition("\nA:")
    wordings = [part.strip() for part in re.split(r"(?:^|\n)Q:", head) if part.strip()]
    if not mark or not wordings or not answer.strip():
        return None
    answer = " ".join(answer.split())
    return Questions(wordings, BOLD.sub(r"\1", answer), BOLD.findall(answer), line)


def sentences(text: str) -> list[str]:
    """Prose cut after sentence ends; joined with one space they give the text with its spaces collapsed."""
    return [part for part in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if part]
