"""Rows that would train a model to drop its safety: found, named by rule, shown only in part.

Refuses recognised bypass data, and claims no more. Four layers, strictest first: a row whose own labels call it
harmful (`label`), a prompt that sets a bypass and an answer that goes along (`intent`), an answer that speaks as a
model without rules (`text`), and prompts that are known word for word (`known`). What counts is the text that a
model is trained to say. A prompt is context: one that tries a bypass and is turned down is the best safety data
there is, and never found. An excerpt shows text as it stands, so redact credentials first. Documentation in rows of
2 kB was screened at 30 MB/s a core; none of 45 MB of it was flagged.
"""

import bisect
import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from forge import files
from forge.errors import ForgeError
from forge.screening import bypass_rules as rules
from forge.screening.disguise import Reading, readings, uncovered

TOWARDS = ("supervised", "chosen", "desirable")  # roles of answers that training makes likelier
AWAY = ("rejected", "undesirable")
LAYERS = ("label", "intent", "text", "known")
REACH = 120  # characters around a watched word in which patterns are tried
EXCERPT = 60  # characters of a finding that are shown, its middle left out
KNOWN = Path(__file__).with_name("bypass_shingles.txt")
SHINGLE, LEAST_WORDS, KNOWN_SHARE = 5, 20, 0.4


@dataclass(frozen=True)
class Finding:
    """`excerpt` is at most 60 characters around the match, with its middle left out."""

    rule: str
    layer: str
    excerpt: str


def findings(prompt: list[dict], answer: str, meta: dict | None = None, role: str = "supervised") -> list[Finding]:
    """Why a row must not be trained; empty for a row that may.

    `prompt`: messages with role and content, for a document the question asked of it. `answer`: the text that is
    trained. `meta`: the row's other scalar keys. `role`: supervised, chosen or desirable; rejected and undesirable
    answers are trained away from, so nothing in them is refused. In a supervised row the assistant's earlier turns
    are judged like answers, too. Raises ValueError for another role.
    """
    if role in AWAY:
        return []
    if role not in TOWARDS:
        raise ValueError(f"{role!r} is none of {', '.join(TOWARDS + AWAY)}")
    found = list(_labels(meta or {}, answer))
    if role == "supervised":
        for index, message in enumerate(prompt):
            if message["role"] == "assistant":
                found += _turn(prompt[:index], message["content"])
    found += _turn(prompt, answer)
    return found and sorted(
        set(found), key=lambda finding: (LAYERS.index(finding.layer), finding.rule, finding.excerpt)
    )


def digest(row: dict) -> str:
    """Hex SHA-256 of a row's prompt and trained answer, the key of the allowlist. Ids and origins do not count.

    `row` holds prompt and completion, prompt and chosen, or messages that end with the answer.
    """
    messages = row["messages"] if "messages" in row else [*row["prompt"], *(row.get("completion") or row["chosen"])]
    return files.sha256_json([[message["role"], message["content"]] for message in messages])


@dataclass
class Allowlist:
    """Rows that a person has reviewed: digest to reason. `path` is where they stand."""

    path: Path | None = None
    entries: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Allowlist":
        """One `sha256  reason` a line, `#` begins a comment line. Raises ForgeError (2) naming file and line for a
        digest that is none, stands twice, or has no reason, and for a file that is no text."""
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ForgeError(f"{path}: {reason}", "write one digest and its reason a line, as UTF-8 text") from None
        found = cls(Path(path))
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.lstrip().startswith("#"):
                key, reason = found._entry(line, f"{path}:{number}")
                found.entries[key] = reason
        return found

    def _entry(self, line: str, place: str) -> tuple[str, str]:
        key, _, reason = line.strip().partition(" ")
        if not re.fullmatch("[0-9a-f]{64}", key):
            raise ForgeError(f"{place}: no SHA-256 of a row", "copy the digest that the refusal printed")
        if not reason.strip():
            raise ForgeError(
                f"{place}: an entry without a reason", "write behind the digest why the row may be trained"
            )
        if key in self.entries:
            raise ForgeError(f"{place}: the same digest stands twice", "keep one of the two lines")
        return key, reason.strip()


