"""HTML to the blocks of a `documents.Builder`: structure by Beautiful Soup, the text of a block by markdownify.

What a browser shows is kept, navigation included. Scripts, style sheets, templates and comments are listed as
dropped. An element with a block inside it is a container, whatever its name, so that layout tables and old pages
with unclosed tags fall into headings and paragraphs, too. The walk needs no recursion: pages nest deeply.
"""

import codecs
import itertools
import re
import warnings

from bs4 import BeautifulSoup, NavigableString, Tag
from bs4.dammit import EncodingDetector
from bs4.element import CData, Comment, PreformattedString, ProcessingInstruction
from markdownify import ATX, MarkdownConverter

from forge.errors import ForgeError
from forge.reading import documents
from forge.reading.documents import Builder


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


HEADINGS = {f"h{depth}": depth for depth in range(1, 7)}
BLOCKS = _names(
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption figure "
    "footer form frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html legend li listing main menu nav noframes "
    "noscript ol optgroup option p plaintext pre search section summary table tbody td tfoot th thead tr ul xmp"
)
DROPPED = {"script": "a script", "style": "a style sheet", "template": "a template"}
# A start tag that ends what is open: (tags that it ends, tags that keep it from looking further up). HTML lets
# their end tags out, and html.parser does not know that.
ENDS = {
    "li": (_names("li"), _names("ul ol menu dir")),
    "dt": (_names("dt dd"), _names("dl")),
    "dd": (_names("dt dd"), _names("dl")),
    "option": (_names("option"), _names("select datalist optgroup")),
    "tr": (_names("tr td th"), _names("table")),
    "td": (_names("td th"), _names("tr table")),
    "th": (_names("td th"), _names("tr table")),
}
ENDS_PARAGRAPH = BLOCKS - _names("body caption head html legend optgroup option summary")
KEEPS_PARAGRAPH = _names("button td th li dd div blockquote table body section article object")
NO_CHARSET = _names("idna punycode raw-unicode-escape unicode-escape undefined utf-7")  # Python's, not a page's
WEB = re.compile(r"(?:https?|ftp|mailto):", re.IGNORECASE)
QUESTION = re.compile(r"\n[ \t]*(?=[QA]:\s)")
LINE_END = "\ufdd0"  # no character, so in no text
LANGUAGE = re.compile(r"(?:language|lang|highlight|source|brush)[-:]([\w+#.-]+)")
NO_LANGUAGE = {"default", "none", "text", "plain", "plaintext", "literal-block"}
LISTED = {"field-list", "docinfo"}  # docutils writes :name: value so: no definitions


def decode(name: str, raw: bytes) -> str:
    """Text of a page in the character set that it declares, UTF-8 without a declaration.

    Raises ForgeError (2) naming the first line that is not in it.
    """
    declared = None if raw.startswith(codecs.BOM_UTF8) else EncodingDetector.find_declared_encoding(raw, is_html=True)
    try:
        charset = codecs.lookup(declared or "utf-8").name
    except LookupError:
        charset = "undefined"
    if charset in NO_CHARSET:
        raise ForgeError(f"{name}: unknown character set {declared}", "save the file as UTF-8, or exclude it")
    if charset in ("utf-8", "ascii") or charset.startswith(("utf-16", "utf-32")):  # no page that says so in ASCII is
        return documents.decode(name, raw)
    # What calls itself Latin-1 on the web is Windows' superset of it.
    return documents.decode(name, raw, "cp1252" if charset == "iso8859-1" else declared)


def fill(builder: Builder, html: str, lines: str = "", remark: str = "a comment") -> None:
    """Put what a page says into `builder`. With `lines` a class of that prefix carries an element's line.

    `remark` is the reason that comments are dropped for.
    """
    ends = _open_ends(html)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "looks like XML", "looks like a file's name"
        soup = Soup(html + ends)
    for text in soup.find_all(string=True)[-1:] if ends else []:
        if type(text) is NavigableString and text.endswith(ends):  # nothing was open after all
            text.replace_with(text.removesuffix(ends))
    _title(builder, soup)
    Walk(builder, soup, lines, remark)


def _title(builder: Builder, soup: BeautifulSoup) -> None:
    title = next((tag for tag in soup.find_all("title") if not tag.find_parent("svg")), None)
    texts = [text for text in title.find_all(string=True) if type(text) is NavigableString] if title else []
    if "".join(texts).strip():
        builder.title(" ".join("".join(text.extract() for text in texts).split()), title.sourceline)


def _open_ends(html: str) -> str:
    """What closes a comment, a marked section and a tag that are still open at the end.

    html.parser looks for the end of each one anew: minutes for a megabyte of `<!--`.
    """
    ends = "-->" if html.rfind("<!--") > html.rfind("-->") else ""
    if html.rfind("<![") > html.rfind("]>") and "<![" in re.sub(r"(?s)<!--.*?-->", "", html + ends):
        ends += "]]>"
    return ends + ">" if html.rfind("<") > html.rfind(">") and not ends else ends


