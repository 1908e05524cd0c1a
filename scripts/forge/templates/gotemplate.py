"""Renders what our Ollama TEMPLATEs use of Go's text/template, byte for byte as Go does, and refuses all else.

That is: text, `{{-` and `-}}`, `if`/`else if`/`else`, `range` over a list (with `$index, $item :=`), `define` and
`template`, variables (`:=`), fields (`.Name`, `$.Name`, `$item.Name`), quoted strings, whole numbers, parentheses and
the functions below. No pipes. tests/test_templates.py compares it with Go itself.

A Go string is bytes: so `len` and `slice` count bytes here, too.
"""

import ast
import re
from collections.abc import Callable

ACTION = re.compile(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", re.DOTALL)
WORD = re.compile(r'\s*("(?:[^"\\]|\\.)*"|:=|[(),]|\d+|\$?[\w.]+|\$)')
SPACE = " \t\r\n"


class Failed(Exception):
    """Go would end with an error here, or the template uses what is not known here."""


class Template:
    """A parsed template. Raises Failed when it uses what is not known here."""

    def __init__(self, text: str):
        self.defined: dict[str, list] = {}
        self.pieces = _split(text)
        self.body, _ = self._body()
        if self.pieces:
            raise Failed(f"{self.pieces[0]} without a beginning")

    def render(self, data: dict[str, object]) -> str:
        """The text for `data`: str, list and dict in any depth. Raises Failed where Go ends with an error."""
        top = _bytes(data)
        try:
            return b"".join(self._run(self.body, top, {"$": top})).decode("utf-8")
        except RecursionError:  # Python ends some 200 nested templates deep, Go 100,000
            raise Failed("templates are nested too deep") from None

    # -- parsing: a list of nodes, each a tuple that begins with its kind ------------------------------------------

    def _body(self) -> tuple[list, list[str]]:
        """Nodes up to the `else` or `end` that closes them, and the words of that."""
        nodes: list[tuple] = []
        while self.pieces:
            piece = self.pieces.pop(0)
            if isinstance(piece, bytes):
                nodes.append(("text", piece))
                continue
            match piece:
                case ["end"] | ["else", *_]:
                    return nodes, piece
                case ["define", name]:
                    self.defined[_literal(name)], _ = self._body()
                case ["template", name, *value]:
                    nodes.append(("template", _literal(name), _expression(value)))
                case ["if", *condition]:
                    nodes.append(self._if(condition))
                case ["range", index, ",", item, ":=", *value]:
                    nodes.append(("range", (index, item), _expression(value), self._body()[0]))
                case ["range", *value]:
                    nodes.append(("range", (), _expression(value), self._body()[0]))
                case [name, ":=", *value]:
                    nodes.append(("set", name, _expression(value)))
                case _:
                    nodes.append(("print", _expression(piece)))
        return nodes, []

    def _if(self, condition: list[str]) -> tuple:
        body, closing = self._body()
        match closing:
            case ["else", "if", *other]:
                otherwise = [self._if(other)]
            case ["else"]:
                otherwise, _ = self._body()
            case _:
                otherwise = []
        return ("if", _expression(condition), body, otherwise)

    # -- running ---------------------------------------------------------------------------------------------------

    def _run(self, nodes: list, dot: object, names: dict[str, object]):
        """Yields the text of `nodes`. `names`: the variables; those that are set in here are gone afterwards."""
        names = dict(names)
        for node in nodes:
            match node:
                case ("text", text):
                    yield text
                case ("print", what):
                    value = what(dot, names)
                    if not isinstance(value, bytes):
                        raise Failed(f"{value!r} is no text")
                    yield value
                case ("set", name, what):
                    names[name] = what(dot, names)
                case ("if", condition, body, otherwise):
                    yield from self._run(body if condition(dot, names) else otherwise, dot, names)
                case ("range", variables, what, body):
                    for index, item in enumerate(what(dot, names)):
                        inner = dict(zip(variables, (index, item), strict=False))
                        yield from self._run(body, item, {**names, **inner})
                case ("template", name, what):
                    if name not in self.defined:
                        raise Failed(f"template {name!r} is not defined")
                    inner = what(dot, names)
                    yield from self._run(self.defined[name], inner, {"$": inner})


def _split(text: str) -> list:
    """Text as bytes and actions as lists of words, in turn, white space taken away where a marker says so."""
    pieces: list = []
    position, trimmed = 0, False
    for found in [*ACTION.finditer(text), None]:
        before = text[position : found.start() if found else len(text)]
        if "{{" in before:
            raise Failed("an action is not closed")
        before = before.lstrip(SPACE) if trimmed else before
        pieces.append((before.rstrip(SPACE) if found and found[1] else before).encode("utf-8"))
        if found:
            pieces.append(_words(found[2]))
            position, trimmed = found.end(), bool(found[3])
    return pieces


def _words(action: str) -> list[str]:
    words, position = [], 0
    while position < len(action):
        found = WORD.match(action, position)
        if not found:
            raise Failed(f"{action[position:]!r} is not known here")
        words.append(found[1])
        position = found.end()
    return words


def _literal(word: str) -> str:
    return ast.literal_eval(word)


def _expression(words: list[str]) -> Callable:
    """A function of (dot, names) that gives the value of `words`: one operand, or a function and its operands."""
    operands, rest = _operands(words)
    if rest or not operands:
        raise Failed(f"{' '.join(words)!r} is not known here")
    if words[0] in FUNCTIONS:
        function = FUNCTIONS[words[0]]
        return lambda dot, names: function(*(lambda part=part: part(dot, names) for part in operands[1:]))
    if len(operands) > 1:
        raise Failed(f"{words[0]!r} is no function known here")
    return operands[0]


def _operands(words: list[str]) -> tuple[list[Callable], list[str]]:
    """Operands up to a closing parenthesis or the end, and what stands behind it."""
    found = []
    while words and words[0] != ")":
        word, *words = words
        if word == "(":
            inside, rest = _inside(words)
            found.append(_expression(inside))
            words = rest
        else:
            found.append(_operand(word))
    return found, words


def _inside(words: list[str]) -> tuple[list[str], list[str]]:
    depth = 1
    for index, word in enumerate(words):
        depth += {"(": 1, ")": -1}.get(word, 0)
        if depth == 0:
            return words[:index], words[index + 1 :]
    raise Failed("a parenthesis is not closed")


def _operand(word: str) -> Callable:
    if word[0] == '"':
        text = _literal(word).encode("utf-8")
        return lambda dot, names: text
    if word.isdigit():
        return lambda dot, names: int(word)
    if word in FUNCTIONS:
        return lambda dot, names: None
    name, *fields = word.split(".")
    if name and name[0] != "$":
        raise Failed(f"{word!r} is not known here")
    return lambda dot, names: _field(names[name] if name else dot, fields)


def _field(value: object, fields: list[str]) -> object:
    for name in filter(None, fields):
        if not isinstance(value, dict) or name not in value:
            raise Failed(f"there is no .{name}")
        value = value[name]
    return value


def _bytes(value: object) -> object:
    if isinstance(value, dict):
        return {key: _bytes(item) for key, item in value.items()}
    return [_bytes(item) for item in value] if isinstance(value, list) else str(value).encode("utf-8")


# -- the functions; each takes its operands unevaluated, as `and` and `or` stop early ----------------------------------


def _and(*parts: Callable) -> object:
    value = None
    for part in parts:
        value = part()
        if not value:
            break
    return value


def _or(*parts: Callable) -> object:
    value = None
    for part in parts:
        value = part()
        if value:
            break
    return value


def _slice(text: Callable, *limits: Callable) -> object:
    value = text()
    start, end = [*(limit() for limit in limits), len(value)][:2]
    if not 0 <= start <= end <= len(value):
        raise Failed(f"slice from {start} to {end} of {len(value)}")
    return value[start:end]


def _index(values: Callable, number: Callable) -> object:
    found, place = values(), number()
    if place >= len(found):
        raise Failed(f"index {place} of {len(found)}")
    return found[place]


FUNCTIONS: dict[str, Callable] = {
    "and": _and,
    "or": _or,
    "not": lambda value: not value(),
    "eq": lambda value, *others: value() in [other() for other in others],
    "ne": lambda value, other: value() != other(),
    "len": lambda value: len(value()),
    "slice": _slice,
    "index": _index,
    "print": lambda *parts: b"".join(part() for part in parts),
}
