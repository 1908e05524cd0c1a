"""Readers of every format but Markdown and plain text: bytes to a filled `documents.Builder`.

| format | library | what becomes of it |
|---|---|---|
| HTML, reStructuredText | see `markup`, `rst` | headings, paragraphs, lists, tables, code, definitions |
| Word (.docx) | mammoth | HTML, read as such; headers, footers, comments and pictures are left out |
| PDF | pypdf | the text of each page |
| notebooks (.ipynb) | json | Markdown cells as pages, code cells as fences; outputs are dropped, and listed |
| source code | none | pieces divided at blank lines in front of a line that begins at column 0 |

Nothing is executed or fetched: macros, scripts, links, included files and pictures of a document stay untouched.
The libraries are imported where they are needed, so a format costs nothing as long as no file has it.
"""

import io
import json
import re
from pathlib import Path

from forge.errors import ForgeError
from forge.reading import documents
from forge.reading.documents import Builder

LARGEST_TREE = 32 << 20  # bytes that a library may turn into a tree of up to 50 times the size
PARAGRAPH = re.compile(r"(?:<(?:table|thead|tbody|tr|th|td|ul|ol|li|blockquote)[^>]*>)*<(?:p|h[1-6]|li|pre)[ >]")
MARKS = re.compile(r"[`*_|]")
# In a paragraph. docutils takes 6 s for so many that never end, four times that for twice as many; such a file is
# read as plain text.
MOST_MARKS = 10_000
LANGUAGES = {
    ".asm": "asm",
    ".awk": "awk",
    ".bash": "bash",
    ".bat": "bat",
    ".c": "c",
    ".cc": "cpp",
    ".cfg": "ini",
    ".clj": "clojure",
    ".cmake": "cmake",
    ".conf": "ini",
    ".cpp": "cpp",
    ".cs": "csharp",
    ".css": "css",
    ".cu": "cuda",
    ".cxx": "cpp",
    ".dart": "dart",
    ".el": "elisp",
    ".erl": "erlang",
    ".ex": "elixir",
    ".exs": "elixir",
    ".f90": "fortran",
    ".fish": "fish",
    ".go": "go",
    ".gradle": "groovy",
    ".graphql": "graphql",
    ".groovy": "groovy",
    ".h": "c",
    ".hh": "cpp",
    ".hpp": "cpp",
    ".hs": "haskell",
    ".ini": "ini",
    ".java": "java",
    ".jinja": "jinja",
    ".jl": "julia",
    ".js": "javascript",
    ".json": "json",
    ".jsx": "jsx",
    ".kt": "kotlin",
    ".less": "less",
    ".lisp": "lisp",
    ".lua": "lua",
    ".mjs": "javascript",
    ".mk": "make",
    ".ml": "ocaml",
    ".nix": "nix",
    ".php": "php",
    ".pl": "perl",
    ".pm": "perl",
    ".proto": "protobuf",
    ".ps1": "powershell",
    ".py": "python",
    ".pyi": "python",
    ".pyx": "cython",
    ".r": "r",
    ".rb": "ruby",
    ".rs": "rust",
    ".scala": "scala",
    ".scss": "scss",
    ".sh": "sh",
    ".sql": "sql",
    ".svelte": "svelte",
    ".swift": "swift",
    ".tcl": "tcl",
    ".tf": "hcl",
    ".toml": "toml",
    ".ts": "typescript",
    ".tsx": "tsx",
    ".vim": "vim",
    ".vue": "vue",
    ".xml": "xml",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".zig": "zig",
    ".zsh": "zsh",
}
PACKAGES = {"bs4": "beautifulsoup4"}  # where a module is not named like its package
WORD_STYLES = "\n".join(
    [
        "p[style-name='Title'] => h1:fresh",
        *(
            f"p[style-name='{name} {depth}'] => h{depth + 1}:fresh"
            for depth in range(1, 6)
            for name in ("heading", "Heading")
        ),
        *(f"p.Heading{depth} => h{depth + 1}:fresh" for depth in range(1, 6)),
        *(f"p[style-name='{name}'] => blockquote > p:fresh" for name in ("Quote", "Intense Quote")),
        *(
            f"p[style-name='{name}'] => pre:separator('\\n')"
            for name in ("HTML Preformatted", "Source Code", "Plain Text")
        ),
        "br[type='page'] => ",
    ]
)


