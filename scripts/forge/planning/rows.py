"""Rows as training meets them: the micro-batch that takes most memory, and how many tokens there are in all.

Without a data set, rows are as long as the config allows.
"""

from collections.abc import Iterator
from pathlib import Path

from forge import chat, files
from forge.planning.batch import Batch

READ = 200_000_000  # bytes of a data set up to which its rows are looked at; 1 GB would take 10 s
SAMPLE = 200  # rows whose tokens are counted to know about all
FILES = {"sft": "train", "dpo": "preference", "kto": "kto"}


def worst(settings: dict, dataset: Path | None, tokenizer, limit: int) -> list[Batch]:
    """One batch for each of training.stages. `tokenizer`, `dataset`: None where there is none yet.

    `limit`: tokens of a row that is not known.
    """
    training = settings["training"]
    found = []
    for stage in training["stages"]:
        place = training if stage == "sft" else training["preference"]
        count = place["per_device_train_batch_size"]
        known = longest(dataset, stage, tokenizer, count) if dataset and tokenizer else []
        rows = (known or [(limit, limit)]) * count
        lengths = tuple(min(length, training["max_length"]) for length, _ in rows[:count])
        targets = sum(min(own, length) for (_, own), length in zip(rows, lengths, strict=False))
        found.append(Batch(lengths, targets, stage, training["packing"]))
    return found


def longest(dataset: Path, stage: str, tokenizer, count: int) -> list[tuple[int, int]]:
    """Tokens, and tokens with a loss, of the `count` longest rows; empty where there is no file or it is too large.

    Only rows with the most letters are encoded: four times as many as are wanted, and 16 more.
    """
    rows = read(dataset, stage)
    rows.sort(key=lambda row: sum(len(turn["content"]) for turn in chat.messages_of(row)), reverse=True)
    encoded = (chat.encode_row(tokenizer, row) for row in rows[: 4 * count + 16])
    found = [(len(item["input_ids"]), carrying(item["labels"])) for item in encoded]
    return sorted(found, reverse=True)[:count]


def tokens(dataset: Path, stage: str, tokenizer) -> int | None:
    """About how many tokens the rows of a stage have, by some of them; None where none can be read."""
    rows = read(dataset, stage)
    some = rows[:: max(1, len(rows) // SAMPLE)]
    counted = sum(len(chat.encode_row(tokenizer, row)["input_ids"]) for row in some)
    return counted * len(rows) // len(some) if some else None


def read(dataset: Path, stage: str) -> list[dict]:
    """The rows of a stage; none where there is no file or it is too large."""
    path = dataset / f"{FILES[stage]}.jsonl"
    if not path.is_file() or path.stat().st_size > READ:
        return []
    return [item for row in files.read_jsonl(path) for item in sides(row)]


def sides(row: dict) -> Iterator[dict]:
    """The row itself, or both answers of a pair as rows."""
    if "chosen" not in row:
        yield row
        return
    for side in ("chosen", "rejected"):
        yield {"prompt": row["prompt"], "completion": row[side]}


def carrying(labels: list[int]) -> int:
    return sum(label != chat.IGNORED for label in labels[1:])
