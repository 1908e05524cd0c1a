"""Every other format to units: what a document says is kept, what it hides or breaks is named, nothing is fetched."""

import io
import json
import re
import struct
import sys
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import pytest
from forge.errors import ForgeError
from forge.reading import document_files, documents, markup, readers, rst
from hypothesis import given, settings
from hypothesis import strategies as st
from test_documents import LIBRARY, PACKAGES, WORDS, headings, real, said

REMEDY = "repair or convert it, or exclude it"


def parse(name: str, text: str | bytes) -> documents.Document:
    return document_files.parse(name, text if isinstance(text, bytes) else text.encode())


def blocks(document: documents.Document) -> list[tuple]:
    return [(block.line, block.kind, block.text) for unit in document for block in unit.blocks]


def texts(document: documents.Document) -> list[str]:
    return [block.text for unit in document for block in unit.blocks]


def definitions(document: documents.Document) -> list[tuple]:
    return [(entry.term, entry.text, entry.line) for unit in document for entry in unit.definitions]


def dropped(document: documents.Document) -> list[tuple]:
    return [(item.line, item.reason, item.text) for item in document.dropped]


def refused(name: str, raw: str | bytes) -> ForgeError:
    with pytest.raises(ForgeError) as caught:
        parse(name, raw)
    return caught.value


def kept(document: documents.Document) -> Counter:
    """Words of everything. Marks of Markdown may stand inside a word, so it counts with them and without."""
    pieces = texts(document) + [item.text for item in document.dropped]
    for unit in document:
        pieces += [*unit.path, *(f"{entry.term}\n{entry.text}" for entry in unit.definitions)]
        pieces += [text for group in unit.questions for text in ("Q A", *group.wordings, group.answer)]
    text = "\n".join(pieces)
    return Counter(words(text)) | Counter(words(re.sub(r"[*`]|~~", "", text)))


def words(text: str) -> list[str]:
    """Without underscores around them: at the end of a word of reStructuredText they make a link."""
    return [word.strip("_") for word in WORDS.findall(text) if word.strip("_")]


# -- HTML ------------------------------------------------------------------------------------------------------

PAGE = """\
<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>The page</title>
<style>p { color: red }</style>
<script>let hidden = "<p>no text</p>";</script></head>
<body>
<nav><a href="/">Home</a> | <a href="https://example.org/">Away</a></nav>
Words before any heading.
<h1>Bees &amp; <em>honey</em><a href="#bees">\u00b6</a></h1>
<!-- a remark -->
<p>First <b>bold</b>,
<i>italic</i> and <code>a_b * c</code>.<br>New line.<br><br>New paragraph.
<p>Unclosed.
<div>In <span>a div</span><p>inside</p>after</div>
<h2>Lists</h2>
<ul><li>one<li>two<ul><li>deep</ul></ul>
<ol start="3"><li><p>three</p></li><li>four<pre>x
 y</pre></li></ol>
<blockquote><p>Said.</p><p>Twice.</p></blockquote>
<h3>Code</h3>
<pre><code class="language-python">def f():

    return "```"
</code></pre>
<table><tr><th>a</th><th>b</th></tr><tr><td>1 | 2</td><td><p>3</p></td></tr></table>
<img src="data:image/png;base64,AAAA" alt="A picture"> <img src="x.png">
</body></html>
"""


def test_a_page_of_html():
    document = parse("page.html", PAGE)
    assert [(unit.path, unit.line, unit.place, unit.kind) for unit in document] == [
        (["The page"], 1, None, "page"),
        (["Bees & honey"], 8, None, "page"),
        (["Bees & honey", "Lists"], 14, None, "page"),
        (["Bees & honey", "Lists", "Code"], 19, None, "page"),
    ]
    assert blocks(document) == [
        (6, "prose", "Home | [Away](https://example.org/)"),
        (7, "prose", "Words before any heading."),
        (10, "prose", "First **bold**, *italic* and `a_b * c`.\nNew line."),
        (10, "prose", "New paragraph."),
        (12, "prose", "Unclosed."),
        (13, "prose", "In a div"),
        (13, "prose", "inside"),
        (13, "prose", "after"),
        (15, "list", "- one\n- two\n  - deep"),
        (16, "list", "3. three\n4. four\n\n   ```\n   x\n    y\n   ```"),
        (18, "quote", "> Said.\n>\n> Twice."),
        (20, "code", '````python\ndef f():\n\n    return "```"\n````'),
        (24, "table", "| a | b |\n| --- | --- |\n| 1 \\| 2 | 3 |"),
        (25, "prose", "A picture"),
    ]
    assert [block.divisible for unit in document for block in unit.blocks] == [
        kind == "prose" for _, kind, _ in blocks(document)
    ]
    assert dropped(document) == [
        (3, "a style sheet", "p { color: red }"),
        (4, "a script", 'let hidden = "<p>no text</p>";'),
        (9, "a comment", "a remark"),
    ]


def test_a_title_without_text_of_its_own_is_dropped():
    document = parse("page.htm", "<title>Title</title><h1>Heading</h1><p>Text.")
    assert [unit.path for unit in document] == [["Heading"]]
    assert dropped(document) == [(1, "a heading without text under it", "Title")]


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ("<dl><dt>Queen<dd>The <b>mother</b>.<dt>Drone<dd><p>A male.<p>A bee.</dl>", None),
        ("<dl><div><dt>Queen</dt><dd>The <b>mother</b>.</dd></div><dt>Drone<dd><p>A male.<p>A bee.</dl>", None),
        ("<dl><dt>a<dt>b<dd>c<dd>d</dl>", [("a, b", "c\n\nd", 1)]),
        ("<dl>\n<dt>a</dt>\n<dd>b<ul><li>c</ul></dd></dl>", [("a", "b\n\n- c", 2)]),
    ],
)
def test_definition_lists(html, found):
    document = parse("page.html", html)
    assert definitions(document) == (found or [("Queen", "The **mother**.", 1), ("Drone", "A male.\n\nA bee.", 1)])
    assert texts(document) == []


