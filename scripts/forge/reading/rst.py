"""reStructuredText to HTML by docutils, with nothing that a document says left out, and nothing read but its text.

docutils drops what it cannot make sense of: an unknown directive (all of Sphinx's) becomes an error message in the
place of its text. Here an unknown directive is its argument and its content, an unknown role is its text, and the
source of any other block that docutils gives up is shown as code. No file is included, no picture looked at, no
stylesheet read. A document's own roles end with it, so the order of files makes no difference.
"""

import contextlib
import copy
import functools
import re
import warnings
from collections.abc import Iterator

from docutils import core, frontend, nodes
from docutils.parsers.rst import Directive, Parser, directives, roles
from docutils.readers import standalone
from docutils.transforms import Transform
from docutils.writers import html5_polyglot

LINE = "forge-line-"  # prefix of a class that carries an element's line in the source
REMARK = "a comment or an order to the typesetter"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


CODE = _names("code code-block sourcecode prompt ipython raw")  # their argument is a language
VERBATIM = CODE | _names(
    "testcode testsetup testcleanup testoutput doctest command-output graphviz graph digraph mermaid plantuml uml "
    "productionlist jupyter-execute literalinclude tikz"
)
# Orders to the typesetter, listed as dropped. `contents` would repeat every heading.
ORDERS = _names(
    "index highlight default-domain currentmodule tabularcolumns meta contents sectnum section-numbering target-notes"
)
NAMESAKES = _names("class title include")  # docutils hides their argument; a class of Sphinx is one of Python
PROSE = _names("versionadded versionchanged versionremoved deprecated seealso centered todo")
PLAIN_ROLES = _names("ref doc term any numref abbr dfn guilabel menuselection index keyword download")
LINK = re.compile(r"(?P<text>.+?)\s*<[^<>]+>", re.DOTALL)
SETTINGS = {
    "_disable_config": True,
    "cloak_email_addresses": False,
    "docinfo_xform": False,
    "doctitle_xform": False,
    "embed_stylesheet": False,
    "file_insertion_enabled": False,
    "halt_level": 5,
    "language_code": "en",
    "math_output": "LaTeX",
    "raw_enabled": False,
    "report_level": 5,
    "smart_quotes": False,
    "stylesheet_path": "",
    "syntax_highlight": "none",
    "traceback": True,  # else docutils prints an error and ends the process
    "warning_stream": False,
}


def to_html(text: str) -> str:
    """HTML of a document's body; elements carry a class of LINE and the number of their line, where it is known."""
    longest = max(map(len, text.split("\n")))
    # The limit also bounds what substitutions may grow to, so it is raised no further than the text needs.
    settings = copy.deepcopy(_settings())
    settings.line_length_limit = max(10_000, longest + 1)
    with _forgiving():
        return core.publish_parts(text, reader=_Reader(), writer="html5", settings=settings)["html_body"]