# -- labels -------------------------------------------------------------------------------------------------

YES, NO = {"true", "yes", "1"}, {"false", "no", "0"}
HARM_KEYS = {
    "jailbreak",
    "jailbroken",
    "harmful",
    "unsafe",
    "toxic",
    "malicious",
    "bypass",
    "dangerous",
    "policy_violation",
}
SAFE_KEYS = {"safe", "harmless", "aligned", "safety"}
LABEL_KEYS = {"label", "labels", "category", "categories", "type", "tag", "tags", "class", "classification", "kind"}
LABEL_KEYS |= {"subset", "safety", "safety_label", "data_type", "verdict", "behavior", "behaviour", "style", "quality"}
HARM_VALUES = HARM_KEYS | {
    "harm",
    "uncensored",
    "unaligned",
    "evil",
    "attack",
    "jailbreak_success",
    "not_safe",
    "misaligned",
}
OF_ANSWER = re.compile(
    r"^(?:is_)?(?:(?:chosen|response|answer|completion|output|assistant)_)?(?:is_)?|_(?:chosen|response|answer)$"
)
OF_OTHERS = re.compile(r"(?:^|_)(?:prompt|question|user|input|instruction|rejected|request|query)(?:_|$)")


def _labels(meta: dict, answer: str) -> Iterator[Finding]:
    """A row that calls itself harmful, unless its answer declines, sends to help, or is nothing but a label itself."""
    for key, value in sorted(meta.items()):
        name = _word(key)
        declared = None if OF_OTHERS.search(name) else _declared(OF_ANSWER.sub("", name), value)
        if declared and not _safe(answer) and not _is_label(answer):
            yield Finding("declared-harmful", "label", f"{name[:30]}: {declared[:20]}")


def _word(value: object) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(value).casefold()).strip("_")


def _declared(name: str, value: object) -> str | None:
    """The value, if it says that the answer is harmful."""
    for item in map(_word, value if isinstance(value, list | tuple) else [value]):
        if (name in HARM_KEYS and item in YES) or (name in SAFE_KEYS and item in NO):
            return item
        if name in LABEL_KEYS and item.removesuffix("_response") in HARM_VALUES:
            return item
    return None


def _is_label(answer: str) -> bool:
    """The answer of a moderation task: up to three words with a verdict among them, such as "toxic" or "Yes"."""
    words = re.findall(r"\w+", answer.casefold())
    return len(words) <= 3 and not {*YES, *NO, *HARM_VALUES, "safe"}.isdisjoint(words)


def _safe(answer: str) -> bool:
    text = _flat(uncovered(answer))
    return bool(rules.DECLINES.search(text) or rules.HELPS.search(text))


# -- one answer -----------------------------------------------------------------------------------------------


def _turn(before: list[dict], answer: str) -> Iterator[Finding]:
    """Findings of one answer after the messages before it."""
    read = readings(answer, rules.WATCH_ANSWER)
    said = [hit for number, reading in enumerate(read) for hit in _said(reading, number)]
    yield from _judged(said)
    in_force = _in_force(before)
    known = [intent for intent in in_force if intent.rule == "known-prompt"]
    set_up = [intent for intent in in_force if intent not in known]
    if set_up and _complies(set_up, answer, said):
        yield Finding(set_up[0].rule, "intent", set_up[0].excerpt)
    if read and _places(rules.lowered(read[0].text), rules.NEAR_KNOWN) and known_share(read[0].text) >= KNOWN_SHARE:
        known.append(Intent("known-prompt", rules.SURE, "assistant", answer, _excerpt(read[0].text, 0, len(answer))))
    if known and not _declines(answer):
        yield Finding("known-prompt", "known", known[0].excerpt)


def _in_force(before: list[dict]) -> list["Intent"]:
    """The bypasses that are in force after some messages, the system's first: one that was declined is over."""
    system, user = [], []
    for message in before:
        if message["role"] == "assistant":
            user = [] if user and _declines(message["content"]) else user
        elif message["role"] == "system":
            system += _intents("system", message["content"])
        else:
            user += _intents("user", message["content"])
    return system + user


