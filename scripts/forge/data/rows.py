"""Units of documents, scenarios and records to rows that fit the token budget, each with what its split depends on.

Nothing is cut at the budget: what is too long for a row is divided between paragraphs and sentences, what fits
nowhere is dropped by name. The text of a row is clean before it is counted: secrets are redacted or the piece is
quarantined, the model's control tokens are written so that they are text.
"""

import bisect
import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from forge import chat, files
from forge.data import reference
from forge.questions import plain
from forge.reading import documents, records, scenarios
from forge.reading.documents import Block, Document, Questions, Unit
from forge.screening import bypass
from forge.screening.cleaning import Cleaner, Quarantined, texts_of

ASK_SECTION = (
    "What does the page {page} say about {topic}?",
    "Explain {topic} ({page}).",
    "Tell me about {topic}, as described in {page}.",
    "{page}: what should I know about {topic}?",
)
ASK_CODE = ("Show the source file {page}.", "What does the file {page} contain?", "Print {page}.")
ASK_TERM = ("What is {term}?", "Define {term}.", "What does {term} mean?", "Explain the term {term}.")

SLICE = 1 << 16  # characters that are split into tokens at once: a token with its place takes 300 bytes in Python
LEAST_ANSWER = 16  # tokens; less room than that gives no rows worth training on
# Tokens are counted a block at a time. Joined to a row, blocks may be split otherwise where they meet: by one token
# at most on the vocabularies of Qwen2, Llama 3, Llama 2, Phi-3 and SmolLM2 (tests/test_rows.py).
SEAM = 2
GLUE = 1 + SEAM  # the blank line between two blocks
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
SPACES = re.compile(r"\s+")


@dataclass
class Row:
    """One row before its split is known.

    `unit` is what must stay on one side of a split; `trained` keeps it in training whatever chance says. `alike` is
    the text that near-duplicates are looked for in, None where that makes no sense. `good` and `bad` are answers
    that the row teaches to give and to avoid. `tokens` is the length of the rendered row.
    """

    kind: str
    values: dict
    unit: str
    tokens: int
    alike: str | None = None
    trained: bool = False
    good: str | None = None
    bad: str | None = None

    @property
    def question(self) -> str:
        """What the person asked, turns before the last one included, letter case and spaces aside."""
        return plain(chat.asked(self.values["prompt"]))


@dataclass
class Part:
    """What one file, or a batch of records, came to.

    `dropped`: rows of dropped.jsonl. `bad`: causes that mode strict refuses. `refused`: data that may not be trained.
    """

    rows: list[Row] = field(default_factory=list)
    dropped: list[dict] = field(default_factory=list)
    bad: list[dict] = field(default_factory=list)
    refused: list[dict] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)

    def drop(self, text: str, origin: str, reason: str, lost: bool = True) -> None:
        """`lost` is False for what is left out on purpose: a rating, say, is no loss of text."""
        if lost:
            self.counts["lost"] += len(text)
            self.counts["characters"] += len(text)
        self.dropped.append({"origin": origin, "reason": reason, "characters": len(text), "text": text})


