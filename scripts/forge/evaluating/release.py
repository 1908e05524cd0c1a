"""The last release of a project: baselines/<name>.json, and the new model beside it."""

import json
from pathlib import Path

from forge.errors import INTEGRITY, ForgeError
from forge.evaluating import measuring, signals
from forge.evaluating.signals import Signal

NAME = "preference margin, beside the last release"


def kept(name: str, verdict: dict, items: list[dict]) -> dict:
    """What is written down of an evaluation: its verdict, what it is bound to, and every pair's figures."""
    return {
        "name": name,
        "verdict": verdict["verdict"],
        "bound_to": verdict["bound_to"],
        "signals": verdict["signals"],
        "pairs": pairs_of(items),
    }


def pairs_of(items: list[dict]) -> dict[str, dict]:
    """By the pair's id: what the tuned model gave its answers."""
    return {item["id"]: item["tuned"] for item in items if item["kind"] == "pair"}


def read(path: Path) -> dict[str, dict]:
    """The release's pairs. Raises ForgeError (6) for a file that is none."""
    try:
        pairs = json.loads(path.read_text(encoding="utf-8"))["pairs"]
        _ = [row["preferred"]["log_probability"] for row in pairs.values()]
        return pairs
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ForgeError(f"{path} is damaged: {error!r}", "restore it from version control", INTEGRITY) from None


def compared(before: dict[str, dict], after: dict[str, dict], margin: float, minimum: int) -> Signal:
    """The gate of regression, on pairs whose answers are as long as they were: another text is another pair."""
    same = [name for name in after if name in before and _tokens(before[name]) == _tokens(after[name])]
    values = measuring.margins([before[name] for name in same], [after[name] for name in same])
    return signals.gate(NAME, values, margin, minimum)


def _tokens(pair: dict) -> list[int]:
    return [pair[name]["tokens"] for name in ("preferred", "failure")]