@pytest.mark.parametrize(
    ("html", "found", "text"),
    [
        ("<dl><dt>class A<dd>Text<dl><dt>b()<dd>Method</dl></dl>", [("b()", "Method", 1)], ["class A", "Text"]),
        ("<dl><dt>alone</dl>", [], ["alone"]),
        ("<dl><dd>alone</dl>", [], ["alone"]),
        ("<dl><p>odd<dt>a<dd>b</dl>", [], ["odd", "a", "b"]),
        ("<dl><div>odd<dt>a<dd>b</div></dl>", [], ["odd", "a", "b"]),
        ("<h1>Terms</h1><ul>odd<li>a: b</ul>", [], ["odd- a: b"]),
        ("<dl class='field-list'><dt>Author:<dd>me<dt>Year:<dd>1900</dl>", [], ["- Author: me\n- Year: 1900"]),
    ],
)
def test_other_lists_of_terms(html, found, text):
    document = parse("page.html", html)
    assert definitions(document) == found
    assert texts(document) == text


def test_a_glossary_and_questions_in_html():
    document = parse(
        "page.html",
        "<h1>Terms</h1><p><b>Queen</b>: the mother<ul><li>Drone: a male<li>no term</ul>"
        "<h1>FAQ</h1><p>Q: Who?<p>Q: What is\nyour name?<p>A: I am <b>Maja</b>.<p>Q: Why?<br>A: So."
        "<p>Q: And\n Q: this?\nA: It is.<p>So it\nQ: is.<pre>\nQ: x\nA: y</pre><ul><li>a\nQ: b</ul><p>Q: And now?",
    )
    assert definitions(document) == [("Queen", "the mother", 1), ("Drone", "a male", 1)]
    assert texts(document) == ["- no term", "So it Q: is.", "```\nQ: x\nA: y\n```", "- a Q: b", "Q: And now?"]
    assert [(group.wordings, group.answer, group.facts) for group in document.units[1].questions] == [
        (["Who?", "What is your name?"], "I am Maja.", ["Maja"]),
        (["Why?"], "So.", []),
        (["And", "this?"], "It is.", []),
    ]


@pytest.mark.parametrize(
    "html",
    [
        "<table><tr><td><h1>H</h1><p>one</td><td>two</td></tr></table>",
        "<table><tr><td><h1>H</h1>one<tr><td>two</table>",
        "<font><h1>H</h1><p>one</font><p>two",
        "<table><tr><td><h1>H</h1><table><tr><td>one</table><td>two</table>",
        "<ul><li><h1>H</h1>one<li>two</ul>",
        "<center><b><h1>H</h1>one<div>two</div></b></center>",
        "<form><h1>H</h1><label>one<select><option hidden></select></label><p>two</form>",
    ],
)
def test_layout_is_no_structure(html):
    document = parse("page.html", html)
    assert [unit.path for unit in document] == [["H"]]
    assert texts(document) == ["one", "two"] or texts(document) == ["**one**", "**two**"]


def test_a_table_of_one_column_is_layout():
    assert texts(parse("a.html", "<table><tr><td>one<p>two<tr><td>three</table>")) == ["one", "two", "three"]


def test_a_heading_of_a_table_over_two_rows():
    rows = "<thead><tr><th>a<th>b<tr><th>c<th>d<tbody><tr><td>1<td>2"
    assert texts(parse("a.html", f"<table>{rows}</table>")) == ["| a | b |\n| --- | --- |\n| c | d |\n| 1 | 2 |"]


def test_lines_of_code_that_are_elements():
    html = "<pre>a<br>b<div>c\n  d</div>e\n<div>f</div><code>g</code>\n</pre>"
    assert texts(parse("a.html", html)) == ["```\na\nb\nc\n  d\ne\nf\ng\n```"]


def test_characters_that_no_file_can_hold():
    html = "<p>a&#xD800;b &#55357;&#56832; &#0;<pre>&#xDFFF;</pre><h1>&#xD800;</h1>c"
    document = parse("a.html", html)
    assert texts(document) == ["a\ufffdb \ufffd\ufffd \ufffd", "```\n\ufffd\n```", "c"]
    assert document.units[-1].path == ["\ufffd"]
    assert texts(parse("a.rst", "a |x| b\n\n.. |x| unicode:: 0xD800\n")) == ["a \ufffd b"]


def test_links_and_pictures():
    html = (
        "<p><a href='#x'>a</a> <a href='javascript:run()'>b</a> <a href='https://x.org'>c</a> "
        "<a href='https://x.org'>https://x.org</a> <a href='mailto:d@x.org'>d@x.org</a> <img src='file:///etc/passwd'>"
    )
    assert texts(parse("a.html", html)) == ["a b [c](https://x.org) https://x.org d@x.org"]


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("iso-8859-1", "caf\u00e9 \u2013 \u20ac"),  # windows-1252 by another name
        ("windows-1251", "\u043f\u0447\u0435\u043b\u0430"),
        ("Shift_JIS", "\u871c\u8702"),
        ("utf-8", "\u871c\u8702 \u0e1c\u0e36\u0e49\u0e07"),
    ],
)
def test_the_declared_character_set(charset, text):
    codec = "cp1252" if charset == "iso-8859-1" else charset
    for head in (
        f'<meta charset="{charset}">',
        f'<meta http-equiv="Content-Type" content="text/html; charset={charset}">',
    ):
        assert texts(parse("a.html", f"{head}<p>{text}".encode(codec))) == [text]
    raw = f'<?xml version="1.0" encoding="{charset}"?><html><body><p>{text}</p></body></html>'.encode(codec)
    assert texts(parse("a.xhtml", raw)) == [text]


