"""Check the base and the training set before anything expensive reads them (a gate).

Reads dataset_package/<name>/ (or the JSONL files named on the command line), the base's tokenizer and the headers
of its weights, data.thresholds and training.max_length. First what would show after hours: the disk must hold what
the phases to come write, tokenizer and embedding must agree, the chat template must render, and llama.cpp must
convert and load the base's vocabulary and split text as training does. Then every line must be strict JSON with the
right shape; every row must fit, carry loss, and carry it on the end token; no question may stand both in and out of
training, nor one of the evaluation sets in training; chosen and rejected answers must differ. Prints rows by source
and label, token-length percentiles and one row with what carries loss made visible. Rows are read one after the
other; what stays in memory is 16 bytes a row and 4 a conversation (chosen and rejected are two): some 25 MB for a
million rows.
"""

import json
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from forge import chat, disk, files, models, phase, preflight
from forge.data import parallel, reference
from forge.data.package import number
from forge.errors import BAD_INPUT, ForgeError
from forge.questions import plain

ROLES = ("system", "user", "assistant")
SPLITS = ("train", "validation", "questions", "preference", "kto")
BATCH = 64  # lines that a worker takes at once
REMEDY = "see dataset_package and data.thresholds in the config"
FEW = 1 << 20  # bytes of rows; for fewer, starting workers takes longer than it saves


def work(run: phase.Run) -> dict:
    disk.require(run)
    models.prepare()
    tokenizer = models.tokenizer(run.layout.base)
    prompt = run.inputs["dataset"]["settings"]["project"]["system_prompt"]
    before, missing = preflight.examine(run.layout.base, tokenizer, prompt)
    for text in missing:
        run.say(f"  skip NOT checked: {text}")
    facts = {"remedy": REMEDY, **({"not_checked": missing} if missing else {})}
    if not all(item["passed"] for item in before):
        return {"checks": before, **facts}
    return {"checks": [*checks(run, read(run, tokenizer)), *before], **facts}


def read(run: phase.Run, tokenizer) -> dict[str, "Split"]:
    """Every row of every file, counted and described."""
    limit = run.settings["training"]["max_length"]
    splits = {name: Split(name) for name in SPLITS}
    paths = {name: run.layout.dataset / f"{name}.jsonl" for name in SPLITS}
    size = sum(path.stat().st_size for path in paths.values() if path.is_file())
    look = Look(tokenizer, limit)
    for found in parallel.ordered(look, batches(paths), parallel.workers() if size > FEW else 1):
        if isinstance(found, ForgeError):
            raise found
        splits[found["split"]].add(found)
    for split in splits.values():
        if split.rows:
            run.say(f"All {split.rows} lines are valid JSON. ({split.name}.jsonl)")
    for split in splits.values():
        split.describe(run, limit)
    show_one(run, tokenizer, paths["train"])
    return splits


# -- rows, one after the other ----------------------------------------------------------------------------------


def batches(paths: dict[str, Path]) -> Iterator[tuple[str, str, int, list[bytes]]]:
    """Split, file, number of the first line, lines."""
    for name, path in paths.items():
        if not path.is_file():
            continue
        with path.open("rb") as handle:
            first, lines = 1, []
            for line in handle:
                lines.append(line)
                if len(lines) == BATCH:
                    yield name, str(path), first, lines
                    first, lines = first + BATCH, []
            if lines:
                yield name, str(path), first, lines


class Look:
    """What a worker finds in a batch of lines: figures to add up, or the ForgeError (2) of the first bad line."""

    def __init__(self, tokenizer, limit: int):
        self.tokenizer, self.limit = tokenizer, limit
        self.end = chat.end_token(tokenizer)

    def __call__(self, batch: tuple) -> dict | ForgeError:
        name, path, first, lines = batch
        found = {"split": name, "lengths": [], "counts": Counter(), "sources": Counter(), "keys": [], "rows": []}
        for place, line in enumerate(lines, first):
            try:
                self.line(line, found)
            except ForgeError as error:
                return at(path, place, error)
        return found

    def line(self, line: bytes, found: dict) -> None:
        row = parse(line)
        found["sources"][(row.get("source", "unnamed"), row.get("label"))] += 1
        found["keys"].append(number(plain(chat.asked(conversations_of(row)[0]))))
        conversations = conversations_of(row)
        found["rows"].append(number(json.dumps(conversations)))
        for messages in conversations:
            self.row(chat.encode(self.tokenizer, messages, last_only="prompt" in row), found)

    def row(self, encoded: dict, found: dict) -> None:
        ids, labels, counts = encoded["input_ids"], encoded["labels"], found["counts"]
        carrying = sum(label != chat.IGNORED for label in labels)
        found["lengths"].append(len(ids))
        counts["tokens"] += len(ids)
        counts["carrying"] += carrying
        counts["conversations"] += 1
        counts["too long"] += len(ids) > self.limit
        counts["without loss"] += carrying == 0
        counts["without end"] += self.end not in labels
        counts["two starts"] += self.two_starts(ids)

    def two_starts(self, ids: list[int]) -> bool:
        tokenizer = self.tokenizer
        start = tokenizer.bos_token_id
        return start is not None and tokenizer.bos_token != tokenizer.eos_token and ids[:2] == [start, start]