@dataclass(frozen=True)
class Hit:
    rule: str
    points: int
    reading: int  # the number of the reading that it stands in
    start: int
    stop: int
    excerpt: str


def _said(reading: Reading, number: int) -> Iterator[Hit]:
    """What an answer says as a model without rules: the first match of each pattern that nothing excuses."""
    text = rules.lowered(reading.text)
    near = list(_windows(text, rules.NEAR_ANSWER, personal=not reading.squeezed))
    for rule, points, pattern in rules.ANSWER if near else ():
        for match in _matches(pattern, text, [(0, len(text))] if rule == "two-answers" else near, reading):
            if reading.squeezed or not _excused(text, match):
                yield Hit(rule, points, number, *match.span(), _excerpt(text, *match.span()))
                break


def _matches(pattern: str, text: str, near: list[tuple[int, int]], reading: Reading) -> Iterator[re.Match]:
    for start, stop in near:
        yield from rules.matches(pattern, text, start, stop, reading.squeezed)


def _windows(text: str, stems: tuple[str, ...], personal: bool) -> Iterator[tuple[int, int]]:
    """Where patterns are tried: 120 characters around a watched word, where `personal` only beside I or my.

    No pattern but two-answers reaches further. 40 patterns over a whole page of 2 kB took 3 ms.
    """
    start, stop = 0, -REACH - 1
    for place in [*_places(text, stems), None]:
        if place is not None and place - REACH <= stop:
            stop = place + REACH
            continue
        if stop >= 0 and (not personal or rules.PERSON.search(text, start, stop)):
            yield start, min(stop, len(text))
        if place is not None:
            start, stop = max(0, place - REACH), place + REACH


def _places(text: str, stems: tuple[str, ...]) -> list[int]:
    """Where any of some words begins. One search a word: an alternation of 90 words took ten times as long."""
    found = []
    for stem in stems:
        place = text.find(stem)
        while place >= 0:
            found.append(place)
            place = text.find(stem, place + 1)
    return sorted(found)


def _judged(said: list[Hit]) -> Iterator[Finding]:
    """One sure hit is enough; hints must be two, at different places of one reading."""
    sure = [hit for hit in said if hit.points == rules.SURE]
    if sure:
        yield from (
            Finding(hit.rule, "text", hit.excerpt) for hit in {hit.rule: hit for hit in reversed(sure)}.values()
        )
        return
    for number, hit in enumerate(said):
        for other in said[:number]:
            if hit.reading == other.reading and (hit.start >= other.stop or other.start >= hit.stop):
                yield Finding(other.rule, "text", other.excerpt)
                return


def _excused(text: str, match: re.Match) -> bool:
    """Said of something else: in quotation marks inside a longer text, or behind "I won't say that"."""
    return _quoted(text, match) or bool(rules.DENIED.search(_head(text, match)))


def _quoted(text: str, match: re.Match) -> bool:
    """Whether a match begins and ends in quotation marks that hold less than half of the text."""
    first, last = _quotation(text, match.start()), _quotation(text, match.end() - 1)
    return bool(first and last) and 2 * (first[1] - first[0]) < len(text)


def _quotation(text: str, place: int) -> tuple[int, int] | None:
    spans = _quotations(text)
    number = bisect.bisect_right(spans, (place, len(text))) - 1
    return spans[number] if number >= 0 and place < spans[number][1] else None


@functools.lru_cache(maxsize=4)  # asked for every match of a text
def _quotations(text: str) -> list[tuple[int, int]]:
    return [quoted.span() for quoted in rules.QUOTED.finditer(text)]


def _head(text: str, match: re.Match) -> str:
    """What stands before a match in its sentence, 200 characters at most."""
    return re.split(r"[.!?\n]", text[max(0, match.start() - 200) : match.start()])[-1]


def _flat(text: str) -> str:
    """Without apostrophes, as the patterns are written: don't and dont are one word."""
    return text.replace("'", "")


# -- prompts that set a bypass, and answers that go along --------------------------------------------------------


@dataclass(frozen=True)
class Intent:
    rule: str
    points: int
    role: str
    prompt: str
    excerpt: str