def test_a_byte_order_mark_is_stronger_than_a_declaration():
    assert texts(parse("a.html", b"\xef\xbb\xbf" + '<meta charset="latin-1"><p>caf\u00e9'.encode())) == ["caf\u00e9"]


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (b"<p>\ncaf\xe9", "a.html:2: not UTF-8 (byte 0xe9)"),
        (b"<meta charset=utf-8><p>\n\ncaf\xe9", "a.html:3: not UTF-8 (byte 0xe9)"),
        (b"<meta charset=ascii><p>\n\ncaf\xe9", "a.html:3: not UTF-8 (byte 0xe9)"),
        (b"<meta charset=Shift_JIS><p>\n\x81", "a.html:2: not shift_jis (byte 0x81)"),
        (b"<meta charset=klingon><p>x", "a.html: unknown character set klingon"),
        (b"<meta charset=unicode_escape><p>\\ud800", "a.html: unknown character set unicode_escape"),
        (b"\xff\xfe<\0p\0", "a.html:1: UTF-16, not UTF-8"),
        (b"<p>a\n\0b", "a.html:2: holds a NUL character"),
    ],
)
def test_what_is_not_in_its_character_set(raw, cause):
    error = refused("a.html", raw)
    assert (error.cause, error.code) == (cause, 2)


@pytest.mark.parametrize(
    "html",
    [
        "<p>x" + "<!--a" * 200_000,
        "<p>x" + "<![CDATA[" * 100_000,
        "<p>x" + "<!a" * 200_000,
        "<p>x" + "<?a" * 200_000,
        "<p>x" + "</a" * 200_000,
        "<p>x" + "<a b='" * 100_000,
        "<div>" * 20_000 + "x",
        "<font>" * 20_000 + "x",
        "<ul><li>" * 5_000 + "x",
        "<blockquote>" * 5_000 + "x",
        "<b><p>" * 5_000 + "x",
        "<table><tr><td>" * 2_000 + "x",
        "<p>x" + " " * 300_000 + "\n" * 300_000,
        "<pre>x" + " " * 300_000 + "x</pre>",
    ],
)
def test_hostile_pages_end(html):
    """Each of these takes minutes, or all of the stack, when it is read without care."""
    assert "x" in "".join(texts(parse("a.html", html)))


def test_long_lists_and_tables_end():
    for html in ("<ol>" + "<li>x" * 20_000, "<table><thead>" + "<tr><td>x<td>y" * 5_000, "<dl>" + "<dt>x<dd>x" * 5_000):
        document = parse("a.html", html)
        assert sum(kept(document)[word] for word in "xy") in (20_000, 10_000)


def test_reading_html_says_nothing(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert texts(parse("a.xhtml", '<?xml version="1.0"?><root><p>x</p></root>')) == ["x"]
        assert texts(parse("a.html", "https://example.org")) == ["https://example.org"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["<p>a<!--[if IE]>b<![endif]-->", "<script>'<!--'</script><p>a", "<p>a <", "<p>a < b"])
def test_what_is_open_at_the_end_adds_nothing(text):
    assert texts(parse("a.html", text)) in (["a"], ["a <"], ["a < b"])


PARTS = """<p> <b> <i> <div> <table> <tr> <td> <ul> <ol> <li> <dl> <dt> <dd> <h1> <h2> <pre> <a> <br> <code> <title>
</p> </b> </div> </table> </td> </ul> </li> </dl> </h1> </pre> </a> </code> </title> <svg> <blockquote> <!-- --> <span>
one two Q:three A:four & < >"""


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(PARTS.split()),
        max_size=30,
    )
)
def test_no_word_of_html_is_lost(pieces):
    html = " ".join(pieces)
    try:
        document = parse("a.html", html)
    except ForgeError as error:
        assert error.code == 2
        return
    wanted = Counter(re.findall(r"one|two|three|four", html))
    assert wanted - kept(document) == Counter()


HTML = real("/usr/share/doc/**/*.html", "/usr/lib/node_modules/**/*.html", f"{LIBRARY}/**/*.html", count=25)


@pytest.mark.parametrize("path", HTML or [None], ids=str)
def test_every_word_of_a_real_page_of_html_is_kept(path):
    from bs4 import BeautifulSoup

    if path is None:
        pytest.skip("no HTML on this machine")
    try:
        document = document_files.read(path)
    except ForgeError as error:
        assert re.search(r": not [\w-]+ \(byte 0x", error.cause)
        pytest.skip(error.cause)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        soup = BeautifulSoup(path.read_bytes(), "html.parser")
    for tag in soup(["script", "style", "template"]):
        tag.decompose()
    for tag in soup(["br", *markup.BLOCKS]):
        tag.insert_before("\n")
        tag.append("\n")
        tag.insert_after("\n")
    missing = Counter(words(soup.get_text())) - kept(document)
    bare = re.sub(r"\]\([^)]*\)|[\[*`]|~~", "", "\n".join(texts(document)))
    assert [word for word in missing if word not in bare] == []  # `MessagePort`s is one word there, two here


# -- reStructuredText ------------------------------------------------------------------------------------------

RST = """\
Bees
====

First *paragraph*
on ``two`` lines. See `the site <https://example.org/>`_.

Hives
-----

- one
- two

  still two

#. first
#. second

Code::

    def f():
        pass

.. code:: python

   x = 1

Queen
    The **mother**.

    Of all.
Drone : bee
    A male.

=====  =====
a      b
=====  =====
1      2
=====  =====

.. a comment

A paragraph, and

    a quotation.

:Author: me

Glossary
--------

Comb: made of wax

Questions
---------

Q: Who
are you?
A: I am **Maja**.
"""


def test_a_page_of_restructured_text():
    document = parse("page.rst", RST)
    assert [(unit.path, unit.line) for unit in document] == [
        (["Bees"], 1),
        (["Bees", "Hives"], 7),
        (["Bees", "Glossary"], 48),
        (["Bees", "Questions"], 53),
    ]
    assert blocks(document) == [
        (4, "prose", "First *paragraph* on `two` lines. See [the site](https://example.org/)."),
        (10, "list", "- one\n- two\n\n  still two"),
        (15, "list", "1. first\n2. second"),
        (18, "prose", "Code:"),
        (20, "code", "```\ndef f():\n    pass\n```"),
        (25, "code", "```python\nx = 1\n```"),
        (34, "table", "| a | b |\n| --- | --- |\n| 1 | 2 |"),
        (42, "prose", "A paragraph, and"),
        (44, "quote", "> a quotation."),
        (46, "list", "- Author: me"),
    ]
    assert definitions(document) == [
        ("Queen", "The **mother**.\n\nOf all.", 27),
        ("Drone : bee", "A male.", 31),
        ("Comb", "made of wax", 51),
    ]
    assert document.units[3].questions == [documents.Questions(["Who are you?"], "I am Maja.", ["Maja"], 56)]
    assert dropped(document) == [(40, rst.REMARK, "a comment")]


