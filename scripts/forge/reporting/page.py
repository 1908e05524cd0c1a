"""The page: page.html.j2 filled with the facts. Everything that a person wrote is escaped by Jinja2."""

from pathlib import Path

import jinja2

from forge import files
from forge.errors import ForgeError

LARGEST = 2_000_000  # bytes of a page


def render(facts: dict) -> str:
    """The whole page as text that UTF-8 can hold. Raises ForgeError (2) where it would be over LARGEST bytes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, size=files.size_text)
    text = environment.get_template("page.html.j2").render(facts)
    page = text.encode("utf-8", "replace")  # half a surrogate pair in somebody's answer is no text
    if len(page) > LARGEST:
        raise ForgeError(
            f"the page would have {len(page)} bytes, more than {LARGEST}",
            "shorten what the config lists: sources, sets",
        )
    return page.decode("utf-8")


def number(value: object) -> str:
    """Three significant digits, or all before the point; whole numbers with commas; a dash for nothing."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