class Element(Tag):
    """A tag that is quick to say whether it stands in a <pre>: markdownify asks every one, a fifth of the time."""

    def find_parent(self, name=None, *arguments, **more):
        if name != "pre":
            return super().find_parent(name, *arguments, **more)
        parent = self.parent
        while parent is not None and parent.name != "pre":
            parent = parent.parent
        return parent


class Soup(BeautifulSoup):
    """Beautiful Soup that ends paragraphs, list items and cells where HTML says, with no end tag."""

    def __init__(self, html: str):
        super().__init__(html, "html.parser", element_classes={Tag: Element}, multi_valued_attributes=None)

    def handle_starttag(self, name, *arguments, **more):
        if name in ENDS_PARAGRAPH:
            self._end({"p"}, KEEPS_PARAGRAPH)
        if name in ENDS:
            self._end(*ENDS[name])
        return super().handle_starttag(name, *arguments, **more)

    def _end(self, ended: set[str], barriers: set[str]) -> None:
        count = 0
        for depth, tag in enumerate(itertools.islice(reversed(self.tagStack), 200), 1):
            if tag.name in barriers:
                break
            if tag.name in ended:
                count = depth
        if count:
            self.endData()
        for _ in range(count):
            self.popTag()


class Converter(MarkdownConverter):
    """markdownify for text that a model learns from, not for a renderer: no escapes, one line a paragraph."""

    class Options(MarkdownConverter.DefaultOptions):
        autolinks = False
        bullets = "-"
        escape_asterisks = False
        escape_underscores = False
        heading_style = ATX
        strip_pre = None
        wrap = True  # line ends in the source mean nothing
        wrap_width = None

    def __init__(self, **options):
        super().__init__(**options)
        self.numbers: dict[int, int] = {}  # id of a list: number of its next item

    def convert_a(self, el, text, parent_tags):
        """A link within the site says nothing outside it; nor does one to a script."""
        target = el.get("href") or ""
        if not WEB.match(target) or target.removeprefix("mailto:") == text:
            return text
        return super().convert_a(el, text, parent_tags)

    def convert_br(self, el, text, parent_tags):
        return " " if "_inline" in parent_tags else "\n"

    def convert_img(self, el, text, parent_tags):
        return el.get("alt") or ""

    def convert_li(self, el, text, parent_tags):
        """As markdownify's, which counts the items before each one: minutes for a list of 100,000."""
        text = text.strip()
        if not text:
            return "\n"
        mark = "- "
        if el.parent is not None and el.parent.name == "ol":
            start = str(el.parent.get("start") or "")
            number = self.numbers.get(id(el.parent)) or (int(start) if re.fullmatch(r"[0-9]{1,9}", start) else 1)
            self.numbers[id(el.parent)] = number + 1
            mark = f"{number}. "
        return mark + re.sub(r"\n(?=[^\n])", "\n" + " " * len(mark), text) + "\n"

    def convert_pre(self, el, text, parent_tags):
        return f"\n\n{fenced(el)}\n\n" if text.strip() else ""

    def convert_td(self, el, text, parent_tags):
        return super().convert_td(el, text.replace("|", "\\|"), parent_tags)

    def convert_th(self, el, text, parent_tags):
        return super().convert_th(el, text.replace("|", "\\|"), parent_tags)


def classes_of(tag: Tag) -> list[str]:
    return (tag.get("class") or "").split()


def children_of(tag: Tag) -> list[Tag | NavigableString]:
    """What stands directly in a tag, spaces between tags left out; the `name` of text is None."""
    return [child for child in tag.contents if isinstance(child, Tag) or child.strip()]


def fenced(pre: Tag) -> str:
    """A fence with the text of a <pre> as it is; what a browser would put on a line of its own, on one."""
    for tag in [tag for tag in pre.descendants if isinstance(tag, Tag) and (tag.name == "br" or tag.name in BLOCKS)]:
        if tag.name == "br":
            tag.replace_with("\n")
            continue
        if not (tag.find_previous(string=True) or "").endswith("\n"):
            tag.insert_before("\n")
        tag.append("\n")
    return documents.fence(pre.get_text().strip("\n"), _language(pre))


def _language(pre: Tag) -> str:
    around = [pre.find("code"), pre, *list(pre.parents)[:2]]
    classes = [name for tag in around if tag is not None for name in classes_of(tag)]
    found = [match[1] for match in map(LANGUAGE.fullmatch, classes) if match]
    own = classes_of(pre)
    if own[:1] == ["code"]:  # docutils
        found += own[1:2]
    return next((name.lower() for name in found if name not in NO_LANGUAGE), "")


