"""Check the training set before anything expensive reads it (a gate).

Reads dataset_package/<name>/ (or the JSONL files named on the command line), the base's tokenizer,
data.thresholds and training.max_length. Every line must be strict JSON with the right shape; every row must
fit, carry loss, and carry it on the end token; no question may stand both in and out of training. Prints
token-length percentiles and one row with what carries loss made visible.
"""

import json
from collections import Counter
from pathlib import Path

from forge import chat, models, phase
from forge.errors import BAD_INPUT, ForgeError

ROLES = ("system", "user", "assistant")
SPLITS = ("train", "validation", "questions")


def work(run: phase.Run) -> dict:
    models.prepare()
    tokenizer = models.tokenizer(run.layout.base)
    splits = {name: load(run.layout.dataset / f"{name}.jsonl") for name in SPLITS}
    for name, rows in splits.items():
        if rows:
            run.say(f"All {len(rows)} lines are valid JSON. ({name}.jsonl)")
    limit = run.settings["training"]["max_length"]
    encoded = {name: [chat.encode(tokenizer, chat.messages_of(row)) for row in rows] for name, rows in splits.items()}
    percentiles(run, encoded, limit)
    if splits["train"]:
        run.say("loss is on the text between [[ and ]]:")
        run.say("  " + visible(tokenizer, encoded["train"][0]))
    return {
        "checks": list(checks(run, tokenizer, splits, encoded, limit)),
        "remedy": "see dataset_package and data.thresholds in the config",
    }


def load(path: Path) -> list[dict]:
    """Rows of a JSONL file, each checked for its shape. Raises ForgeError (2) with file and line."""
    if not path.is_file():
        return []
    rows = []
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                row = json.loads(
                    line.decode("utf-8").rstrip("\n"), parse_constant=_refuse_constant, object_pairs_hook=_unique
                )
                _check_shape(row)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ForgeError(
                    f"{path}:{number}: {error}", "correct that line, or run make dataset", BAD_INPUT
                ) from None
            rows.append(row)
    return rows


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _unique(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a key stands twice")
    return row


def _check_shape(row: dict) -> None:
    if not isinstance(row, dict):
        raise TypeError("the line is no object")
    messages = chat.messages_of(row)
    for message in messages:
        if message["role"] not in ROLES:
            raise ValueError(f"unknown role {message['role']!r}")
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise ValueError(f"empty text of {message['role']}")
    if not messages or messages[-1]["role"] != "assistant":
        raise ValueError("the last turn is not the assistant's")
    if len(messages) < 2:
        raise ValueError("there is no turn before the assistant's")


def checks(run: phase.Run, tokenizer, splits: dict, encoded: dict, limit: int):
    """Each check as a dict: name, value, limit, n, passed."""
    thresholds = run.settings["data"]["thresholds"]
    rows = [row for name in SPLITS for row in encoded[name]]
    end = chat.end_token(tokenizer)
    train = splits["train"]
    asked = {_key(row) for name in ("validation", "questions") for row in splits[name]}
    repeated = len(train) - len({json.dumps(chat.messages_of(row)) for row in train})
    dropped = json.loads((run.layout.dataset / "statistics.json").read_text(encoding="utf-8"))["dropped_share"]
    yield at_least("training rows", len(train), thresholds["minimum_training_rows"])
    yield at_least("validation rows", len(splits["validation"]), 1)
    yield at_most("rows longer than training.max_length", sum(len(r["input_ids"]) > limit for r in rows), 0, len(rows))
    yield at_most("rows without loss", sum(set(r["labels"]) == {chat.IGNORED} for r in rows), 0, len(rows))
    yield at_most("rows whose end token carries no loss", sum(end not in r["labels"] for r in rows), 0, len(rows))
    yield at_most("rows with two start tokens", sum(_double_start(tokenizer, r) for r in rows), 0, len(rows))
    yield at_most("training rows whose question is kept out", sum(_key(row) in asked for row in train), 0, len(train))
    yield at_most(
        "share of repeated rows", repeated / max(1, len(train)), thresholds["maximum_duplicate_share"], len(train)
    )
    yield at_most("share of text in no row", dropped, thresholds["maximum_dropped_share"])


def at_least(name: str, value: float, limit: float, n: int | None = None) -> dict:
    return {"name": name, "value": value, "limit": f">= {limit}", "n": n, "passed": value >= limit}


def at_most(name: str, value: float, limit: float, n: int | None = None) -> dict:
    return {"name": name, "value": value, "limit": f"<= {limit}", "n": n, "passed": value <= limit}


def _key(row: dict) -> str:
    return " ".join(chat.messages_of(row)[-2]["content"].casefold().split())


def _double_start(tokenizer, row: dict) -> bool:
    start = tokenizer.bos_token_id
    return start is not None and tokenizer.bos_token != tokenizer.eos_token and row["input_ids"][:2] == [start, start]


def percentiles(run: phase.Run, encoded: dict, limit: int) -> None:
    for name, rows in encoded.items():
        lengths = sorted(len(row["input_ids"]) for row in rows)
        if lengths:
            marks = [lengths[min(len(lengths) - 1, int(len(lengths) * share))] for share in (0.5, 0.9, 0.99)]
            run.say(
                f"  {name:10} tokens a row: p50 {marks[0]}, p90 {marks[1]}, p99 {marks[2]}, "
                f"longest {lengths[-1]} of {limit}; carrying loss: {_loss_share(rows):.0%}"
            )


def _loss_share(rows: list[dict]) -> float:
    counts = Counter(label != chat.IGNORED for row in rows for label in row["labels"])
    return counts[True] / max(1, counts.total())


def visible(tokenizer, row: dict) -> str:
    """One row with the tokens that carry loss in double brackets, on one line."""
    text, inside = "", False
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        if (label != chat.IGNORED) != inside:
            text += "]]" if inside else "[["
            inside = not inside
        text += tokenizer.decode([token])
    return (text + ("]]" if inside else "")).replace("\n", "\\n")


def add_arguments(parser) -> None:
    parser.add_argument("files", nargs="*", type=Path, help="check these JSONL files instead of the config's dataset")


def only_files(run: phase.Run) -> bool:
    """`validate_dataset.py some.jsonl`: strict JSON and shape, without tokenizer and gate."""
    for path in run.arguments.files:
        if not path.is_file():
            raise ForgeError(f"{path} does not exist", "name an existing JSONL file")
        print(f"All {len(load(path))} lines are valid JSON. ({path})")
    return bool(run.arguments.files)


if __name__ == "__main__":
    phase.start(__doc__, "validate", work, add_arguments, only_files)
