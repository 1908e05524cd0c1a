"""Records to train on, in the field's formats: conversations, prompt and answer, preference pairs, labelled answers.

The format is detected from a file's keys, one format a file; record_files.py reads them. Each record becomes turns of
system, user and assistant: a prompt, and one answer (or two of a pair) of the assistant. What is wrong with a record
is said of that record. Nothing in a file is ever executed.

    preference  chosen, rejected, and prompt (or question, instruction); texts, lists of turns, or whole conversations
    kto         prompt, completion (or response), label: true or false, also 1 or 0, or either as text
    messages    messages: a list of role and content          sharegpt    conversations: a list of from and value
    alpaca      instruction, output, and input, system        transcript  text: "Human: ...", "Assistant: ..." in lines
    prompt_completion   prompt and completion (or response), or question and answer; texts or lists of turns
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from forge.errors import ForgeError
from forge.reading import raw_records, record_files, scenarios
from forge.reading.conflicts import Conflicts
from forge.reading.raw_records import Problem, Rejected

ROLES = {"system": "system", "user": "user", "human": "user", "prompter": "user"}
ROLES |= {
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}
TOOLS = {"tool", "tools", "function", "function_call", "function_response", "observation", "ipython"}
TOOLS |= {"tool_call", "tool_calls", "tool_response", "tool_result"}
PROMPTS = ("prompt", "question", "instruction")  # of a preference pair
LABELS = {"true": True, "1": True, "false": False, "0": False}
SPOKEN = re.compile(r"^[ \t]*(Human|Assistant):", re.M)
REMEDY = (
    "rename the keys to: messages | conversations | instruction, output | prompt, completion | prompt, chosen, "
    "rejected | prompt, completion, label"
)


@dataclass
class Record:
    """One record. Turns are {"role", "content"}; `prompt` ends with the user; an answer is a list of one turn.

    `kind` is supervised (with `completion`), preference (with `chosen` and `rejected`) or kto (with `completion` and
    `label`). `origin` is file:line or file#row. `meta` holds the other keys whose values are no lists or objects,
    and those inside `metadata`.
    """

    kind: str
    origin: str
    prompt: list[dict]
    completion: list[dict] | None = None
    chosen: list[dict] | None = None
    rejected: list[dict] | None = None
    label: bool | None = None
    format: str = ""
    meta: dict = field(default_factory=dict)

    @property
    def characters(self) -> int:
        """Characters of the answers: the text that is lost when the record is left out."""
        answers = [*(self.completion or []), *(self.chosen or []), *(self.rejected or [])]
        return sum(len(turn["content"]) for turn in answers)


def read(path: Path, name: str) -> Iterator[Record | Rejected]:
    """Records of one file in its order, with what cannot be used. `name` is the file's in messages.

    Pairs and labelled rows are gone through twice: first for what they say against each other. Raises ForgeError (2)
    for the file as a whole: missing, unreadable, of no known format, or of two.
    """
    shape = _detect(path, name)
    if shape.kind == "supervised":
        yield from _items(path, name, shape)
        return
    seen = Conflicts()
    for item in _items(path, name, shape):
        if isinstance(item, Record):
            seen.add(item)
    for item in _items(path, name, shape):
        reason = seen.reason(item) if isinstance(item, Record) else None
        yield Rejected(item.origin, reason, item.characters) if reason else item


# -- formats --------------------------------------------------------------------------------------------------


def _detect(path: Path, name: str) -> "Shape":
    """The format of the first record that is an object."""
    why = "it is empty"
    for item in record_files.rows(path, name, known):
        if isinstance(item, Rejected):
            why = f"{item.origin}: {item.reason}" if why == "it is empty" else why
        elif not isinstance(item.value, dict):
            why = f"{item.origin}: a record is no object" if why == "it is empty" else why
        else:
            return _require_shape(item.value, item.origin)
    raise ForgeError(f"{name} holds no record: {why}", "mend the file, or take it out of data.sources")


def known(keys: Iterable[str]) -> bool:
    """Whether records with these keys are of a known format."""
    return shape_of(keys) is not None


def shape_of(keys: Iterable[str]) -> "Shape | None":
    present = set(keys)
    return next((shape for shape in SHAPES if present.issuperset(shape.keys)), None)


def _require_shape(row: dict, origin: str) -> "Shape":
    shape = shape_of(row)
    if shape is None and "evaluation_target" in row:
        raise ForgeError(f"{origin}: a scenario, no record to train on", "write kind: scenario_json for that source")
    if shape is None:
        raise ForgeError(f"{origin}: no known format has the keys {raw_records.shown(row)}", REMEDY)
    if shape.format == "transcript" and not _is_spoken(row["text"]):
        raise ForgeError(
            f"{origin}: plain text, no conversation",
            "use kind: documents with the texts as .txt or .md files; a conversation begins with Human:",
        )
    return shape


def _items(path: Path, name: str, shape: "Shape") -> Iterator[Record | Rejected]:
    for item in record_files.rows(path, name, known):
        if isinstance(item, Rejected):
            yield item
        elif not isinstance(item.value, dict):
            yield Rejected(item.origin, "a record is no object", item.characters)
        else:
            other = shape_of(item.value)
            if other not in (None, shape):
                raise ForgeError(
                    f"{item.origin}: the keys of {other.told} in a file of {shape.told}",
                    "put each format into a file of its own",
                )
            yield _record(item, shape)


def _record(item: raw_records.Row, shape: "Shape") -> Record | Rejected:
    try:
        prompt, answers = shape.convert(item.value, shape)
        for key, turns in answers.items():
            if key != "label" and (kind := scenarios.canned(turns[-1]["content"])):
                raise Problem(f"{key} is {kind}")
    except Problem as problem:
        return Rejected(item.origin, str(problem), item.characters)
    meta = _meta(item.value, shape)
    return Record(shape.kind, item.origin, prompt, **answers, format=shape.format, meta=meta)


def _meta(row: dict, shape: "Shape") -> dict:
    inner = row.get("metadata")
    together = {**(inner if isinstance(inner, dict) else {}), **row}
    used = {*shape.keys, *shape.also}
    return {
        key: value for key, value in together.items() if key not in used and isinstance(value, str | int | float | bool)
    }


# -- one record -----------------------------------------------------------------------------------------------


def _conversation(row: dict, shape: "Shape") -> tuple[list[dict], dict]:
    """messages, sharegpt: all turns but the last are the prompt."""
    turns = _with_system(row, _turns(row.get(shape.keys[0]), shape.keys[0]))
    return _divided(turns, shape.keys[0])


def _alpaca(row: dict, shape: "Shape") -> tuple[list[dict], dict]:
    asked = _text(row, "instruction")
    if not _absent(row.get("input")):
        asked += "\n\n" + _text(row, "input")
    return _divided(_with_system(row, [_user(asked), _assistant(_text(row, "output"))]), "output")


def _prompt_completion(row: dict, shape: "Shape") -> tuple[list[dict], dict]:
    asked, answered = shape.keys[:2]
    turns = [*_asked(row, asked), *_answer(row, answered)]
    return _divided(_with_system(row, turns), answered)


def _kto(row: dict, shape: "Shape") -> tuple[list[dict], dict]:
    prompt, answers = _prompt_completion(row, shape)
    return prompt, {**answers, "label": _label(row.get("label"))}


def _transcript(row: dict, shape: "Shape") -> tuple[list[dict], dict]:
    return _divided(_spoken(_text(row, "text"), "text"), "text")


def _preference(row: dict, shape: "Shape") -> tuple[list[dict], dict]:
    """What both sides begin with belongs to the prompt; they may differ in their last turn alone."""
    key = next((key for key in PROMPTS if row.get(key) is not None), None)
    chosen, rejected = (_side(row, side, alone=key is None) for side in ("chosen", "rejected"))
    if _stripped(chosen) == _stripped(rejected):
        raise Problem("chosen and rejected are the same")
    if chosen[:-1] != rejected[:-1]:
        raise Problem("chosen and rejected differ before their last turn")
    prompt, shared = _asked(row, key) if key else [], chosen[:-1]
    if shared and shared[0]["role"] != "assistant":  # whole conversations: the prompt stands in them
        if prompt and prompt[-1] not in shared:
            raise Problem(f"{key} does not stand in the conversation of chosen")
        prompt = []
    turns = _with_system(row, [*prompt, *shared])
    _divided([*turns, chosen[-1]], "chosen")
    _divided([*turns, rejected[-1]], "rejected")
    return turns, {"chosen": chosen[-1:], "rejected": rejected[-1:]}


def _stripped(turns: list[dict]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"].strip()) for turn in turns]


def _side(row: dict, key: str, alone: bool) -> list[dict]:
    """`alone`: no prompt stands beside it, so that a text must be a whole conversation."""
    if alone and isinstance(row.get(key), str):
        if not _is_spoken(row[key]):
            raise Problem(f"prompt is missing, and {key} is no conversation")
        return _spoken(row[key], key)
    return _answer(row, key)


def _asked(row: dict, key: str) -> list[dict]:
    return _turns(row[key], key) if isinstance(row.get(key), list) else [_user(_text(row, key))]


def _answer(row: dict, key: str) -> list[dict]:
    return _turns(row[key], key) if isinstance(row.get(key), list) else [_assistant(_text(row, key))]


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _user(text: str) -> dict:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def _with_system(row: dict, turns: list[dict]) -> list[dict]:
    """The record's own `system` in front, where it has one. An empty one counts as none."""
    if _absent(row.get("system")):
        return turns
    if turns and turns[0]["role"] == "system":
        raise Problem("two system prompts: the key system, and a turn")
    return [{"role": "system", "content": _text(row, "system")}, *turns]