SPHINX = """\
.. module:: hive
   :synopsis: All about hives.

Use :func:`~hive.build` or :py:class:`Comb`, see :ref:`the combs <combs>` and :doc:`more`, press :kbd:`Enter`.

.. index:: single: hive

.. function:: build(*combs, size=1)
   :noindex:

   Build from *combs*.

   :param size: in combs

   .. versionadded:: 3.2
      The *size* parameter.

.. code-block:: python
   :linenos:
   :caption: How to build

   build(a_, *b)

.. toctree::
   :caption: Contents

   intro
   use

.. glossary::

   comb
      Made of wax.

.. literalinclude:: /etc/passwd

.. no-such-thing:: and *that*

.. unknown::
   directly *here*
"""


HIDDEN = [(1, ":synopsis: All about hives."), (6, ".. index:: single: hive")]


def test_what_is_sphinxs_keeps_its_text():
    document = parse("page.rst", SPHINX)
    assert texts(document) == [
        "module: hive",
        "Use `hive.build` or `Comb`, see the combs and more, press `Enter`.",
        "function: build(*combs, size=1)",
        "Build from *combs*.",
        "- param size: in combs",
        "versionadded: 3.2 The *size* parameter.",
        "How to build",
        "```python\nbuild(a_, *b)\n```",
        "Contents",
        "intro use",
        "literalinclude: /etc/passwd",
        "no-such-thing: and *that*",
        "unknown: directly *here*",
    ]
    assert definitions(document) == [("comb", "Made of wax.", 32)]
    assert dropped(document) == [(line, rst.REMARK, text) for line, text in HIDDEN]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (".. code:: python\n   :no-such-option: x\n\n   y", "```python\ny\n```"),
        (".. math:: a^2\n   :no-such-option: x", "```\n.. math:: a^2\n   :no-such-option: x\n```"),
        (".. note::", "```\n.. note::\n```"),
        ("para\n\n    quote\n\n    Title\n    =====", "> quote\n>\n> ```\n> Title\n> =====\n> ```"),
        ("=====\nabc\n-----", "```\n=====\nabc\n-----\n```"),
        ("text\n\n=====\nabc", "```\n=====\nabc\n```"),
        ("=====\nabc\n=====\n\ntext\n\nLong title\n---\n\nend", "end"),
        ("A\n=\n\nB\n-\n\nC\n~\n\n\nD\n=\n\nE\n~", "```\nE\n~\n```"),
        ("+---+\n| a |\n+-", "```\n+---+\n| a |\n+-\n```"),
        ("An *open emphasis and a |missing| one_ `here.", "An *open emphasis and a |missing| one_ `here."),
        (".. |x| replace:: y\n\nA |x|.", "A y."),
        ("Today is |d|.\n\n.. |d| date::", "Today is date."),
        (".. image:: /etc/hostname.svg\n   :loading: embed\n   :alt: a picture", "a picture"),
        (".. figure:: x.png\n\n   caption", "caption"),
        (".. include:: /etc/passwd", "include: /etc/passwd"),
        (".. class:: Comb(size)", "class: Comb(size)"),
        (".. title:: Combs", "title: Combs"),
        (".. header:: above\n\n.. footer:: below", "below"),
        (".. raw:: html\n\n   <b>x</b>", "```html\n<b>x</b>\n```"),
        (".. csv-table::\n   :file: /etc/passwd", "```\n.. csv-table::\n   :file: /etc/passwd\n```"),
        (".. csv-table::\n   :url: http://127.0.0.1:9/x", "```\n.. csv-table::\n   :url: http://127.0.0.1:9/x\n```"),
        (".. role:: raw-html(raw)\n   :format: html\n\n:raw-html:`<b>x`", ":raw-html:`<b>x`"),
        (".. math:: \\frac{a}{b}", "```\n\\frac{a}{b}\n```"),
        (":math:`\\frac{a}{b}`", "\\frac{a}{b}"),
        ("a@example.org", "a@example.org"),
        ('"quoted" -- text...', '"quoted" -- text...'),
        ("x" * 20_000, "x" * 20_000),
    ],
)
def test_what_docutils_gives_up_is_shown_as_it_is(text, shown, capfd):
    assert texts(parse("page.rst", text))[-1:] == [shown]
    assert capfd.readouterr() == ("", "")


def test_a_substitution_that_nothing_uses():
    document = parse("page.rst", ".. |a| replace:: one\n.. |B c| replace:: two\n\nA |b  C| here.\n")
    assert texts(document) == ["A two here."]
    assert dropped(document) == [(1, rst.REMARK, ".. |a| replace:: one")]


def test_lines_of_comments():
    text = "a\n\n.. one\n\n.. two\n   more\n\n   and more\n\n.. index::\n   single: x\n   pair: y\n\n..\n   three\n"
    assert [item.line for item in parse("page.rst", text).dropped] == [3, 5, 10, 14]


def test_a_table_of_contents_is_not_repeated():
    document = parse("page.rst", ".. contents::\n\nA\n=\n\na\n\nB\n=\n\nb\n\n.. sectnum::\n")
    assert [unit.path for unit in document] == [["A"], ["B"]]
    assert texts(document) == ["a", "b"]


def test_a_role_of_one_document_does_not_reach_the_next():
    own = ".. role:: fine\n   :class: literal\n\n.. default-role:: fine\n\n`x` :fine:`y`\n"
    other = "`x` :fine:`y`\n"
    before = parse("a.rst", other)
    parse("a.rst", own)
    assert parse("a.rst", other) == before
    assert texts(before) == ["x `y`"]