class Split:
    """Figures of one file, added up: 4 bytes a conversation, 16 a row."""

    def __init__(self, name: str):
        self.name, self.rows = name, 0
        self.lengths, self.counts, self.sources = array("I"), Counter(), Counter()
        self.keys, self.digests = array("Q"), array("Q")

    def add(self, found: dict) -> None:
        self.rows += len(found["rows"])
        self.lengths.extend(found["lengths"])
        self.counts.update(found["counts"])
        self.sources.update(found["sources"])
        self.keys.extend(found["keys"])
        self.digests.extend(found["rows"])

    def describe(self, run: phase.Run, limit: int) -> None:
        if not self.rows:
            return
        lengths = ascending(self.lengths)
        marks = [lengths[min(len(lengths) - 1, int(len(lengths) * share))] for share in (0.5, 0.9, 0.99)]
        share = self.counts["carrying"] / max(1, self.counts["tokens"])
        run.say(
            f"  {self.name:10} tokens a row: p50 {marks[0]}, p90 {marks[1]}, p99 {marks[2]}, "
            f"longest {lengths[-1]} of {limit}; carrying loss: {share:.0%}"
        )
        listed = ", ".join(
            f"{source}{'' if label is None else f' labelled {str(label).lower()}'} {count}"
            for (source, label), count in sorted(self.sources.items(), key=str)
        )
        run.say(f"  {'':10} rows by source: {listed}")


def ascending(numbers: array) -> np.ndarray:
    """The array itself, sorted where it lies, seen by numpy.

    Nothing is copied: np.unique takes 50 bytes a number more (measured with 5 million), np.isin 43.
    """
    view = np.asarray(numbers)
    view.sort()
    return view


def different(ordered: np.ndarray) -> np.ndarray:
    """Which of the sorted numbers are not the one before: one bool each."""
    return np.concatenate([np.ones(min(1, len(ordered)), bool), ordered[1:] != ordered[:-1]])


def at(path: Path | str, place: int, error: ForgeError) -> ForgeError:
    return ForgeError(f"{path}:{place}: {error.cause}", error.remedy, error.code)


def parse(line: bytes) -> dict:
    """A row of a known shape. Raises ForgeError (2) that says what is wrong with the line."""
    try:
        row = json.loads(line.decode("utf-8").rstrip("\n"), **files.STRICT_JSON)
        check_shape(row)
        return row
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ForgeError(str(error), "correct that line, or run make dataset", BAD_INPUT) from None


def check_shape(row: object) -> None:
    if not isinstance(row, dict):
        raise TypeError("the line is no object")
    json.dumps(row, ensure_ascii=False).encode("utf-8")  # JSON can spell half of a surrogate pair: no character
    for key in ("source", "id", "origin"):
        if not isinstance(row.get(key, ""), str):
            raise ValueError(f"{key} is no text")
    conversations = conversations_of(row)
    for messages in conversations:
        for message in messages:
            if message["role"] not in ROLES:
                raise ValueError(f"unknown role {message['role']!r}")
            if not isinstance(message["content"], str) or not message["content"].strip():
                raise ValueError(f"empty text of {message['role']}")
        if not messages or messages[-1]["role"] != "assistant":
            raise ValueError("the last turn is not the assistant's")
        if len(messages) < 2:
            raise ValueError("there is no turn before the assistant's")
    if len(conversations) == 2 and conversations[0] == conversations[1]:
        raise ValueError("chosen and rejected are the same")
    if "label" in row and not isinstance(row["label"], bool):
        raise ValueError("label is neither true nor false")


def conversations_of(row: dict) -> list[list[dict]]:
    """The conversations that a row trains: one, or with chosen and rejected two."""
    if "chosen" in row:
        return [[*row["prompt"], *row["chosen"]], [*row["prompt"], *row["rejected"]]]
    return [chat.messages_of(row)]