def _divided(turns: list[dict], key: str) -> tuple[list[dict], dict]:
    """Prompt and answer of a conversation in which the user begins, both take turns, and the assistant ends."""
    spoken = [turn["role"] for turn in turns]
    begin = 1 if spoken[:1] == ["system"] else 0
    for place, role in enumerate(spoken[begin:]):
        wanted = ("user", "assistant")[place % 2]
        if role == "system":
            raise Problem(f"{key}: a system turn that is not the first")
        if role != wanted and place:
            raise Problem(f"{key}: two turns of the {role} in a row")
        if role != wanted:
            raise Problem(f"{key}: the assistant begins")
    if spoken[-1:] != ["assistant"]:
        raise Problem(f"{key} does not end with the assistant")
    return turns[:-1], {"completion": turns[-1:]}


def _turns(value: object, key: str) -> list[dict]:
    if not isinstance(value, list):
        raise Problem(f"{key} is {_kind(value)}, no list of turns")
    turns = [_turn(turn, f"{key}[{place}]") for place, turn in enumerate(value)]
    if not turns:
        raise Problem(f"{key} is empty")
    if turns[0] == {"role": "system", "content": ""}:
        del turns[0]
    if value[-1].get("weight") == 0 or value[-1].get("train") is False:
        raise Problem(f"the last turn of {key} is marked as not to be trained")
    return turns