def test_a_bomb_of_substitutions_does_not_grow():
    text = ".. |a0| replace:: lol lol lol\n" + "".join(
        f".. |a{depth}| replace:: {' '.join([f'|a{depth - 1}|'] * 10)}\n" for depth in range(1, 9)
    )
    assert sum(map(len, texts(parse("page.rst", text + "\nx |a8| y\n")))) < 100_000


@pytest.mark.parametrize("text", ["`a " * 10_001, "*a " * 10_001, "|a " * 10_001])
def test_what_docutils_takes_minutes_for_is_plain_text(text):
    assert texts(parse("page.rst", "Title\n=====\n\n" + text)) == ["Title\n=====", text]


def test_restructured_text_that_is_nested_too_deeply():
    error = refused("page.rst", "".join(" " * depth + "- x\n\n" for depth in range(0, 1000, 2)))
    assert error.cause == "page.rst: reStructuredText that is nested too deeply"


MARKUP = re.compile(
    r"""^\s*(?:\.\.\ (?:\[?_|image::|\|)|__\ ).*$ | ^\s*:[\w-]+:.*$ | ^([^\w\s]|_)\1*$  # targets, options, adornments
    | \.\.\ [\w:+.-]+\ ?:: | :[\w:+.-]+:(?=`) | \s*<[^<>`]+>(?=`(?!`))   # directives, roles, links
    | \|[^|\s][^|\n]*\|_? | \[\#\w*\]""",  # substitutions, footnotes
    re.MULTILINE | re.VERBOSE,
)
PAGES_OF_RST = real("/usr/share/doc/**/*.rst", "/usr/share/cmake*/Help/**/*.rst", f"{PACKAGES}/**/*.rst", count=25)


@pytest.mark.parametrize("path", PAGES_OF_RST or [None], ids=str)
def test_every_word_of_a_real_page_of_restructured_text_is_kept(path, capfd):
    if path is None:
        pytest.skip("no reStructuredText on this machine")
    text = path.read_text(encoding="utf-8")
    document = document_files.read(path)
    text = MARKUP.sub("", text)
    wanted = Counter(words(text)) & Counter(words(text.replace("\\ ", "").replace("\\", "")))  # an escape, or in code
    missing = wanted - kept(document)
    assert missing.total() <= 3 + wanted.total() / 100, missing  # what the pattern above takes for words
    assert capfd.readouterr() == ("", "")


# -- Word ------------------------------------------------------------------------------------------------------

OFFICE = "http://schemas.openxmlformats.org"
MAIN = f"{OFFICE}/wordprocessingml/2006/main"
TYPES = f"""<?xml version="1.0"?><Types xmlns="{OFFICE}/package/2006/content-types">
<Default Extension="xml" ContentType="application/xml"/>
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/></Types>"""
RELATIONS = f"""<?xml version="1.0"?><Relationships xmlns="{OFFICE}/package/2006/relationships"><Relationship Id="r1"
Type="{OFFICE}/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>"""
STYLES = f"""<?xml version="1.0"?><w:styles xmlns:w="{MAIN}">""" + "".join(
    f'<w:style w:type="paragraph" w:styleId="{key}"><w:name w:val="{name}"/></w:style>'
    for key, name in [
        ("Title", "Title"),
        ("H1", "heading 1"),
        ("H2", "heading 2"),
        ("Quote", "Quote"),
        ("Code", "Source Code"),
    ]
)
NUMBERS = f"""<?xml version="1.0"?><w:numbering xmlns:w="{MAIN}">
<w:abstractNum w:abstractNumId="0"><w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/></w:lvl></w:abstractNum>
<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num></w:numbering>"""


def paragraph(text: str, style: str = "", more: str = "") -> str:
    style = f'<w:pStyle w:val="{style}"/>' if style else ""
    return f'<w:p><w:pPr>{style}{more}</w:pPr><w:r><w:t xml:space="preserve">{text}</w:t></w:r></w:p>'


def item(text: str) -> str:
    return paragraph(text, more='<w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr>')


def table(*rows: list[str]) -> str:
    cells = ["".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) for row in rows]
    return "<w:tbl>" + "".join(f"<w:tr>{row}</w:tr>" for row in cells) + "</w:tbl>"


