"""Documents to units: what belongs together under one heading, and groups of questions with one answer.

Markdown is read by markdown-it-py, so that fences, tables and lists are what the format says they are; plain
text is split at blank lines; every other format is read in `readers`. Question groups are paragraphs of `Q:` lines
(wordings of one question) and an `A:` line; bold text in the answer is the fact that an answer must contain.
Definitions are `**term**: text`, `term -- text` or `Term: text` under a heading such as Glossary, and the definition
lists of HTML and reStructuredText.

Nothing that a document says is lost: each word stands in a unit (path, blocks, questions, definitions) or in
`Document.dropped` with the reason.
"""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from forge.errors import ForgeError

LARGEST = 256 << 20  # bytes of a file, and of what a Word file unpacks to
LONGEST_LINE = 64 << 20  # bytes: a longer one is a dump, not a text
PIECE = 1 << 20  # characters of Markdown that are parsed at once: 100 MB of tokens
LONGEST_CODE = 1200  # characters of a block of source code: about 300 tokens of Qwen2; a row has 512 by default

BOLD = re.compile(r"\*\*(.+?)\*\*")
GLOSSARY = re.compile(r"[\W\d_]*(?:glossary|definitions|terms|terminology)\W*", re.IGNORECASE)
DASH = r"(?:--|[\u2013\u2014])"
TERM = re.compile(
    rf"""\s*(?: \*\*(?P<bold>[^*\n]+?)(?:\*\*\s*(?::|{DASH})|:\*\*)  # **term**: or **term:**
    | (?P<plain>[^\s:*][^:\n]{{0,59}}?)(?P<mark>\s+{DASH}|:) )       # term -- or Term:
    \s+(?P<text>\S.*)""",
    re.VERBOSE | re.DOTALL,
)
BULLET = re.compile(r"\A\s*[-+*]\s+")
FRONT_END = re.compile(r"^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.MULTILINE)
TITLE = re.compile(r"^title[ \t]*:[ \t]*(['\"]?)(\S.*?)\1[ \t]*$", re.MULTILINE)
KEY = re.compile(r"[\w.-]+[ \t]*:(?:\s|$)")
KINDS = {
    "paragraph_open": "prose",
    "table_open": "table",
    "fence": "code",
    "code_block": "code",
    "bullet_list_open": "list",
    "ordered_list_open": "list",
    "blockquote_open": "quote",
    "html_block": "prose",
}
BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(slots=True)
class Block:
    """A piece that must not be cut: a paragraph, list, table, quotation or fence.

    `line` counts from 1: lines of a text, paragraphs of a Word file, pages of a PDF, cells of a notebook.
    A `language` means bare source code, which `shown` puts into a fence.
    """

    text: str
    line: int
    divisible: bool  # prose may be split between sentences, tables and code may not
    kind: str = "prose"  # prose, table, code, list or quote
    language: str = ""


@dataclass(slots=True)
class Questions:
    """Wordings of one question, its answer, and the facts that a right answer contains."""

    wordings: list[str]
    answer: str
    facts: list[str]
    line: int


@dataclass(slots=True)
class Definition:
    """A term and what it means."""

    term: str
    text: str
    line: int


@dataclass(slots=True)
class Unit:
    """What stands under one heading. `path` is the chain of headings, the page's title first."""

    file: str
    path: list[str]
    line: int
    blocks: list[Block] = field(default_factory=list)
    questions: list[Questions] = field(default_factory=list)
    definitions: list[Definition] = field(default_factory=list)
    place: str | None = None  # "page 3" where a format has no lines
    kind: str = "page"  # page, code, notebook or pdf

    @property
    def origin(self) -> str:
        """Where it stands, for people: `file:line`, or `file, page 3`."""
        return f"{self.file}, {self.place}" if self.place else f"{self.file}:{self.line}"


@dataclass(slots=True)
class Dropped:
    """Text that is on purpose in no unit; `line` as in Block."""

    text: str
    line: int
    reason: str


@dataclass(slots=True)
class Document:
    """Units of one file, in order; iterating gives them. `dropped` is sorted by line."""

    units: list[Unit]
    dropped: list[Dropped]

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.units)