def chance(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on the seed and the key alone, not on the order of files."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class Maker:
    """Makes rows; one for a run, shared by its workers. `settings` are the dataset phase's."""

    def __init__(self, settings: dict, tokenizer, heldout: reference.Reference, allowed: frozenset[str]):
        self.data, self.project = settings["data"], settings["project"]
        self.tokenizer = tokenizer
        self.heldout, self.allowed = heldout, allowed
        self.cleaner = Cleaner(self.data["screening"], chat.control_tokens(tokenizer))
        self.frame = self.tokens(self.prompt("a"), "a") - 2 * self.count("a")

    # -- tokens -------------------------------------------------------------------------------------------

    def count(self, text: str) -> int:
        return self.counts([text])[0]

    def counts(self, texts: list[str]) -> list[int]:
        """Tokens of each text, by one call: a call apiece takes a third longer."""
        return [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

    def tokens(self, prompt: list[dict], answer: str) -> int:
        """Tokens of a rendered row, counted on the whole of it."""
        messages = [*prompt, {"role": "assistant", "content": answer}]
        return len(chat.encode(self.tokenizer, messages, last_only=True)["input_ids"])

    def prompt(self, question: str) -> list[dict]:
        return chat.conversation(self.project["system_prompt"], question)

    def chance(self, key: str) -> float:
        return chance(self.project["seed"], key)

    # -- documents ----------------------------------------------------------------------------------------

    def document(self, name: str, document: Document) -> Part:
        part = Part(counts=Counter(files=1))
        for left_out in document.dropped:  # on purpose: no loss
            part.drop(self.shown(left_out.text), f"{name}:{left_out.line}", left_out.reason, lost=False)
        for unit in document.units:
            self.unit(unit, part)
        return part

    def shown(self, text: str) -> str:
        """Text for dropped.jsonl: no secret stands there, either."""
        return self.cleaner.redacted(text)

    def unit(self, unit: Unit, part: Part) -> None:
        try:
            unit = self.cleaner.unit(unit, part.counts)
        except Quarantined as found:
            part.drop(self.shown("\n\n".join(texts_of(unit))), unit.origin, f"quarantined: {found}")
            return
        before = len(part.rows)
        key = f"{unit.file}#{' > '.join(unit.path)}"
        pieces = self.pack(unit, part)
        for number, (text, line, tokens) in enumerate(pieces, 1):
            asked = self.ask(unit) + (f", part {number} of {len(pieces)}" if len(pieces) > 1 else "")
            place = unit.origin if number == 1 else place_of(unit, line)
            row = self.row("documents", asked, text, place, section=section_of(unit))
            self.add(part, Row("supervised", row, key, tokens, alike=text, good=text))
        for group in unit.questions:
            self.questions(unit, group, part)
        for term in unit.definitions:
            self.definition(unit, term, part)
        if len(part.rows) == before:
            part.drop(" > ".join(unit.path), unit.origin, "the heading of text that was dropped", lost=False)

    def ask(self, unit: Unit) -> str:
        key = f"{unit.file}#{unit.path}"
        if unit.kind == "code":
            return self.choose(ASK_CODE, "ask " + key).format(page=unit.path[0])
        topic = " > ".join(unit.path[1:]) if len(unit.path) > 1 else "its subject"
        return self.choose(ASK_SECTION, "ask " + key).format(page=title_of(unit), topic=topic)

    def choose(self, forms: tuple[str, ...], key: str) -> str:
        return forms[int(self.chance(key) * len(forms))]

    def pack(self, unit: Unit, part: Part) -> list[tuple[str, int, int]]:
        """The unit's blocks as texts that each fit a row: text, first line, tokens of the row.

        What cannot be divided is dropped by name.
        """
        question = self.ask(unit) + ", part 10 of 10"  # room for the part's number
        used = self.frame + self.count(question) + SEAM
        room = self.data["max_tokens"] - used
        if room < LEAST_ANSWER:
            for block in unit.blocks:
                part.drop(block.text, place_of(unit, block.line), "system prompt and heading fill data.max_tokens")
            return []
        packed: list[tuple[list[Block], int]] = []
        for block, tokens in self.pieces(unit, room, part):
            blocks, sum_of = packed[-1] if packed else ([], 0)
            if blocks and sum_of + GLUE + tokens <= room:
                packed[-1] = ([*blocks, block], sum_of + GLUE + tokens)
            else:
                packed.append(([block], tokens))
        return [(documents.shown(blocks), blocks[0].line, used + tokens) for blocks, tokens in packed]

    def pieces(self, unit: Unit, room: int, part: Part) -> Iterator[tuple[Block, int]]:
        """Blocks that each fit, with their tokens; source code is counted with the fence that a row shows it in."""
        blocks = [piece for block in unit.blocks for piece in slices(block)]
        for block, tokens in zip(blocks, self.counts([block.text for block in blocks]), strict=True):
            fence = self.count(documents.fence("", block.language)) + SEAM if block.language else 0
            tokens += fence
            if tokens <= room:
                yield block, tokens
            elif block.divisible or (block.language and room > fence + LEAST_ANSWER):
                for piece, size in self.divide(block, room - fence):
                    yield piece, size + fence
            else:
                kind = {"table": "table", "list": "list", "quote": "quotation"}.get(block.kind, "block of code")
                reason = f"a {kind} longer than data.max_tokens"
                part.drop(block.text, place_of(unit, block.line), reason)

    def divide(self, block: Block, room: int) -> Iterator[tuple[Block, int]]:
        """Prose cut after sentences, else between words, else between tokens; code between lines."""
        encoded = self.tokenizer(block.text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [begin for begin, _ in encoded["offset_mapping"]]
        code = bool(block.language)
        ends = [m.end() for m in (re.finditer("\n", block.text) if code else SENTENCE_END.finditer(block.text))]
        spaces = ends if code else [match.end() for match in SPACES.finditer(block.text)]
        place, token = 0, 0
        while token < len(starts):
            last = token + room
            limit = len(block.text) if last >= len(starts) else starts[last]
            cut = limit if limit == len(block.text) else _before(ends, place, limit) or _before(spaces, place, limit)
            cut = cut or limit
            text = block.text[place:cut].strip("\n" if code else None)
            after = bisect.bisect_left(starts, cut)
            if text:
                line = block.line + block.text.count("\n", 0, place)
                yield dataclasses.replace(block, text=text, line=line), after - token
            place, token = cut, max(after, token + 1)

    def questions(self, unit: Unit, group: Questions, part: Part) -> None:
        """Rows of one question. Some wordings are kept out of training, to be asked later.

        A group that has wordings to spare is always trained: whoever writes a fact down wants it taught. One
        without goes whole into one split, as a section does. The identity question is always trained: it is
        checked on the finished file.
        """
        origin = place_of(unit, group.line)
        wordings = list({plain(wording): wording for wording in reversed(group.wordings)}.values())[::-1]
        asks = {word for word in wordings if plain(word) == plain(self.project["identity"]["question"])}
        movable = sorted((word for word in wordings if word not in asks), key=lambda word: self.chance(origin + word))
        held = movable[: min(self.data["heldout_wordings"], len(wordings) - 1)]
        for wording in wordings:
            row = self.row("documents", wording, group.answer, origin, section=section_of(unit))
            tokens = self.tokens(row["prompt"], group.answer)
            if wording in held:
                self.add(part, Row("questions", {**row, "facts": group.facts}, origin, tokens))
            else:
                trained = bool(asks or held)
                made = Row("supervised", row, f"{origin}?{wordings[0]}", tokens, group.answer, trained, group.answer)
                self.add(part, made)

    def definition(self, unit: Unit, definition: documents.Definition, part: Part) -> None:
        origin = place_of(unit, definition.line)
        asked = self.choose(ASK_TERM, f"ask {origin} {definition.term}").format(term=definition.term)
        row = self.row("documents", asked, definition.text, origin, section=section_of(unit))
        tokens = self.tokens(row["prompt"], definition.text)
        self.add(part, Row("supervised", row, f"{origin}?{asked}", tokens, alike=definition.text, good=definition.text))

    def row(self, source: str, question: str | list[dict], answer: str, origin: str, **more: object) -> dict:
        prompt = self.prompt(question) if isinstance(question, str) else question
        asked = question if isinstance(question, str) else [turn["content"] for turn in question]
        return {
            "id": files.sha256_json([asked, answer])[:16],
            "source": source,
            "origin": origin,
            "prompt": prompt,
            "completion": [{"role": "assistant", "content": answer}],
            **more,
        }

    # -- scenarios ----------------------------------------------------------------------------------------

    def scenario(self, scenario: scenarios.Scenario, part: Part) -> None:
        """A good answer is trained. A scenario without one is kept to evaluate on, whatever its rating is:
        that judges the scenario, so it can label nothing that a model says."""
        part.counts["scenarios"] += 1
        part.counts[f"target {self.shown(scenario.target)}"] += 1
        answers = [text for text in (scenario.expected, *scenario.failures) if text]
        try:
            texts = [scenario.target, scenario.family or "", *scenario.criteria, *answers]
            clean = self.cleaner.together([*(turn["content"] for turn in scenario.turns), *texts], part.counts)
        except Quarantined as found:
            part.drop(self.shown("\n".join(answers)), scenario.origin, f"quarantined: {found}")
            return
        if not scenario.prompt.strip():
            part.drop(clean("\n".join(answers)), scenario.origin, "its prompt is empty", lost=False)
        elif reference.CANARY in (scenario.canary or ""):
            part.drop(clean("\n".join(answers)), scenario.origin, "text of an evaluation set: its canary", lost=False)
        elif not answers:
            self.evaluation(scenario, clean, part)
        else:
            self.trained_scenario(scenario, clean, part)

    def trained_scenario(self, scenario: scenarios.Scenario, clean: Callable[[str], str], part: Part) -> None:
        turns = self.turns(scenario.turns, clean)
        unit = f"{scenario.target}?{scenario.prompt}"
        more = {"target": clean(scenario.target), **({"family": clean(scenario.family)} if scenario.family else {})}
        if scenario.expected is not None:
            reason, answer = scenarios.refusal(scenario), clean(scenario.expected.strip())
            if reason is None and not scenario.pairs_only:
                row = self.row(scenario.kind, turns, answer, scenario.origin, **more)
                self.add(part, self.supervised(row, answer, unit))
            elif reason is not None:
                part.drop(answer, scenario.origin, reason, lost=False)
        for text, reason in scenarios.unpaired(scenario):
            part.drop(clean(text), scenario.origin, reason, lost=False)
        for pair in scenarios.pairs(scenario):
            chosen, rejected = (clean(text.strip()) for text in pair)
            self.preference(scenario.kind, turns, chosen, rejected, scenario.origin, unit, more, part)
        for failing in scenarios.negatives(scenario):
            self.kto(scenario.kind, turns, clean(failing.strip()), False, scenario.origin, unit, more, part)

    def turns(self, turns: list[dict], clean: Callable[[str], str]) -> list[dict]:
        """The conversation as it is trained: the project's system prompt in front where it has none."""
        cleaned = [{**turn, "content": clean(turn["content"])} for turn in turns]
        system = self.project["system_prompt"]
        if system and cleaned[0]["role"] != "system":
            cleaned.insert(0, {"role": "system", "content": system})
        return cleaned

    def evaluation(self, scenario: scenarios.Scenario, clean: Callable[[str], str], part: Part) -> None:
        prompt = clean(scenario.prompt)
        turns = [{**turn, "content": clean(turn["content"])} for turn in scenario.turns]
        values = {
            "id": files.sha256_json([scenario.target, plain(prompt)])[:16],
            "source": scenario.kind,
            "target": clean(scenario.target),
            "family": scenario.family and clean(scenario.family),
            "prompt": prompt if len(turns) == 1 else turns,
            "expected_behavior": None,
            "failure_modes": [],
            "success_criteria": [clean(text) for text in scenario.criteria],
            "rating": scenario.rating,
            "origin": scenario.origin,
            "canary": reference.CANARY,
        }
        part.rows.append(Row("evaluation", values, f"{scenario.target}?{prompt}", 0, alike=chat.asked(turns)))

    # -- records ------------------------------------------------------------------------------------------

    def record(self, record: records.Record, part: Part) -> None:
        part.counts["records"] += 1
        part.counts[f"format {record.format}"] += 1
        answers = [_text(turns) for turns in (record.completion, record.chosen, record.rejected) if turns]
        try:
            texts = [*(turn["content"] for turn in record.prompt), *answers]
            clean = self.cleaner.together(texts, part.counts)
        except Quarantined as found:
            part.drop(self.shown("\n".join(answers)), record.origin, f"quarantined: {found}")
            return
        turns, answers = self.turns(record.prompt, clean), [clean(text) for text in answers]
        if reference.CANARY in str(record.meta.get("canary", "")):
            part.drop("\n".join(answers), record.origin, "text of an evaluation set: its canary", lost=False)
            return
        unit = f"record?{plain(chat.asked(turns))}"
        if record.kind == "preference":
            self.preference("records", turns, *answers, record.origin, unit, {}, part, record.meta)
        elif record.kind == "kto":
            self.kto("records", turns, answers[0], record.label, record.origin, unit, {}, part, record.meta)
        else:
            row = self.row("records", turns, answers[0], record.origin)
            self.add(part, self.supervised(row, answers[0], unit), record.meta)

    def safety(self, record: records.Record, part: Part) -> None:
        """A row of the project's own (see safety.py). Package.mix decides whether it is trained."""
        question, answer = record.prompt[-1]["content"], _text(record.completion)
        try:
            clean = self.cleaner.together([question, answer], part.counts)
        except Quarantined:
            return
        turns, answer = self.turns(record.prompt, clean), clean(answer)
        row = self.row("safety", turns, answer, record.origin, kind=record.meta["kind"], family=record.meta["family"])
        unit = f"record?{plain(chat.asked(turns))}"
        self.add(part, self.supervised(row, answer, unit, kind="safety"), record.meta)

    def supervised(self, row: dict, answer: str, unit: str, kind: str = "supervised") -> Row:
        return Row(
            kind,
            row,
            unit,
            self.tokens(row["prompt"], answer),
            alike=chat.asked(row["prompt"]),
            good=answer,
        )

    def preference(self, source, turns, chosen, rejected, origin, unit, more, part, meta=None) -> None:
        values = {
            "id": files.sha256_json([[turn["content"] for turn in turns], chosen, rejected])[:16],
            "source": source,
            "origin": origin,
            "prompt": turns,
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            **more,
        }
        tokens = max(self.tokens(turns, chosen), self.tokens(turns, rejected))
        self.add(part, Row("preference", values, unit, tokens, chat.asked(turns), good=chosen, bad=rejected), meta)

    def kto(self, source, turns, answer, label, origin, unit, more, part, meta=None) -> None:
        values = {**self.row(source, turns, answer, origin, **more), "label": label}
        tokens = self.tokens(turns, answer)
        good, bad = (answer, None) if label else (None, answer)
        self.add(part, Row("kto", values, unit, tokens, chat.asked(turns), good=good, bad=bad), meta)

    # -- every row ----------------------------------------------------------------------------------------

    def add(self, part: Part, row: Row, meta: dict | None = None) -> None:
        """The row, unless it is harmful, text of an evaluation set, or too long; harm is named first, whatever else."""
        if self.harmful(part, row, meta):
            return
        origin, answer = row.values["origin"], answers_of(row)
        found = None
        if row.kind != "questions":
            found = self.heldout.holds(f"{chat.asked(row.values['prompt'])}\n{row.good or ''}\n{row.bad or ''}")
        if found:
            part.drop(answer, origin, f"text of an evaluation set: {found}", lost=False)
        elif row.tokens > self.data["max_tokens"]:
            part.drop(answer, origin, f"a row of {row.tokens} tokens is longer than data.max_tokens")
        else:
            part.counts["characters"] += len(answer)
            part.rows.append(row)

    def harmful(self, part: Part, row: Row, meta: dict | None) -> bool:
        """Whether the row's good answer is refused; then it stands in `part.refused`, once for each rule."""
        if row.good is None:
            return False
        role = {"preference": "chosen", "kto": "desirable"}.get(row.kind, "supervised")
        findings = bypass.findings(row.values["prompt"], row.good, meta, role)
        if not findings or bypass.digest(row.values) in self.allowed:
            return False
        told = {"origin": row.values["origin"], "digest": bypass.digest(row.values)}
        part.refused += [{**told, "rule": item.rule, "layer": item.layer, "excerpt": item.excerpt} for item in findings]
        return True


def place_of(unit: Unit, line: int) -> str:
    """Where a line of a unit stands, for people."""
    return unit.origin if unit.place else f"{unit.file}:{line}"


def answers_of(row: Row) -> str:
    """What a row's answers say: one text, of a pair both."""
    said = [text for text in (row.good, row.bad) if text is not None]
    return "\n".join(said) if said else _text(row.values["completion"])


def section_of(unit: Unit) -> str:
    """The chain of headings that a unit stands under."""
    return " > ".join(unit.path)


def title_of(unit: Unit) -> str:
    """The page's title; for a page without one its file's name, with the folder: there are many README and index."""
    path = Path(unit.file)
    return "/".join(path.with_suffix("").parts[-2:]) if unit.path[0] == path.stem else unit.path[0]


def slices(block: Block) -> Iterator[Block]:
    """A block that may be divided, in pieces of at most SLICE characters, cut behind lines where it has some."""
    if len(block.text) <= SLICE or not (block.divisible or block.language):
        yield block
        return
    place, line = 0, block.line
    while place < len(block.text):
        limit = place + SLICE
        cut = len(block.text) if limit >= len(block.text) else block.text.rfind("\n", place, limit) + 1
        cut = cut or block.text.rfind(" ", place, limit) + 1 or limit
        text = block.text[place:cut]
        if text.strip():
            yield dataclasses.replace(block, text=text.strip("\n"), line=line)
        line += text.count("\n")
        place = cut


def _text(turns: list[dict] | None) -> str | None:
    return turns[-1]["content"] if turns else None


def _before(places: list[int], begin: int, limit: int) -> int | None:
    """The last of the sorted places that lies after `begin` and not after `limit`."""
    index = bisect.bisect_right(places, limit) - 1
    return places[index] if index >= 0 and places[index] > begin else None