def _turn(turn: object, key: str) -> dict:
    if not isinstance(turn, dict):
        raise Problem(f"{key} is {_kind(turn)}, no turn")
    said, text = ("from", "value") if turn.get("from") is not None else ("role", "content")
    role = _text(turn, said, key).strip().casefold()
    if role in TOOLS or turn.get("tool_calls") or turn.get("function_call"):
        raise Problem(f"{key}: a turn of a tool, which is not supported")
    if role not in ROLES:
        raise Problem(f"{key}: a role that is none of system, user, assistant")
    if ROLES[role] == "system" and _absent(turn.get(text)):
        return {"role": "system", "content": ""}
    return {"role": ROLES[role], "content": _text(turn, text, key)}


def _text(row: dict, key: str, place: str = "") -> str:
    value, shown = row.get(key), f"{place}.{key}" if place else key
    if value is None:
        raise Problem(f"{shown} is missing")
    if not isinstance(value, str):
        raise Problem(f"{shown} is {_kind(value)}, no text")
    if not value.strip():
        raise Problem(f"{shown} is empty")
    return value


def _kind(value: object) -> str:
    if value is None:
        return "missing"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "neither text nor number")


def _label(value: object) -> bool:
    if isinstance(value, str):
        value = LABELS.get(value.strip().casefold())
    if value is None or type(value) not in (bool, int) or value not in (0, 1):
        raise Problem("label is neither true nor false")
    return bool(value)


def _is_spoken(text: object) -> bool:
    return isinstance(text, str) and text.lstrip().startswith("Human:")


def _spoken(text: str, key: str) -> list[dict]:
    """Turns of "Human: ...", "Assistant: ...", each at the beginning of a line."""
    first, *pieces = SPOKEN.split(text)
    if first.strip() or not pieces:
        raise Problem(f"{key} is no conversation: it does not begin with Human:")
    turns = []
    for role, said in zip(pieces[::2], pieces[1::2], strict=True):
        if not said.strip():
            raise Problem(f"{key}: an empty turn of {role}")
        turns.append({"role": "user" if role == "Human" else "assistant", "content": said.strip()})
    return turns


@dataclass(frozen=True)
class Shape:
    """A format by its keys. `also` are keys that it may have; all others are the record's meta."""

    format: str
    kind: str
    keys: tuple[str, ...]
    convert: Callable[[dict, "Shape"], tuple[list[dict], dict]]
    also: tuple[str, ...] = ("system",)

    @property
    def told(self) -> str:
        return f"{self.format} ({', '.join(self.keys)})"


# The first whose keys are all there. A row with a label is never read as one without: it may be labelled false.
SHAPES = (
    Shape("preference", "preference", ("chosen", "rejected"), _preference, (*PROMPTS, "system")),
    Shape("kto", "kto", ("prompt", "completion", "label"), _kto),
    Shape("kto", "kto", ("prompt", "response", "label"), _kto),
    Shape("messages", "supervised", ("messages",), _conversation),
    Shape("sharegpt", "supervised", ("conversations",), _conversation),
    Shape("alpaca", "supervised", ("instruction", "output"), _alpaca, ("input", "system")),
    Shape("prompt_completion", "supervised", ("prompt", "completion"), _prompt_completion),
    Shape("prompt_completion", "supervised", ("prompt", "response"), _prompt_completion),
    Shape("prompt_completion", "supervised", ("question", "answer"), _prompt_completion),
    Shape("transcript", "supervised", ("text",), _transcript, ()),
)