# -- bytes to text ---------------------------------------------------------------------------------------------


def too_large(name: str, limit: int) -> ForgeError:
    return ForgeError(f"{name} is larger than {limit >> 20} MB", "split it, or exclude it (data.sources: exclude)")


def decode(name: str, raw: bytes, charset: str = "UTF-8") -> str:
    """Text with line ends as `\\n` and without a byte order mark.

    Raises ForgeError (2) naming the line of a byte that is not `charset`, of a NUL and of a line over LONGEST_LINE.
    """
    for mark, found in BYTE_ORDER_MARKS.items():
        if raw.startswith(mark):
            raise ForgeError(f"{name}:1: {found}, not UTF-8", "save the file as UTF-8, or exclude it")
    _refuse_long_lines(name, raw)
    try:
        text = raw.decode("utf-8-sig" if charset == "UTF-8" else charset)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ForgeError(
            f"{name}:{line}: not {charset} (byte 0x{raw[error.start]:02x})", "save the file as UTF-8, or exclude it"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ForgeError(f"{name}:{line}: holds a NUL character", "this is no text file: exclude it")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _refuse_long_lines(name: str, raw: bytes) -> None:
    begin = 0
    while len(raw) - begin > LONGEST_LINE:
        end = raw.rfind(b"\n", begin, begin + LONGEST_LINE + 1)
        if end < 0:
            line, stop = raw.count(b"\n", 0, begin) + 1, raw.find(b"\n", begin)
            size = (stop if stop >= 0 else len(raw)) - begin
            raise ForgeError(f"{name}:{line}: one line of {size >> 20} MB", "break it into lines, or exclude the file")
        begin = end + 1


def sound(text: str) -> str:
    """Text of a library without lone surrogates and NUL, which no UTF-8 file can hold: U+FFFD stands for them."""
    if text.isascii():
        return text.replace("\0", "\ufffd")
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole.replace("\0", "\ufffd")


# -- collecting units ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Heading:
    depth: int
    text: str
    line: int
    kept: bool = False


class Builder:
    """Collects what one file says, in order; `document()` gives its units.

    `root` is the path of what stands above the first heading (the file's name without suffix, if it is empty).
    With a `place` ("page", "cell", "paragraph") a unit's place is that word and its line.
    """

    def __init__(self, file: str, kind: str = "page", place: str = "", root: str = ""):
        self.file, self.kind, self.place = file, kind, place
        self.root = root or Path(file).stem
        self.line: int | None = None  # stands for every line while it is set: a notebook's cell, a PDF's page
        self._chain: list[_Heading] = []
        self._headings: list[_Heading] = []
        self._sections: list[tuple[Unit, list[_Heading]]] = []
        self._dropped: list[Dropped] = []
        self._open([self.root], 1)

    def _open(self, path: list[str], line: int) -> None:
        line = self.line or line
        place = f"{self.place} {line}" if self.place else None
        self.unit = Unit(self.file, path, line, place=place, kind=self.kind)
        self._sections.append((self.unit, self._chain))
        self._glossary = any(GLOSSARY.fullmatch(heading.text) for heading in self._chain)

    def heading(self, depth: int, text: str, line: int) -> None:
        """What follows stands under this heading, and under those above it of lesser depth."""
        heading = _Heading(depth, text, self.line or line, kept=depth == 0)  # that one is listed with the front matter
        self._headings.append(heading)
        above = [above for above in self._chain if above.depth < depth and (above.depth or above.text != text)]
        self._chain = [*above, heading]
        self._open([above.text for above in self._chain], line)

    def title(self, text: str, line: int) -> None:
        """What stands above the first heading belongs to this title, not to the file's name."""
        heading = _Heading(0, text, self.line or line)
        self._headings.append(heading)
        self._sections[0] = (self.unit, [heading])
        self.unit.path = [text]

    def page(self, number: int) -> None:
        """What follows stands on this page of a PDF."""
        self.line = number
        self._open([self.root, f"page {number}"], number)

    def prose(self, text: str, line: int) -> None:
        """A paragraph: question groups and a glossary's definitions where it is such, else a block."""
        if not text.strip():
            return
        for part, first in _groups(text, line) if text.startswith("Q:") else [(text, line)]:
            place = self.line or first
            if group := _questions(part, place):
                self.unit.questions.append(group)
            elif self._glossary and (found := _definitions(part, first)):
                for entry in found:
                    self.define(entry.term, entry.text, entry.line)
            else:
                self.unit.blocks.append(Block(part, place, divisible=True))

    def paragraphs(self, text: str, line: int = 1) -> None:
        """Plain text: paragraphs with blank lines between them."""
        for piece in re.split(r"(\n\s*\n)", text):
            if piece.strip():
                self.prose(piece.strip("\n"), line + len(piece) - len(piece.lstrip("\n")))
            line += piece.count("\n")

    def block(self, text: str, line: int, kind: str, language: str = "") -> None:
        """What must not be cut: a table, list, quotation, fence, or source code of a language."""
        if text.strip():
            self.unit.blocks.append(Block(text, self.line or line, divisible=False, kind=kind, language=language))

    def listing(self, text: str, line: int, items: Callable[[], list[tuple[str, int]]]) -> None:
        """A list; `items()` gives its items with their lines, and is called under a glossary's heading only."""
        if not self._glossary:
            self.block(text, line, "list")
            return
        for item, first in items():
            found = _definition(BULLET.sub("", item, count=1), first)
            if found:
                self.define(found.term, found.text, found.line)
            else:
                self.block(item, first, "list")

    def define(self, term: str, text: str, line: int) -> None:
        """An entry of a definition list."""
        self.unit.definitions.append(Definition(term, text, self.line or line))

    def drop(self, text: str, line: int, reason: str) -> None:
        """Text that is on purpose in no unit."""
        self._dropped.append(Dropped(text, self.line or line, reason))

    def document(self) -> Document:
        """Units that say something, and everything dropped: headings that stand in no unit's path, too."""
        units = []
        for unit, chain in self._sections:
            if unit.blocks or unit.questions or unit.definitions:
                units.append(unit)
                for heading in chain:
                    heading.kept = True
        lost = [heading for heading in self._headings if not heading.kept and heading.text]
        empty = [Dropped(heading.text, heading.line, "a heading without text under it") for heading in lost]
        return Document(units, sorted([*self._dropped, *empty], key=lambda dropped: dropped.line))


def _groups(text: str, line: int) -> list[tuple[str, int]]:
    """The paragraph and its line, or several when a `Q:` follows an `A:` without a blank line between them."""
    lines, begins, answered = text.split("\n"), [0], False
    for index, content in enumerate(lines):
        if content.startswith("Q:") and answered:
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


def _definitions(text: str, line: int) -> list[Definition]:
    """A glossary's paragraph: one definition a line when all lines are of one form, else one over all lines."""
    lines = text.split("\n")
    matches = [TERM.match(content) for content in lines]
    if all(matches) and len({(bool(match["bold"]), (match["mark"] or "").strip()) for match in matches}) == 1:
        found = [_definition(content, line + index) for index, content in enumerate(lines)]
        if all(found):
            return found
    whole = _definition(text, line)
    return [whole] if whole else []


def _definition(text: str, line: int) -> Definition | None:
    """A term is short and no sentence; `Q` and `A` are marks of question groups."""
    match = TERM.match(text)
    if not match:
        return None
    term = (match["bold"] or match["plain"]).strip()
    if re.search(r"[.!?;]\s", term) or len(term.split()) > 8 or term in ("Q", "A"):
        return None
    bare = term[1:-1].strip() if term[0] == "[" and term[-1] == "]" else term
    return Definition(bare, match["text"].rstrip(), line) if bare else None


# -- Markdown and plain text -----------------------------------------------------------------------------------


def page(name: str, raw: bytes) -> Builder:
    builder, text = Builder(name), decode(name, raw)
    end = _front_matter(text)
    if end:
        front = text[:end]
        builder.drop(front.rstrip("\n"), 1, "front matter")
        if title := TITLE.search(front):
            builder.heading(0, title[2], 1)  # above every heading of the page
        text = "\n" * front.count("\n") + text[end:]
    markdown(builder, text)
    return builder


def plain(name: str, raw: bytes) -> Builder:
    builder = Builder(name)
    builder.paragraphs(decode(name, raw))
    return builder


def _front_matter(text: str) -> int:
    """Where the YAML ends that site generators keep at a page's top; 0 without. Markdown would see a heading in it."""
    close = FRONT_END.search(text, 4) if text.startswith("---\n") else None
    lines = text[4 : close.start()].split("\n")[:-1] if close else []
    if not lines or not KEY.match(lines[0]) or not all(KEY.match(line) or line[:1] in ("", *" \t-#") for line in lines):
        return 0
    return close.end()


@functools.cache
def _parser():
    """Without its inline rule, which nothing here reads, markdown-it-py takes half the time."""
    from markdown_it import MarkdownIt

    # "[Term]: word" would be read as a link's address and vanish
    return MarkdownIt("commonmark").enable("table").disable(["reference", "inline", "text_join"])


def markdown(builder: Builder, text: str) -> None:
    """Put the units of a Markdown text into `builder`, below the headings that it already has.

    A long text is read in pieces. The last block of a piece may go on in the next one and is read again there; what
    stands before it is final, as CommonMark's blocks are told from the lines up to their end.
    """
    begin, line, size = 0, 1, PIECE
    while begin < len(text):
        end = text.find("\n", begin + size) + 1 or len(text)
        piece = text if end - begin == len(text) else text[begin:end]
        tokens, lines = _parser().parse(piece), piece.split("\n")
        last = max((token.map[0] for token in tokens if _top(token)), default=0)
        done = len(lines) if end == len(text) else last
        if done:
            _blocks(builder, tokens, lines, line, done)
            begin, line, size = begin + sum(map(len, lines[:done])) + done, line + done, PIECE
        else:
            size *= 2


def _top(token) -> bool:
    return token.level == 0 and token.map is not None


def _blocks(builder: Builder, tokens: list, lines: list[str], line: int, done: int) -> None:
    """The blocks that begin before lines[done]; lines[0] is line `line` of the text."""
    for index, token in enumerate(tokens):
        if not _top(token) or token.map[0] >= done:
            continue
        begin, end = token.map
        place = begin + line
        if token.type == "heading_open":
            builder.heading(int(token.tag[1]), tokens[index + 1].content.strip(), place)
            continue
        source = "\n".join(lines[begin:end]).strip("\n")
        if token.type == "paragraph_open":
            builder.prose(source, place)
        elif token.type == "bullet_list_open":  # an ordered one's numbers would be lost in a definition
            builder.listing(source, place, functools.partial(_items, tokens, index, lines, line))
        elif token.type != "hr":
            builder.block(source, place, KINDS[token.type])
        elif "_" in source:  # ___ is a word to a regular expression
            builder.drop(source, place, "a line")


def _items(tokens: list, index: int, lines: list[str], line: int) -> list[tuple[str, int]]:
    """Source and line of each item of the list that begins at tokens[index]."""
    items = []
    for token in tokens[index + 1 :]:
        if token.level == 0:
            break
        if token.type == "list_item_open" and token.level == 1:
            begin, end = token.map
            items.append(("\n".join(lines[begin:end]).strip("\n"), begin + line))
    return items


# -- blocks to text --------------------------------------------------------------------------------------------


def fence(text: str, language: str = "") -> str:
    """Markdown that shows `text` as it is, backticks in it included."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    marks = "`" * (longest + 1)
    return f"{marks}{language}\n{text}\n{marks}"


def shown(blocks: list[Block]) -> str:
    """Blocks as a row shows them: a blank line between two, neighbouring pieces of source code in one fence."""
    texts: list[tuple[str, str]] = []
    for last, block in zip([None, *blocks], blocks, strict=False):
        text = block.text
        if block.language and last is not None and last.language == block.language:
            between = block.line - last.line - last.text.count("\n")
            text = texts.pop()[0] + "\n" * min(max(between, 1), 3) + text  # of one that is missing, two blank lines
        texts.append((text, block.language))
    return "\n\n".join(fence(text, language) if language else text for text, language in texts)