@functools.cache
def _settings():
    """docutils' settings with ours; made once, as its 100 options take 2 ms."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # docutils' of its own options
        settings = frontend.get_default_settings(Parser, standalone.Reader, html5_polyglot.Writer)
    for name, value in SETTINGS.items():
        setattr(settings, name, value)
    return settings


@contextlib.contextmanager
def _forgiving() -> Iterator[None]:
    """docutils with the directives and roles below. Sphinx replaces the same two functions to add its own."""
    directive, role, registered = directives.directive, roles.role, dict(roles._roles)

    def find_directive(name, language, document):
        own = _own(name.lower())
        return (own, []) if own else (directive(name, language, document)[0] or _Kept, [])

    def find_role(name, language, line, reporter):
        return role(name, language, line, reporter)[0] or _kept_role, []

    directives.directive, roles.role = find_directive, find_role
    try:
        yield
    finally:
        directives.directive, roles.role = directive, role
        roles._roles.clear()  # a document's own roles must not reach the next one
        roles._roles.update(registered)


def _own(name: str) -> type[Directive] | None:
    if name in VERBATIM:
        return _Verbatim
    if name in ORDERS:
        return _Order
    if name in NAMESAKES:
        return _Kept
    return _Date if name == "date" else None


class _AnyOption(dict):
    """Every option is taken as text; docutils asks an option_spec by its keys."""

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, name):
        return directives.unchanged


def _remark(text: str, line: int) -> nodes.comment:
    remark = nodes.comment("", text)
    remark.line = line + text.count("\n") + 1  # docutils' own tell the line behind them
    return remark


class _Kept(Directive):
    """A directive that docutils does not know: its name and argument as a paragraph, then its content."""

    optional_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec = _AnyOption()

    def run(self) -> list:
        kept = nodes.container()
        kept += self.heading()
        self.state.nested_parse(self.content, self.content_offset, kept)
        return [kept]

    def heading(self) -> list:
        """Name and argument, and the options that are text; the others are a remark."""
        found = []
        if self.arguments:
            text = " ".join(f"{self.name}: {self.arguments[0]}".split())
            inline = self.state.inline_text(text, self.lineno)[0] if self.name in PROSE else [nodes.Text(text)]
            found.append(self.paragraph(*inline))
        shown = [self.options.pop(name) for name in ("caption", "alt") if self.options.get(name)]
        found += [self.paragraph(nodes.Text(text)) for text in shown]
        hidden = [f":{name}: {text}" for name, text in self.options.items() if text]
        return [*found, *([_remark("\n".join(hidden), self.lineno)] if hidden else [])]

    def paragraph(self, *inline) -> nodes.paragraph:
        made = nodes.paragraph("", "", *inline)
        made.line = self.lineno
        return made


class _Verbatim(_Kept):
    """A directive whose content is no reStructuredText."""

    def run(self) -> list:
        language = self.arguments[0] if self.arguments and self.name.lower() in CODE and self.content else ""
        if language:
            self.arguments = []
        text = "\n".join(self.content)
        block = nodes.literal_block(text, text, classes=["code", *language.lower().split()[:1]])
        block.line = self.content_offset + 1
        return [*self.heading(), *([block] if text else [])]


class _Order(_Kept):
    def run(self) -> list:
        return [_remark(self.block_text.rstrip(), self.lineno)]


class _Date(_Kept):
    """Today's date would make other rows tomorrow: the word stands for it."""

    def run(self) -> list:
        return [nodes.Text("date")]


def _kept_role(name, rawtext, text, lineno, inliner, options=None, content=None):
    """A role that docutils does not know: `title <target>` is its title, a name of code is shown as code."""
    text = nodes.unescape(text)
    link = LINK.fullmatch(text)
    if link or name.lower().rpartition(":")[2] in PLAIN_ROLES:
        return [nodes.inline(rawtext, link["text"] if link else text)], []
    return [nodes.literal(rawtext, text.lstrip("~!"))], []


class _Reader(standalone.Reader):
    def get_transforms(self) -> list:
        return [*super().get_transforms(), _Rescue, _Finish]


class _Rescue(Transform):
    """What docutils gives up stands in an error message, which is not shown: the source takes its place.

    The warning of a title with a short line above or below repeats it: docutils takes it for a title all the same.
    Substitutions that nothing uses become remarks.
    """

    default_priority = 1

    def apply(self) -> None:
        name = nodes.fully_normalize_name
        for message in list(self.document.findall(nodes.system_message)):
            sources = [child for child in message.children if isinstance(child, nodes.literal_block)]
            kept = message["level"] < 2 or (message["level"] == 2 and message.astext().startswith("Title "))
            if sources and not kept:
                for source in sources:
                    source.line = message.get("line")
                message.parent.replace(message, sources)
        used = {name(found["refname"]) for found in self.document.findall(nodes.substitution_reference)}
        for definition in list(self.document.findall(nodes.substitution_definition)):
            if not used & set(map(name, definition["names"])):
                definition.parent.replace(definition, _remark(definition.rawsource, definition.line or 1))


class _Finish(Transform):
    """Pictures become their alternative text, so that the writer looks at no file; elements carry their line."""

    default_priority = 990

    def apply(self) -> None:
        for image in list(self.document.findall(nodes.image)):
            image.parent.replace(image, nodes.inline("", image.get("alt", "")))
        for classifier in self.document.findall(nodes.classifier):
            classifier.insert(0, nodes.Text(" : "))  # the writer leaves that to a style sheet
        for node in list(self.document.findall(nodes.Element)):
            if isinstance(node, nodes.comment):
                line = (node.line or 2) - node.astext().count("\n") - 1  # docutils tells the line behind it
                node.insert(0, nodes.Text(f"{LINE}{line} "))
            elif node.line and not isinstance(node, nodes.document):
                node["classes"].append(f"{LINE}{node.line}")