def word(body: str, before: str = "", **more: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", TYPES)
        archive.writestr("_rels/.rels", RELATIONS)
        archive.writestr("word/styles.xml", STYLES + "</w:styles>")
        archive.writestr("word/numbering.xml", NUMBERS)
        archive.writestr(
            "word/document.xml",
            f'<?xml version="1.0"?>{before}<w:document xmlns:w="{MAIN}"><w:body>{body}</w:body></w:document>',
        )
        for name, data in more.items():
            archive.writestr(name.replace("__", "/"), data)
    return made.getvalue()


LETTER = word(
    paragraph("Bees", "Title")
    + paragraph("Before any heading.")
    + paragraph("Hives", "H1")
    + paragraph("One &amp; two.")
    + item("first")
    + item("second")
    + table(["a", "b"], ["1", "2"])
    + paragraph("Combs", "H2")
    + paragraph("Said.", "Quote")
    + paragraph("x = 1", "Code")
    + paragraph("  y = 2", "Code")
    + paragraph("")
    + paragraph("Glossary", "H1")
    + paragraph("Queen: the mother")
    + paragraph("Questions", "H1")
    + paragraph("Q: Who?")
    + paragraph("A: Maja.")
)


def test_a_word_file():
    document = parse("letter.docx", LETTER)
    assert [(unit.path, unit.place, unit.origin) for unit in document] == [
        (["Bees"], "paragraph 1", "letter.docx, paragraph 1"),
        (["Bees", "Hives"], "paragraph 3", "letter.docx, paragraph 3"),
        (["Bees", "Hives", "Combs"], "paragraph 11", "letter.docx, paragraph 11"),
        (["Bees", "Glossary"], "paragraph 15", "letter.docx, paragraph 15"),
        (["Bees", "Questions"], "paragraph 17", "letter.docx, paragraph 17"),
    ]
    assert blocks(document) == [
        (2, "prose", "Before any heading."),
        (4, "prose", "One & two."),
        (5, "list", "- first\n- second"),
        (7, "table", "|  |  |\n| --- | --- |\n| a | b |\n| 1 | 2 |"),
        (12, "quote", "> Said."),
        (13, "code", "```\nx = 1\n  y = 2\n```"),
    ]
    assert definitions(document) == [("Queen", "the mother", 16)]
    assert document.units[-1].questions[0].wordings == ["Who?"]
    assert dropped(document) == []


def test_every_word_of_a_word_file_is_kept():
    import mammoth

    wanted = Counter(WORDS.findall(mammoth.extract_raw_text(io.BytesIO(LETTER)).value))
    assert wanted - kept(parse("letter.docx", LETTER)) == Counter()


def test_a_word_file_hides_nothing_by_a_style_map_of_its_own():
    raw = word(paragraph("shown"), **{"mammoth__style-map": b"p => !"})
    assert texts(parse("a.docx", raw)) == ["shown"]


def test_a_word_file_fetches_nothing():
    entity = '<!DOCTYPE w [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    assert texts(parse("a.docx", word(paragraph("x&e;y"), entity))) == ["xy"]


LAUGHS = "".join(f'<!ENTITY a{depth} "{f"&a{depth - 1};" * 10}">' for depth in range(1, 10))


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (b"", "broken Word file: BadZipFile: File is not a zip file"),
        (b"no zip", "broken Word file: BadZipFile: File is not a zip file"),
        (LETTER[: len(LETTER) // 2], "broken Word file: BadZipFile: File is not a zip file"),
        (word("<w:p>"), "broken Word file: ExpatError: mismatched tag"),
        (
            word(paragraph("&a9;"), f'<!DOCTYPE w [<!ENTITY a0 "lol">{LAUGHS}]>'),
            "broken Word file: ExpatError: limit on",
        ),
        (
            word("<w:sdt><w:sdtContent>" * 2000 + "</w:sdtContent></w:sdt>" * 2000),
            "Word file that is nested too deeply",
        ),
        (word("", word__media__a=bytes(257 << 20)), "unpacked, it is larger than 256 MB"),
        (word(paragraph("x" * (33 << 20))), "its XML is larger than 32 MB"),
    ],
    ids=["empty", "text", "torn", "tag", "entities", "deep", "bomb", "XML"],
)
def test_a_word_file_that_is_broken_or_hostile(raw, cause):
    error = refused("a.docx", raw)
    assert error.cause.startswith(f"a.docx: {cause}")
    assert error.code == 2


def test_a_word_file_that_lies_about_its_size():
    raw = bytearray(word(paragraph("word " * 100_000)))
    entry = raw.rindex(b"word/document.xml") - 46
    assert raw[entry : entry + 4] == b"PK\x01\x02"
    struct.pack_into("<I", raw, entry + 24, 100)  # the size in the zip's directory
    assert refused("a.docx", bytes(raw)).cause == ("a.docx: broken Word file: BadZipFile: Bad CRC-32 for file ...")


# -- PDF -------------------------------------------------------------------------------------------------------


def pdf(*streams: bytes, coding: bytes = b"") -> bytes:
    """A PDF with a page for each stream of drawing commands."""
    pages = [3 + 2 * index for index in range(len(streams))]
    font = 3 + 2 * len(streams)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(pages), b" ".join(b"%d 0 R" % page for page in pages)),
    ]
    for page, stream in zip(pages, streams, strict=True):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 300] /Contents %d 0 R "
            b"/Resources << /Font << /F %d 0 R >> >> >>" % (page + 1, font)
        )
        objects.append(b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(stream), coding, stream))
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>")
    return assembled(objects)


def assembled(objects: list[bytes]) -> bytes:
    made, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(made))
        made += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    end = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (size, len(made))
    return made + b"xref\n0 %d\n0000000000 65535 f \n" % size + table + end


def lines(*texts: str) -> bytes:
    shown = b"".join(b"(%s) Tj 0 -20 Td " % text.encode("cp1252") for text in texts)
    return b"BT /F 12 Tf 20 250 Td " + shown + b"ET"


BOOK = pdf(lines("Bees live in", "a hive."), b"", lines("Caf\u00e9 of bees."))


def test_a_pdf():
    document = parse("a/book.pdf", BOOK)
    assert [(unit.path, unit.line, unit.place, unit.kind, unit.origin) for unit in document] == [
        (["book", "page 1"], 1, "page 1", "pdf", "a/book.pdf, page 1"),
        (["book", "page 3"], 3, "page 3", "pdf", "a/book.pdf, page 3"),
    ]
    assert blocks(document) == [(1, "prose", "Bees live in\na hive."), (3, "prose", "Caf\u00e9 of bees.")]
    assert dropped(document) == [(2, "a page without text: a picture?", "")]


def test_questions_in_a_pdf():
    unit = parse("a.pdf", pdf(lines("Q: Who?", "Q: What?", "A: Maja."))).units[0]
    assert [(group.wordings, group.answer, group.line) for group in unit.questions] == [(["Who?", "What?"], "Maja.", 1)]


def encrypted() -> bytes:
    import pypdf

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(BOOK))
    writer.encrypt("", "owner", algorithm="RC4-128")
    made = io.BytesIO()
    writer.write(made)
    return made.getvalue()


def test_an_encrypted_pdf_is_refused():
    error = refused("a.pdf", encrypted())
    assert error.cause == "a.pdf: encrypted PDF"
    assert error.remedy == "save a copy without a password, or exclude it"
    assert error.code == 2