@functools.lru_cache(maxsize=1024)  # a system prompt is the same in thousands of rows
def _intents(role: str, prompt: str) -> tuple[Intent, ...]:
    """The bypasses that a system or user message sets, not those that it asks about, quotes, hands over or forbids.

    Surest first. A single hint is given as such: it counts when the answer takes up a persona.
    """
    found, read = [], readings(prompt, rules.WATCH_PROMPT)
    for reading in read:
        text = rules.lowered(reading.text)
        handed = rules.HANDED.match(text)
        near = list(_windows(text, rules.NEAR_PROMPT, personal=False))
        for rule, points, pattern in rules.PROMPT if near else ():
            for match in _matches(pattern, text, near, reading):
                if reading.squeezed or not (_mentioned(text, match) or (handed and match.start() >= handed.end())):
                    found.append(Intent(rule, points, role, prompt, _excerpt(text, *match.span())))
                    break
    if len({intent.excerpt for intent in found}) > 1:
        found = [dataclasses.replace(intent, points=rules.SURE) for intent in found]
    if read and known_share(read[0].text) >= KNOWN_SHARE:
        found.append(Intent("known-prompt", rules.SURE, role, prompt, _excerpt(read[0].text, 0, len(prompt))))
    return tuple(sorted(found, key=lambda intent: -intent.points))


def _mentioned(text: str, match: re.Match) -> bool:
    head = _head(text, match)
    if _quoted(text, match) or rules.MENTIONED.search(head):
        return True
    return bool(rules.ABOUT.match(head + match[0])) and not rules.SUPPOSED.search(head + match[0])


def _complies(set_up: list[Intent], answer: str, said: list[Hit]) -> bool:
    """Whether an answer goes along: speaks as the persona or as one without rules, or begins to do as asked.

    After a system prompt that sets a bypass every answer that neither declines nor sends to help goes along.
    """
    text = _flat(uncovered(answer))
    if any(hit.rule == "two-answers" for hit in said) or rules.TWO_VOICES.search(text[:8000]):
        return True
    if _declines(answer):
        return False
    names = {name for intent in set_up for name in rules.PERSONAS.findall(_flat(intent.prompt))}
    if said or any(re.search(rules.ADOPTS.replace("NAME", name), text) for name in names):
        return True
    sure = [intent.role for intent in set_up if intent.points == rules.SURE]
    return bool(sure and rules.BEGINS.search(text[:400])) or ("system" in sure and not rules.HELPS.search(text))


def _declines(answer: str) -> bool:
    """Whether the answer turns the request down, in its first 600 characters."""
    return bool(rules.DECLINES.search(_flat(uncovered(answer[:600]))))


# -- known prompts ----------------------------------------------------------------------------------------------


def shingles(text: str) -> set[int]:
    """64-bit hashes of every five words in a row, letter case, punctuation and disguise aside."""
    words = re.findall(r"[a-z0-9]+", _flat(uncovered(text)).casefold())
    runs = (" ".join(words[place : place + SHINGLE]) for place in range(len(words) - SHINGLE + 1))
    return {int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "big") for run in runs}


def known_share(text: str) -> float:
    """Share of a text's shingles that stand in known bypass prompts; 0 for a text under 20 words."""
    found = shingles(text)
    if len(text.split()) < LEAST_WORDS or not found:
        return 0.0
    return len(found & _known()) / len(found)


@functools.cache
def _known() -> frozenset[int]:
    lines = KNOWN.read_text(encoding="utf-8").splitlines()
    return frozenset(int(word, 16) for line in lines if not line.startswith("#") for word in line.split())


# -- excerpts ---------------------------------------------------------------------------------------------------


def _excerpt(text: str, start: int, stop: int) -> str:
    """At most 60 characters of a match and what stands around it, on one line, the middle left out."""
    shown = " ".join(re.sub(r"[^\x20-\x7e]", " ", text[max(0, start - 12) : stop + 12]).split())
    side = min((EXCERPT - 5) // 2, len(shown) // 3)
    return f"{shown[:side].rstrip()} ... {shown[len(shown) - side :].lstrip()}"