def html(name: str, raw: bytes) -> Builder:
    """A page of HTML in UTF-8 or in the character set that it declares."""
    from forge.reading import markup

    refuse_large(name, len(raw))
    builder = Builder(name)
    markup.fill(builder, markup.decode(name, raw))
    return builder


def restructured_text(name: str, raw: bytes) -> Builder:
    """reStructuredText; directives and roles that docutils does not know (Sphinx's) are kept as text."""
    from forge.reading import markup, rst

    refuse_large(name, len(raw))
    builder, text = Builder(name), documents.decode(name, raw)
    if any(len(MARKS.findall(paragraph)) > MOST_MARKS for paragraph in text.split("\n\n")):
        builder.paragraphs(text)
    else:
        markup.fill(builder, documents.sound(rst.to_html(text)), lines=rst.LINE, remark=rst.REMARK)
    return builder


def word(name: str, raw: bytes) -> Builder:
    """A Word file. Its lines are its paragraphs, empty ones not counted, and a heading 1 stands below the title."""
    import mammoth

    from forge.reading import markup

    _refuse_zip_bomb(name, raw)
    found = mammoth.convert_to_html(
        io.BytesIO(raw),
        style_map=WORD_STYLES,
        include_embedded_style_map=False,  # it could hide text
        convert_image=lambda image: [],
    )
    builder = Builder(name, place="paragraph")
    markup.fill(builder, PARAGRAPH.sub(r"\n\g<0>", found.value).removeprefix("\n"))  # mammoth writes one line
    return builder


def pdf(name: str, raw: bytes) -> Builder:
    """A PDF, a unit a page. A page without text is named: it may be a scan."""
    import logging

    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its warnings would go to stderr
    reader = pypdf.PdfReader(io.BytesIO(raw))
    if reader.is_encrypted:
        raise ForgeError(f"{name}: encrypted PDF", "save a copy without a password, or exclude it")
    builder, size = Builder(name, kind="pdf", place="page"), 0
    for number, page in enumerate(reader.pages, 1):
        text = documents.sound(page.extract_text())
        size += len(text)
        if size > documents.LARGEST:
            raise documents.too_large(f"{name}: the text", documents.LARGEST)
        builder.page(number)
        builder.paragraphs(text)
        if not text.strip():
            builder.drop("", number, "a page without text: a picture?")
    return builder