# -- what must hold -----------------------------------------------------------------------------------------------


def checks(run: phase.Run, splits: dict[str, Split]) -> Iterator[dict]:
    """Each check as a dict: name, value, limit, n, passed."""
    thresholds = run.settings["data"]["thresholds"]
    counts = sum((split.counts for split in splits.values()), Counter())
    n, train = counts["conversations"], splits["train"]
    taught = [splits[name].keys for name in ("train", "preference", "kto")]
    repeated = train.rows - int(np.count_nonzero(different(ascending(train.digests))))
    dropped = json.loads((run.layout.dataset / "statistics.json").read_text(encoding="utf-8"))["dropped_share"]
    yield at_least("training rows", train.rows, thresholds["minimum_training_rows"])
    yield at_least("validation rows", splits["validation"].rows, 1)
    yield at_most("rows longer than training.max_length", counts["too long"], 0, n)
    yield at_most("rows without loss", counts["without loss"], 0, n)
    yield at_most("rows whose end token carries no loss", counts["without end"], 0, n)
    yield at_most("rows with two start tokens", counts["two starts"], 0, n)
    yield at_most(
        "training rows whose question is kept out", shared(kept_out(run, splits), taught), 0, sum(map(len, taught))
    )
    yield at_most(
        "share of repeated rows", repeated / max(1, train.rows), thresholds["maximum_duplicate_share"], train.rows
    )
    yield at_most("share of text in no row", dropped, thresholds["maximum_dropped_share"])


def kept_out(run: phase.Run, splits: dict[str, Split]) -> array:
    """Numbers of the questions that training must not hold: of the set's own splits, and of the evaluation sets."""
    asked = splits["validation"].keys + splits["questions"].keys
    asked.extend(number(plain(text)) for _, text in reference.prompts_in(run.layout.dataset / "evaluation.jsonl"))
    asked.extend(number(plain(text)) for _, text in reference.prompts_of())
    return asked


def shared(asked: array, taught: list[array]) -> int:
    """How many numbers of `taught`, counted as often as they stand there, are in `asked`. Sorts all of them."""
    wanted = ascending(asked)
    wanted = wanted[different(wanted)]
    found = 0
    for keys in map(ascending, taught):
        found += int((np.searchsorted(keys, wanted, "right") - np.searchsorted(keys, wanted, "left")).sum())
    return found


def at_least(name: str, value: float, limit: float, n: int | None = None) -> dict:
    return {"name": name, "value": value, "limit": f">= {limit}", "n": n, "passed": value >= limit}


def at_most(name: str, value: float, limit: float, n: int | None = None) -> dict:
    return {"name": name, "value": value, "limit": f"<= {limit}", "n": n, "passed": value <= limit}


def show_one(run: phase.Run, tokenizer, path: Path) -> None:
    """The first training row with the text that carries loss made visible."""
    if path.is_file():
        with path.open("rb") as handle:
            line = handle.readline()
        if not line:
            return
        try:
            encoded = chat.encode_row(tokenizer, parse(line))
        except ForgeError as error:
            raise at(path, 1, error) from None
        run.say("loss is on the text between [[ and ]]:")
        run.say("  " + visible(tokenizer, encoded))


def visible(tokenizer, row: dict) -> str:
    """One row with the tokens that carry loss in double brackets, on one line."""
    text, inside = "", False
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        if (label != chat.IGNORED) != inside:
            text += "]]" if inside else "[["
            inside = not inside
        text += tokenizer.decode([token])
    return (text + ("]]" if inside else "")).replace("\n", "\\n")


# -- single files -------------------------------------------------------------------------------------------------


def load(path: Path) -> int:
    """Number of rows of a JSONL file, each checked for its shape. Raises ForgeError (2) with file and line."""
    rows = 0
    with path.open("rb") as handle:
        for rows, line in enumerate(handle, 1):
            try:
                parse(line)
            except ForgeError as error:
                raise at(path, rows, error) from None
    return rows


def add_arguments(parser) -> None:
    parser.add_argument("files", nargs="*", type=Path, help="check these JSONL files instead of the config's dataset")


def only_files(run: phase.Run) -> bool:
    """`validate_dataset.py some.jsonl`: strict JSON and shape, without tokenizer and gate."""
    for path in run.arguments.files:
        if not path.is_file():
            raise ForgeError(f"{path} does not exist", "name an existing JSONL file")
        print(f"All {load(path)} lines are valid JSON. ({path})")
    return bool(run.arguments.files)


if __name__ == "__main__":
    phase.start(__doc__, "validate", work, add_arguments, only_files)
