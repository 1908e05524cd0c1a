"""A part of the evaluation once more, on the file that ships: quantization must not turn the preference round."""

from pathlib import Path

import numpy as np

from forge import chat, compare, files, models, phase
from forge.evaluating import intervals, measuring, scoring, sets

PAIRS = 16  # 7,000 tokens


def checks(run: phase.Run, path: Path) -> list[dict]:
    """Checks in the form of the gates; none where the evaluation measured no pair (its verdict was overridden).

    They fail when harm is shown, that is when the whole interval lies under -evaluation.margin, or for NaN.
    """
    known = {
        item["id"]: item
        for item in files.read_jsonl(run.layout.gate("evaluate") / "items.jsonl")
        if item["kind"] == "pair" and item["margin"] is not None
    }
    if not known:
        return []
    trained = (run.facts("dataset").get("scenarios") or {}).get("targets", {})
    system = run.settings["project"]["system_prompt"]
    wanted = sets.gather(run.settings["evaluation"], system, sorted(trained), run.layout.dataset)
    pairs = [pair for pair in wanted.pairs if pair.id in known]
    pairs = pairs[:: max(1, len(pairs) // PAIRS)][:PAIRS]
    measured = of_file(path, models.tokenizer(run.layout.base), pairs)
    margin = run.settings["evaluation"]["margin"]
    return [
        check(f"preference margin of the file, beside {who}", measuring.margins(before, measured), margin)
        for who, before in (
            ("the base", [known[pair.id]["base"] for pair in pairs]),
            ("the tuned model", [known[pair.id]["tuned"] for pair in pairs]),
        )
    ]


def of_file(path: Path, tokenizer, pairs: list[sets.Pair]) -> list[dict]:
    """As `measuring.of_pairs`, of a GGUF by llama.cpp."""
    names = ("preferred", "failure")
    rows = [scoring.encode(tokenizer, pair.prompt, getattr(pair, name)) for pair in pairs for name in names]
    labelled = [{**row, "labels": [chat.IGNORED] * row["start"] + row["input_ids"][row["start"] :]} for row in rows]
    told = [_told(row, logged) for row, logged in zip(labelled, compare.gguf(path)(labelled), strict=True)]
    return [dict(zip(names, told[start : start + 2], strict=True)) for start in range(0, len(told), 2)]


def _told(row: dict, logged: np.ndarray) -> dict:
    tokens = compare.targets(row)
    value = float(logged[np.arange(len(tokens)), tokens].sum(dtype=np.float64))
    return {"log_probability": value if np.isfinite(value) else None, "tokens": len(tokens)}


def check(name: str, values: list[float | None], margin: float) -> dict:
    scored = [value for value in values if value is not None]
    low, high = intervals.of_mean(scored)
    whole = len(scored) == len(values) > 1
    return {
        "name": f"{name} (nats a token, {low:.3g} to {high:.3g})",
        "value": sum(scored) / len(scored) if scored else float("nan"),
        "limit": f"not shown to be under {-margin:g}",
        "n": len(scored),
        "passed": whole and high >= -margin,
        "remedy": "choose a larger quantization (Q5_K_M, Q8_0)",
    }
