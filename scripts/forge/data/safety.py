"""Rows that are mixed into every training set, so that fine-tuning does not wear away the base's safety.

They lie in scenarios/training/safety.jsonl, in four kinds: attempts to make the model drop its rules and plainly
harmful requests, both turned down warmly; harmless requests that sound dangerous, answered; people in distress, helped.
The third kind is there because refusals alone teach a model to refuse too much. Bianchi et al. 2023 (arXiv 2309.07875)
found with LLaMA that 3% of safety rows make a model much safer, and that many make it refuse harmless requests. What
these rows do was not measured.
"""

from collections import defaultdict
from pathlib import Path

from forge.data.rows import chance
from forge.errors import ForgeError
from forge.reading import records
from forge.sources import SAFETY_ROWS

KINDS = ("bypass_refused", "harm_refused", "edgy_answered", "distress_answered")


def read(path: Path = SAFETY_ROWS) -> list[records.Record]:
    """The rows, each with `kind` and `family` in its meta; an absent file has none.

    Raises ForgeError (2) naming the line of one that cannot be used.
    """
    found = list(records.read(path, str(path))) if path.is_file() else []
    for item in found:
        reason = item.reason if isinstance(item, records.Rejected) else _wrong(item)
        if reason:
            raise ForgeError(f"{item.origin}: {reason}", "correct that line, or set data.safety_share to 0")
    return found


def _wrong(record: records.Record) -> str | None:
    if record.format != "prompt_completion":
        return "a safety row has prompt and completion"
    if record.meta.get("kind") not in KINDS:
        return f"kind is none of {', '.join(KINDS)}"
    return None if isinstance(record.meta.get("family"), str) else "family is missing"


def evenly(rows: list[dict], chances: list[float], seed: int) -> list[int]:
    """Places in `rows` in the order in which they are to be taken: kinds take turns, and in each its families.

    `chances`: a number in [0, 1) for each row, which together with `seed` decides; the order of the rows does not.
    """
    turns: dict[tuple, int] = defaultdict(int)
    ranked = []
    for place in sorted(range(len(rows)), key=lambda place: chances[place]):
        family = (rows[place]["kind"], rows[place]["family"])
        ranked.append((turns[family], chances[place], place))
        turns[family] += 1
    of_kind: dict[str, int] = defaultdict(int)
    order = []
    for *_, place in sorted(ranked):
        kind = rows[place]["kind"]
        order.append((of_kind[kind], chance(seed, f"safety {kind}"), place))
        of_kind[kind] += 1
    return [place for *_, place in sorted(order)]