BOMB = zlib.compress(lines("x") + b"(x) Tj " * 20_000_000)


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (b"", "EmptyFileError"),
        (b"no PDF\n" * 100, "PdfStreamError"),
        (BOOK[:300], "PdfStreamError"),
        (BOOK[:9] + bytes(200), "PdfStreamError"),
        (assembled([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [2 0 R] >>"]), "PdfReadError"),
        (pdf(BOMB, coding=b"/Filter /FlateDecode"), "LimitReachedError"),
    ],
    ids=["empty", "text", "torn", "zeros", "loop", "bomb"],
)
def test_a_pdf_that_is_broken_or_hostile(raw, cause, capfd, caplog):
    error = refused("a.pdf", raw)
    assert error.cause.startswith(f"a.pdf: broken PDF: {cause}: ")
    assert (error.code, error.remedy) == (2, REMEDY)
    assert capfd.readouterr() == ("", "")


def test_a_pdf_with_too_much_text(monkeypatch):
    monkeypatch.setattr(documents, "LARGEST", 20)
    assert refused("a.pdf", BOOK).cause.startswith("a.pdf: the text is larger than")


def test_what_no_file_can_hold_is_replaced():
    assert documents.sound("a\0b") == "a\ufffdb"
    assert documents.sound("\ud83d\ude00 \ud800 x\0") == "\U0001f600 \ufffd x\ufffd"


def test_a_message_quotes_no_document():
    secret = b"<< /Type /Catalog /Pages 2 0 R /Password [(opensesame) opensesame"
    error = refused("a.pdf", assembled([secret, b"opensesame"]))
    assert "broken PDF" in error.cause
    assert "opensesame" not in error.cause
    told = ["b'one two' @3", 'not "one', "can't read 'one'", "(b'one', 2)"]
    assert [document_files.QUOTED.sub("...", text) for text in told] == [
        "... @3",
        "not ...",
        "can't read ...",
        "(..., 2)",
    ]


PDFS = real("/usr/share/doc/**/*.pdf", f"{PACKAGES}/**/*.pdf", count=5, largest=1_000_000)


@pytest.mark.parametrize("path", PDFS or [None], ids=str)
def test_every_word_of_a_real_pdf_is_kept_in_order(path):
    import pypdf

    if path is None:
        pytest.skip("no PDF on this machine")
    text = "\n".join(page.extract_text() for page in pypdf.PdfReader(path).pages)
    assert said(document_files.read(path)) == WORDS.findall(documents.sound(text))


# -- notebooks -------------------------------------------------------------------------------------------------


def notebook(*cells: dict, **metadata: dict) -> str:
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def cell(kind: str, source: str | list[str], **more) -> dict:
    return {"cell_type": kind, "metadata": {}, "source": source, **more}


STUDY = notebook(
    cell("markdown", ["# Bees\n", "\n", "Words of *bees*.\n"]),
    cell(
        "code",
        "x <- 1\nprint(x)\n",
        outputs=[
            {"output_type": "stream", "name": "stdout", "text": ["one\n", "two\n"]},
            {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}},
            {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo="}},
            {"output_type": "error", "traceback": ["Error: three"]},
        ],
    ),
    cell("markdown", "## Hives\n\nMore.\n\nQ: Who?\nA: Maja.\n\n## Empty"),
    cell("raw", "As it is."),
    cell("code", "", outputs=[]),
    cell("code", "```\n"),
    kernelspec={"language": "R", "name": "ir"},
)


def test_a_notebook():
    document = parse("study.ipynb", STUDY)
    assert [(unit.path, unit.place, unit.kind) for unit in document] == [
        (["Bees"], "cell 1", "notebook"),
        (["Bees", "Hives"], "cell 3", "notebook"),
        (["Bees", "Empty"], "cell 3", "notebook"),
    ]
    assert blocks(document) == [
        (1, "prose", "Words of *bees*."),
        (2, "code", "```r\nx <- 1\nprint(x)\n```"),
        (3, "prose", "More."),
        (4, "prose", "As it is."),
        (6, "code", "````r\n```\n````"),
    ]
    assert [group.line for group in document.units[1].questions] == [3]
    assert dropped(document) == [
        (2, "the output of a cell", "one\ntwo"),
        (2, "the output of a cell", "<Figure>"),
        (2, "the output of a cell", "image/png"),
        (2, "the output of a cell", "Error: three"),
    ]


@pytest.mark.parametrize(
    ("metadata", "language"),
    [
        ({}, "python"),
        ({"language_info": {"name": "julia"}}, "julia"),
        ({"kernelspec": {"language": "C++17"}}, "c++17"),
        ({"kernelspec": {"language": "no\n```language"}}, "python"),
        ({"kernelspec": None}, "python"),
    ],
)
def test_the_language_of_a_notebook(metadata, language):
    assert texts(parse("a.ipynb", notebook(cell("code", "x"), **metadata))) == [f"```{language}\nx\n```"]


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        ("", "broken notebook: JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        ('{"cells": [', "broken notebook: JSONDecodeError: Expecting value: line 1 column 12 (char 11)"),
        ("[" * 100_000, "notebook that is nested too deeply"),
        ("[]", "no notebook of format 4"),
        ('{"worksheets": []}', "no notebook of format 4"),
        ('{"cells": [3]}', "no notebook of format 4"),
        (notebook(cell("code", 3)), "cell 1 holds no text"),
        (notebook(cell("raw", "a"), cell("raw", ["a", None])), "cell 2 holds no text"),
        (notebook(cell("markdown", "a \ud800 b")), "cell 1 holds a lone surrogate"),
        (notebook(cell("code", "a\0b")), "cell 1 holds a NUL character"),
        (notebook(cell("code", "a", outputs=[{"text": ["\udfff"]}])), "cell 1 holds a lone surrogate"),
    ],
)
def test_a_notebook_that_is_broken(raw, cause):
    error = refused("a.ipynb", raw)
    assert (error.cause, error.code) == (f"a.ipynb: {cause}", 2)


NOTEBOOKS = real(f"{Path(sys.prefix)}/src/**/*.ipynb", "/usr/share/**/*.ipynb", f"{PACKAGES}/**/*.ipynb", count=10)


@pytest.mark.parametrize("path", NOTEBOOKS or [None], ids=str)
def test_every_word_of_a_real_notebook_is_kept(path):
    if path is None:
        pytest.skip("no notebook on this machine")
    document = document_files.read(path)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    wanted = Counter(WORDS.findall("\n".join("".join(cell["source"]) for cell in cells)))
    assert wanted - Counter(said(document)) - headings(document) == Counter()