class Walk:
    """One pass over a page. `inline` collects what stands in a line until a block begins or ends."""

    def __init__(self, builder: Builder, soup: Soup, lines: str, remark: str):
        self.builder, self.prefix, self.remark = builder, lines, remark
        self.converter = Converter()
        self.lines: dict[int, int] = {}  # id of a node: its line
        # Ids of the tags that have such a tag inside them.
        self.with_block: set[int] = set()
        self.with_heading: set[int] = set()
        self.with_section: set[int] = set()
        self.with_structure: set[int] = set()
        self.inline: list[Tag | NavigableString] = []
        self.group: list[tuple[str, int]] = []
        self.handlers = {
            **dict.fromkeys(HEADINGS, self.heading),
            **dict.fromkeys(("pre", "listing", "xmp", "plaintext"), self.pre),
            **dict.fromkeys(("ul", "ol", "menu", "dir"), self.listing),
            "hr": lambda tag: True,
            "blockquote": self.quote,
            "table": self.table,
            "dl": self.definitions,
        }
        self.survey(soup)
        self.walk(soup)

    # -- before the walk: lines, what stands in what, and what is dropped --

    def survey(self, soup: Soup) -> None:
        line = 1
        for node in list(soup.descendants):
            if isinstance(node, Tag):
                line = self.line_of(node, line)
                self.lines[id(node)] = line
                if node.name in DROPPED:
                    self.drop(node, node.get_text(), line, DROPPED[node.name])
                self.mark(node)
                continue
            self.lines[id(node)] = line + len(node) - len(node.lstrip("\n"))
            if isinstance(node, PreformattedString):  # with doctypes and processing instructions
                self.comment(node, line)
            elif QUESTION.search(node) and not node.find_parent(["pre", "listing", "xmp", "plaintext"]):
                self.keep_lines(node)
            if not self.prefix:
                line += node.count("\n")

    def keep_lines(self, node: NavigableString) -> None:
        """Line ends mean nothing in HTML, but one in front of a `Q:` or an `A:` does here."""
        marked = NavigableString(QUESTION.sub(LINE_END, node))
        self.lines[id(marked)] = self.lines[id(node)]
        node.replace_with(marked)

    def line_of(self, tag: Tag, line: int) -> int:
        if not self.prefix:
            return tag.sourceline or line
        names = classes_of(tag)
        for name in [name for name in names if name.startswith(self.prefix)]:
            names.remove(name)
            tag["class"] = " ".join(names)
            line = int(name.removeprefix(self.prefix)) - (tag.name in HEADINGS)  # docutils tells the underline's
        if tag.name == "span" and "literal" in names:
            tag.name = "code"
        return line

    def comment(self, node: PreformattedString, line: int) -> None:
        text = str(node).strip() if isinstance(node, Comment | CData | ProcessingInstruction) else ""
        if isinstance(node, ProcessingInstruction) and text.startswith("xml"):
            text = ""
        if self.prefix and text.startswith(self.prefix):
            number, _, text = text.removeprefix(self.prefix).partition(" ")
            line = int(number)
        self.drop(node, text, line, self.remark)

    def drop(self, node: Tag | NavigableString, text: str, line: int, reason: str) -> None:
        if text.strip():
            self.builder.drop(text.strip("\n"), line, reason)
        node.extract()

    def mark(self, tag: Tag) -> None:
        if tag.name not in BLOCKS:
            return
        marks = [self.with_block]
        if tag.name in HEADINGS:
            marks.append(self.with_heading)
        if tag.name in HEADINGS or tag.name in ("table", "dl"):
            marks.append(self.with_section)
        if tag.name in HEADINGS or tag.name in ("table", "dl", "pre", "blockquote"):
            marks.append(self.with_structure)
        for seen in marks:
            parent = tag.parent
            while parent is not None and id(parent) not in seen:
                seen.add(id(parent))
                parent = parent.parent

    # -- the walk --

    def walk(self, soup: Soup) -> None:
        stack = [iter(soup.contents)]
        while stack:
            node = next(stack[-1], None)
            if node is None:
                self.flush()
                stack.pop()
            elif isinstance(node, NavigableString) or not (node.name in BLOCKS or id(node) in self.with_block):
                self.inline.append(node)
            else:
                self.flush()
                handler = self.handlers.get(node.name)
                if handler:
                    self.release()
                if not handler or not handler(node):
                    stack.append(iter(node.contents))
        self.release()

    def flush(self) -> None:
        """The paragraph that stands in `inline`, or several with empty lines (two <br>) between them."""
        nodes, self.inline = self.inline, []
        said = [node for node in nodes if isinstance(node, Tag) or node.strip()]
        text = "".join(self.text(node, LINE_END) for node in nodes).strip() if said else ""
        text = text.replace(LINE_END, "\n" if text.startswith("Q:") else " ")
        for piece in re.split(r"\n\s*\n", text):
            piece = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", piece)).strip()
            if piece:
                self.prose(piece, self.lines[id(said[0])])

    def prose(self, text: str, line: int) -> None:
        """Paragraphs of `Q:` and `A:` are put together: Word and HTML have no other line to write them on."""
        if text.startswith("Q:") or (self.group and text.startswith("A:")):
            self.group.append((text, line))
            return
        self.release()
        self.builder.prose(text, line)

    def release(self) -> None:
        group, self.group = self.group, []
        if group:
            self.builder.prose("\n".join(text for text, _ in group), group[0][1])

    # -- handlers: True when the tag is done, False when its children are to be walked --

    def heading(self, tag: Tag) -> bool:
        text = self.plain(tag)
        if text:
            self.builder.heading(HEADINGS[tag.name], text, self.lines[id(tag)])
        return True

    def pre(self, tag: Tag) -> bool:
        if tag.get_text().strip():
            self.builder.block(fenced(tag), self.lines[id(tag)], "code")
        return True

    def listing(self, tag: Tag) -> bool:
        if id(tag) in self.with_heading:
            return False
        text, line = self.text(tag).strip("\n"), self.lines[id(tag)]
        if tag.name == "ol" or {item.name for item in children_of(tag)} != {"li"}:
            self.builder.block(text, line, "list")
        else:
            self.builder.listing(text, line, lambda: self.items(tag))
        return True

    def items(self, tag: Tag) -> list[tuple[str, int]]:
        return [(self.text(item).strip("\n"), self.lines[id(item)]) for item in children_of(tag)]

    def quote(self, tag: Tag) -> bool:
        if id(tag) in self.with_heading:
            return False
        self.builder.block(self.text(tag).strip("\n"), self.lines[id(tag)], "quote")
        return True

    def table(self, tag: Tag) -> bool:
        """A table of one column, or with what no cell of a Markdown table can hold, is layout."""
        rows = tag.find_all("tr") if id(tag) not in self.with_structure else []
        if all(len(row.find_all(["td", "th"], recursive=False)) < 2 for row in rows):
            return False
        for head in tag.find_all("thead"):
            if len(head.find_all("tr")) > 1:
                head.name = "tbody"  # markdownify would count them anew for each of them
        text = self.text(tag).strip("\n")
        if re.search(r"\w", text):
            self.builder.block(text, self.lines[id(tag)], "table")
        return True

    def definitions(self, dl: Tag) -> bool:
        entries = self.entries(dl)
        if not entries or id(dl) in self.with_section:
            return False
        groups: list[tuple[list[Tag], list[Tag]]] = []
        for entry in entries:
            if entry.name == "dt" and (not groups or groups[-1][1]):
                groups.append(([], []))
            groups[-1][entry.name == "dd"].append(entry)
        found = [(self.terms(terms), self.meaning(meanings), self.lines[id(terms[0])]) for terms, meanings in groups]
        if LISTED & set(classes_of(dl)):
            text = "\n".join(f"- {term} {meaning}".replace("\n", "\n  ") for term, meaning, _ in found)
            self.builder.block(text, found[0][2], "list")
            return True
        for term, meaning, line in found:
            if term and meaning:
                self.builder.define(term, meaning, line)
            else:
                self.builder.prose(term or meaning, line)
        return True

    def entries(self, dl: Tag) -> list[Tag]:
        """Terms and meanings, the first one a term; none when something else stands among them."""
        found: list[Tag | NavigableString] = []
        for child in children_of(dl):
            found += children_of(child) if child.name == "div" else [child]
        right = all(entry.name in ("dt", "dd") for entry in found)
        return found if right and found and found[0].name == "dt" else []

    def terms(self, tags: list[Tag]) -> str:
        return ", ".join(filter(None, map(self.plain, tags)))

    def meaning(self, tags: list[Tag]) -> str:
        for tag in tags:
            tag.name = "div"  # markdownify would indent it
        return "\n\n".join(filter(None, (self.text(tag).strip() for tag in tags)))

    # -- text --

    def text(self, node: Tag | NavigableString, line_end: str = " ") -> str:
        """Markdown of a node; its bare words where it is nested too deeply for markdownify."""
        try:
            text = self.converter.process_element(node, parent_tags=set())
        except RecursionError:
            text = " ".join(node.get_text(" ").split())
        return text.replace(LINE_END, line_end)

    def plain(self, tag: Tag) -> str:
        """Words of a heading or a term, without the sign of a link to itself that Sphinx puts behind."""
        apart = " " if id(tag) in self.with_block or tag.find("br") else ""
        text = " ".join(tag.get_text(apart).replace(LINE_END, " ").split()).rstrip(" \u00b6\uf0c1")
        return text or " ".join(image.get("alt", "") for image in tag.find_all("img")).strip()