def notebook(name: str, raw: bytes) -> Builder:
    """A Jupyter notebook of format 4. Its lines are its cells."""
    found = json.loads(documents.decode(name, raw))
    cells = found.get("cells") if isinstance(found, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise ForgeError(
            f"{name}: no notebook of format 4", "convert it: jupyter nbconvert --to notebook, or exclude it"
        )
    builder = Builder(name, kind="notebook", place="cell")
    language = _language(found.get("metadata"))
    for number, cell in enumerate(cells, 1):
        builder.line = number
        source = _joined(name, number, cell.get("source", ""))
        if cell.get("cell_type") == "code":
            builder.block(documents.fence(source.strip("\n"), language) if source.strip() else "", number, "code")
            _drop_outputs(builder, name, number, cell.get("outputs", []))
        elif cell.get("cell_type") == "markdown":
            documents.markdown(builder, source)
        else:
            builder.paragraphs(source)
    return builder


def source_code(name: str, raw: bytes) -> Builder:
    """A program: one unit, named like the file, of pieces that `documents.shown` puts into a fence."""
    path = Path(name)
    builder = Builder(name, kind="code", root=path.name)
    for text, line in pieces(documents.decode(name, raw)):
        builder.block(text, line, "code", LANGUAGES[path.suffix.lower()])
    return builder


def refuse_large(name: str, size: int) -> None:
    if size > LARGEST_TREE:
        raise documents.too_large(name, LARGEST_TREE)


# -- Word ------------------------------------------------------------------------------------------------------


def _refuse_zip_bomb(name: str, raw: bytes) -> None:
    """By the sizes in the zip's directory; zipfile reads no more of a member than it says there."""
    import zipfile

    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = archive.infolist()
    if sum(member.file_size for member in members) > documents.LARGEST:
        raise documents.too_large(f"{name}: unpacked, it", documents.LARGEST)
    refuse_large(
        f"{name}: its XML", sum(part.file_size for part in members if part.filename.endswith((".xml", ".rels")))
    )


# -- notebooks -------------------------------------------------------------------------------------------------


def _language(metadata: object) -> str:
    for key, inner in (("kernelspec", "language"), ("language_info", "name")):
        found = metadata.get(key) if isinstance(metadata, dict) else None
        language = found.get(inner) if isinstance(found, dict) else None
        if isinstance(language, str) and re.fullmatch(r"[\w+#.-]+", language):
            return language.lower()
    return "python"


def _joined(name: str, number: int, source: object) -> str:
    """Text of a cell or an output: a string or a list of strings, without what UTF-8 cannot hold."""
    parts = source if isinstance(source, list) else [source]
    if not all(isinstance(part, str) for part in parts):
        raise ForgeError(f"{name}: cell {number} holds no text", "repair the notebook, or exclude it")
    text = "".join(parts)
    for bad, what in (("[\ud800-\udfff]", "a lone surrogate"), ("\0", "a NUL character")):
        if re.search(bad, text):
            raise ForgeError(f"{name}: cell {number} holds {what}", "repair the notebook, or exclude it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _drop_outputs(builder: Builder, name: str, number: int, outputs: object) -> None:
    """Text of outputs is listed as dropped; pictures and the like by their type alone."""
    for output in outputs if isinstance(outputs, list) else []:
        if not isinstance(output, dict):
            continue
        data = output.get("data")
        if isinstance(data, dict):
            texts = [data[key] for key in ("text/plain", "text/markdown", "text/html") if key in data][:1] or sorted(
                data
            )
        else:
            texts = [output.get("text", output.get("traceback", ""))]
        text = "\n".join(_joined(name, number, found) for found in texts).strip("\n")
        if text:
            builder.drop(text, number, "the output of a cell")


# -- source code -----------------------------------------------------------------------------------------------


def pieces(text: str) -> list[tuple[str, int]]:
    """Source code as (piece, line): cut at blank lines in front of a line that begins at column 0.

    A piece over LONGEST_CODE is cut again, at its blank lines, or between lines where it has none; a single line
    never is. Every line that is not blank stands in exactly one piece.
    """
    lines = text.split("\n")
    begins = [0]
    begins += [i for i in range(1, len(lines)) if lines[i][:1].strip() and not lines[i - 1].strip()]
    found = []
    for begin, end in zip(begins, [*begins[1:], len(lines)], strict=True):
        for first, last in _short(lines, begin, end):
            while first < last and not lines[first].strip():
                first += 1
            while last > first and not lines[last - 1].strip():
                last -= 1
            if first < last:
                found.append(("\n".join(lines[first:last]), first + 1))
    return found


def _short(lines: list[str], begin: int, end: int) -> list[tuple[int, int]]:
    """Ranges of lines that each hold at most LONGEST_CODE characters, or a single line."""
    found, size, blank = [], 0, begin
    for index in range(begin, end):
        while size and size + len(lines[index]) > documents.LONGEST_CODE:
            cut = blank if blank > begin else index
            found.append((begin, cut))
            size, begin = sum(len(line) + 1 for line in lines[cut:index]), cut
        if not lines[index].strip():
            blank = index
        size += len(lines[index]) + 1
    return [*found, (begin, end)]
