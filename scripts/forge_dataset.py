"""Make the training set from documents: dataset_package/<name>/.

Reads data.* and project.{seed, system_prompt, identity} of the config, the documents, and the base model's
tokenizer. Writes train.jsonl, validation.jsonl (whole sections that training never sees), questions.jsonl
(wordings kept out of training, with the facts that an answer must contain), dropped.jsonl (every piece of
text that found no row, with file, line and reason), statistics.json, README.md and manifest.json.

Sections become "what does the page say about ..." rows, Q:/A: paragraphs become one row a wording. Nothing is
cut at the token budget: long sections are split between paragraphs and sentences. Same input, same bytes.
"""

import hashlib
from collections import Counter
from pathlib import Path

from forge import chat, documents, files, models, phase, sources
from forge.errors import ForgeError

ASK_SECTION = (
    "What does the page {page} say about {topic}?",
    "Explain {topic} ({page}).",
    "Tell me about {topic}, as described in {page}.",
    "{page}: what should I know about {topic}?",
)

LEAST_ANSWER = 16  # tokens; less room than that gives no rows worth training on


class Forge:
    """Rows of one run. `fits(messages)` says whether a rendered row keeps the token budget."""

    def __init__(self, run: phase.Run):
        self.data = run.settings["data"]
        self.project = run.settings["project"]
        self.tokenizer = models.tokenizer(run.layout.base)
        self.rows: dict[str, list[dict]] = {"train": [], "validation": [], "questions": [], "dropped": []}
        self.characters = 0
        self.lengths: list[int] = []
        self.seen: dict[str, str] = {}

    def chance(self, key: str) -> float:
        """A number in [0, 1) that depends on the seed and the key alone, not on the order of files."""
        digest = hashlib.sha256(f"{self.project['seed']}:{key}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    def tokens(self, question: str, answer: str) -> int:
        messages = [*self.prompt(question), {"role": "assistant", "content": answer}]
        return len(chat.encode(self.tokenizer, messages)["input_ids"])

    def prompt(self, question: str) -> list[dict]:
        return chat.conversation(self.project["system_prompt"], question)

    def add(self, split: str, question: str, answer: str, origin: str, facts: list[str] | None = None) -> None:
        length = self.tokens(question, answer)
        if length > self.data["max_tokens"]:
            self.drop(answer, origin, f"a row of {length} tokens is longer than data.max_tokens")
            return
        key = files.sha256_json([question, answer])
        if key in self.seen:
            self.drop(answer, origin, f"the same row as {self.seen[key]}")
            return
        self.seen[key] = origin
        row = {
            "id": key[:16],
            "source": "documents",
            "origin": origin,
            "prompt": self.prompt(question),
            "completion": [{"role": "assistant", "content": answer}],
        }
        if split == "questions":
            row["facts"] = facts
        self.rows[split].append(row)
        self.lengths.append(length)

    def drop(self, text: str, origin: str, reason: str) -> None:
        self.rows["dropped"].append({"origin": origin, "reason": reason, "characters": len(text), "text": text})

    # -- units to rows ----------------------------------------------------------------------------------

    def unit(self, unit: documents.Unit) -> None:
        place = f"{unit.file}:{unit.line}"
        split = self.split(f"{unit.file}#{' > '.join(unit.path)}")
        parts = self.pack(unit)
        for number, text in enumerate(parts, 1):
            part = f", part {number} of {len(parts)}" if len(parts) > 1 else ""
            self.add(split, self.ask(unit) + part, text, place)
        for group in unit.questions:
            self.questions(unit, group)

    def split(self, key: str) -> str:
        return "validation" if self.chance(key) < self.data["validation_share"] else "train"

    def ask(self, unit: documents.Unit) -> str:
        topic = unit.path[-1] if len(unit.path) > 1 else "its subject"
        key = f"{unit.file}#{unit.path}"
        return ASK_SECTION[int(self.chance("ask " + key) * len(ASK_SECTION))].format(page=unit.path[0], topic=topic)

    def pack(self, unit: documents.Unit) -> list[str]:
        """The unit's blocks as texts that each fit a row; what cannot be split is dropped by name."""
        question = self.ask(unit) + ", part 10 of 10"  # room for the part's number
        texts: list[str] = []
        if self.tokens(question, "x") + LEAST_ANSWER > self.data["max_tokens"]:
            for block in unit.blocks:
                self.characters += len(block.text)
                self.drop(block.text, f"{unit.file}:{block.line}", "system prompt and heading fill data.max_tokens")
            return []
        for piece, line in self.pieces(unit, question):
            self.characters += len(piece)
            joined = f"{texts[-1]}\n\n{piece}" if texts else piece
            if texts and self.tokens(question, joined) <= self.data["max_tokens"]:
                texts[-1] = joined
            elif self.tokens(question, piece) <= self.data["max_tokens"]:
                texts.append(piece)
            else:
                self.drop(piece, f"{unit.file}:{line}", "a table or code block longer than data.max_tokens")
        return texts

    def pieces(self, unit: documents.Unit, question: str):
        """Blocks, prose that is too long cut between sentences (or words, where a sentence alone is too long)."""
        for block in unit.blocks:
            if not block.divisible or self.tokens(question, block.text) <= self.data["max_tokens"]:
                yield block.text, block.line
                continue
            current = ""
            for sentence in documents.sentences(block.text):
                for part in self.words(sentence + " ", question):
                    joined = current + part
                    if current and self.tokens(question, joined.strip()) > self.data["max_tokens"]:
                        yield current.strip(), block.line
                        joined = part
                    current = joined
            if current.strip():
                yield current.strip(), block.line

    def words(self, sentence: str, question: str) -> list[str]:
        """Parts that each fit; put together they are the sentence, its spaces included."""
        if self.tokens(question, sentence.strip()) <= self.data["max_tokens"]:
            return [sentence]
        middle = len(sentence) // 2
        cut = sentence.rfind(" ", 0, middle) + 1 or middle
        return [*self.words(sentence[:cut], question), *self.words(sentence[cut:], question)]

    def questions(self, unit: documents.Unit, group: documents.Questions) -> None:
        """Rows of one question: all wordings in one split, some kept out of training to be asked later.

        The identity question is always trained: it is checked on the finished file.
        """
        origin = f"{unit.file}:{group.line}"
        self.characters += len(group.answer)
        asks = {word for word in group.wordings if plain(word) == plain(self.project["identity"]["question"])}
        split = "train" if asks else self.split(f"{origin}?{group.wordings[0]}")
        wordings = list(dict.fromkeys(group.wordings))
        held: list[str] = []
        if split == "train":
            movable = sorted(
                (word for word in wordings if word not in asks), key=lambda word: self.chance(origin + word)
            )
            held = movable[: min(self.data["heldout_wordings"], len(wordings) - 1)]
        for wording in wordings:
            target = "questions" if wording in held else split
            self.add(target, wording, group.answer, origin, group.facts)


def work(run: phase.Run) -> dict:
    models.prepare()
    forge = Forge(run)
    paths = [path for source in forge.data["sources"] for path in sources.files_of(source)]
    paths = list(dict.fromkeys(paths))
    if not paths:
        raise ForgeError("data.sources: no document found", "put .md or .txt files there, or change include")
    for path in paths:
        read(forge, path, run)
    separate(forge)
    require_rows(forge)
    for name, rows in forge.rows.items():
        if rows:
            files.write_jsonl(run.staging / f"{name}.jsonl", rows)
    statistics = describe(forge, len(paths))
    files.write_json(run.staging / "statistics.json", statistics)
    files.write_text(run.staging / "README.md", card(run, statistics))
    for name, count in statistics["rows"].items():
        run.say(f"{count:6} rows {name}")
    run.say(f"       text in rows: {100 * (1 - statistics['dropped_share']):.1f}%, the rest is in dropped.jsonl")
    return {"rows": statistics["rows"], "tokens": statistics["tokens"], "sources_sha256": run.sources}


def read(forge: Forge, path: Path, run: phase.Run) -> None:
    try:
        units = documents.read(path)
    except ForgeError as error:
        if forge.data["mode"] == "strict":
            raise
        run.say(f"skip {error.cause}")
        forge.drop("", str(path), error.cause)
        return
    for unit in units:
        forge.unit(unit)


def separate(forge: Forge) -> None:
    """No prompt of validation or questions stands in training, whatever file it came from."""
    kept_out = {_question(row) for name in ("validation", "questions") for row in forge.rows[name]}
    for row in [row for row in forge.rows["train"] if _question(row) in kept_out]:
        forge.rows["train"].remove(row)
        forge.drop(row["completion"][0]["content"], row["origin"], "its question is kept out of training")
    asked = {_question(row) for row in forge.rows["validation"]}
    forge.rows["questions"] = [row for row in forge.rows["questions"] if _question(row) not in asked]


def _question(row: dict) -> str:
    return plain(row["prompt"][-1]["content"])


def plain(text: str) -> str:
    """Letter case and spaces aside."""
    return " ".join(text.casefold().split())


def require_rows(forge: Forge) -> None:
    if not forge.rows["train"]:
        raise ForgeError(
            "the documents gave no training row", "add text, raise data.max_tokens, or lower data.validation_share"
        )
    if not forge.rows["validation"]:  # a tiny corpus: loss on held-out text needs at least one row
        identity = plain(forge.project["identity"]["question"])
        movable = [row for row in forge.rows["train"] if _question(row) != identity]
        if not movable or len(forge.rows["train"]) < 2:
            raise ForgeError("the documents gave a single row", "add more text: one row cannot be split")
        moved = min(movable, key=lambda row: forge.chance(row["id"]))
        forge.rows["train"].remove(moved)
        forge.rows["validation"].append(moved)


def describe(forge: Forge, file_count: int) -> dict:
    lengths = sorted(forge.lengths)
    lost = sum(row["characters"] for row in forge.rows["dropped"])
    return {
        "files": file_count,
        "rows": {name: len(rows) for name, rows in forge.rows.items()},
        "characters": forge.characters,
        "dropped_share": round(min(1.0, lost / forge.characters), 6) if forge.characters else 0.0,
        "dropped_reasons": dict(
            sorted(Counter(row["reason"].split(" tokens ")[-1] for row in forge.rows["dropped"]).items())
        ),
        "tokens": {
            "total": sum(lengths),
            "median": lengths[len(lengths) // 2],
            "p95": lengths[int(len(lengths) * 0.95)],
            "longest": lengths[-1],
            "budget": forge.data["max_tokens"],
        },
    }


def card(run: phase.Run, statistics: dict) -> str:
    rows = "\n".join(f"| {name} | {count} |" for name, count in statistics["rows"].items())
    return (
        f"# Training set of {run.layout.name}\n\n"
        f"Made from {statistics['files']} documents; sources' digest `{run.sources}`.\n\n"
        f"| file | rows |\n|---|---|\n{rows}\n\n"
        f"Tokens a row: median {statistics['tokens']['median']}, longest {statistics['tokens']['longest']} "
        f"of {statistics['tokens']['budget']}.\n"
    )


if __name__ == "__main__":
    phase.start(__doc__, "dataset", work)