# -- source code -----------------------------------------------------------------------------------------------


def test_a_program():
    text = '"""What it is."""\n\nimport os\n# more\n\n\nclass A:\n    x = 1\n\n    y = 2\n\nend = A\n'
    document = parse("a/b.py", text)
    assert [(unit.path, unit.line, unit.kind, unit.place) for unit in document] == [(["b.py"], 1, "code", None)]
    assert blocks(document) == [
        (1, "code", '"""What it is."""'),
        (3, "code", "import os\n# more"),
        (7, "code", "class A:\n    x = 1\n\n    y = 2"),
        (12, "code", "end = A"),
    ]
    assert {block.language for unit in document for block in unit.blocks} == {"python"}
    assert {block.divisible for unit in document for block in unit.blocks} == {False}


@pytest.mark.parametrize("name", ["a.sh", "a.c", "a.JSON", "a.toml", "a.yml", "a.css", "a.sql", "a.rs", "a.go"])
def test_other_languages(name):
    block = parse(name, "x\n").units[0].blocks[0]
    assert (block.text, block.language) == ("x", readers.LANGUAGES[Path(name).suffix.lower()])


def test_a_long_piece_is_cut_between_lines_at_a_blank_one_if_there_is_one():
    line = " " * 4 + "x" * 95 + "\n"
    text = "def f():\n" + line * 8 + "\n" + line * 8 + line * 20 + "    " + "y" * 5000 + "\n    z\n"
    found = readers.pieces(text)
    assert [(piece.count("\n") + 1, first) for piece, first in found] == [
        (9, 1),
        (12, 11),
        (12, 23),
        (4, 35),
        (1, 39),
        (1, 40),
    ]
    assert found[-2][0] == "    " + "y" * 5000


CODE = st.lists(
    st.sampled_from(["", "  ", "x", "  x", "\tx", "def f():", "x" * 700, "  " + "y" * 1300, "\x0c"]), max_size=30
)


@settings(max_examples=200, deadline=None)
@given(CODE)
def test_every_line_stands_in_one_piece(given_lines):
    found = readers.pieces("\n".join(given_lines))
    stand = {first + index: line for piece, first in found for index, line in enumerate(piece.split("\n"))}
    assert sum(piece.count("\n") + 1 for piece, _ in found) == len(stand)
    assert all(given_lines[number - 1] == line for number, line in stand.items())
    assert {index + 1 for index, line in enumerate(given_lines) if line.strip()} <= set(stand)
    assert all(len(piece) <= documents.LONGEST_CODE or "\n" not in piece for piece, _ in found)
    assert all(piece.strip() and piece == piece.strip("\n") for piece, _ in found)


# -- all of them -----------------------------------------------------------------------------------------------

EVERY = {
    "a.html": PAGE.encode(),
    "a.rst": RST.encode(),
    "a.docx": LETTER,
    "a.pdf": BOOK,
    "a.ipynb": STUDY.encode(),
    "a.py": b"x = 1\n",
    "LICENSE": b"Words.\n",
    "a.unknown": b"Words.\n",
    "a.md": b"# A\n\nWords.\n",
}


@pytest.mark.parametrize("name", EVERY)
def test_a_file_is_read_by_its_suffix_whatever_its_case(tmp_path, name):
    for changed in (name, name.upper()):
        path = tmp_path / changed
        path.write_bytes(EVERY[name])
        document = document_files.read(path)
        assert {unit.file for unit in document} == {str(path)}
        assert document == document_files.parse(str(path), EVERY[name])


@pytest.mark.parametrize("name", EVERY)
def test_the_same_bytes_give_the_same_document(name):
    first = parse(name, EVERY[name])
    for other, raw in EVERY.items():
        parse(other, raw)
    assert parse(name, EVERY[name]) == first


@pytest.mark.parametrize("name", EVERY)
def test_an_empty_file(name):
    if name in ("a.docx", "a.pdf", "a.ipynb"):
        assert refused(name, b"").code == 2
    else:
        assert parse(name, b"") == documents.Document([], [])


@pytest.mark.parametrize("name", ["a.html", "a.rst"])
def test_what_becomes_a_tree_may_be_smaller_only(monkeypatch, name):
    monkeypatch.setattr(readers, "LARGEST_TREE", 1 << 20)
    assert refused(name, b"x\n" * (1 << 20)).cause == f"{name} is larger than 1 MB"


@pytest.mark.parametrize(
    ("name", "module", "package", "kind"),
    [
        ("a.pdf", "pypdf", "pypdf", "PDF"),
        ("a.docx", "mammoth", "mammoth", "Word file"),
        ("a.html", "bs4", "beautifulsoup4", "HTML"),
        ("a.html", "markdownify", "markdownify", "HTML"),
        ("a.rst", "docutils", "docutils", "reStructuredText"),
        ("a.md", "markdown_it", "markdown_it", "Markdown"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, name, module, package, kind):
    import forge.reading

    for ours in ("markup", "rst"):
        monkeypatch.delitem(sys.modules, f"forge.reading.{ours}", raising=False)
        monkeypatch.delattr(forge.reading, ours, raising=False)
    documents._parser.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    error = refused(name, EVERY[name])
    assert (error.cause, error.remedy, error.code) == (
        f"{name}: {kind} needs the package {package}",
        "run make setup",
        7,
    )


@pytest.mark.parametrize("name", ["a.html", "a.rst", "a.docx", "a.pdf", "a.ipynb", "a.py"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_noise_is_read_or_refused_by_name(name, data):
    """A real document with some bytes changed, or bytes of no kind."""
    raw = bytearray(EVERY[name])
    for _ in range(data.draw(st.integers(1, 20))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = bytes(raw) if data.draw(st.booleans()) else data.draw(st.binary(max_size=300))
    try:
        assert isinstance(document_files.parse(name, raw), documents.Document)
    except ForgeError as error:
        assert error.code == 2
        assert error.cause.startswith(name)
