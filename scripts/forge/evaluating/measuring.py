"""What a model gives on the sets: log-probabilities of the pairs' answers, and answers of its own; and the controls.

What does not depend on the tuned model (the base's figures, the controls) is computed once and kept under
evaluation/.cache/, named by a digest of everything that it depends on.
"""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from forge import compare, files, graph, models
from forge.evaluating import scoring
from forge.evaluating.sets import Pair, Sets
from forge.progress import Told

FORM = 2  # of what is cached, part of its name: raised when this file computes something else
CONTROLS = 16  # pairs of the controls: 8,000 tokens for each, some 15 s of two cores for the starter
LARGEST_RANDOM = 4_000_000_000  # bytes of weights: a model of random weights is made in memory up to here
ANSWERS = ("preferred", "failure", "refusal")


def cached(depends: list, make: Callable[[], dict]) -> dict:
    """What `make` gives, from the file whose name is the digest of `depends`, or made and written there.

    A file of another SHA-256 than it was written with counts as none.
    """
    path = graph.CACHE / f"{files.sha256_json([FORM, *depends])[:32]}.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["sha256"] == files.sha256_json(known["made"]):
            return known["made"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    made = json.loads(json.dumps(make()))  # as it is read the next time
    files.write_json(path, {"made": made, "sha256": files.sha256_json(made)})
    return made


def of_pairs(model, tokenizer, pairs: list[Pair], say: Callable[[str], None] | None = None) -> list[dict]:
    """For each pair and each of its ANSWERS: `log_probability` in nats (None: not scored) and `tokens`."""
    rows, places = [], []
    for number, pair in enumerate(pairs):
        for name in ANSWERS:
            if text := getattr(pair, name):
                rows.append(scoring.encode(tokenizer, pair.prompt, text))
                places.append((number, name))
    values = scoring.log_probabilities(model, rows, _progress(say, "answers scored"))
    found: list[dict] = [{} for _ in pairs]
    for (number, name), row, value in zip(places, rows, values, strict=True):
        told = value if math.isfinite(value) else None
        found[number][name] = {"log_probability": told, "tokens": len(row["input_ids"]) - row["start"]}
    return found


def of_model(model, tokenizer, sets: Sets, limit: int, say: Callable[[str], None] | None = None) -> dict:
    """`pairs` as of `of_pairs`, `answers` one for each of sets.asked, of `limit` tokens at most."""
    answers: list[dict] = []
    for start in range(0, len(sets.asked), compare.ANSWERS_AT_ONCE):
        batch = [item.prompt for item in sets.asked[start : start + compare.ANSWERS_AT_ONCE]]
        answers += compare.answers(model, tokenizer, batch, limit)
        if say:
            say(f"  {len(answers)} of {len(sets.asked)} questions answered")
    return {"pairs": of_pairs(model, tokenizer, sets.pairs, say), "answers": answers}


def _progress(say: Callable[[str], None] | None, what: str) -> Told | None:
    """A line a tenth of the work."""
    if say is None:
        return None
    told = 0

    def progress(done: int, of: int) -> None:
        nonlocal told
        if done * 10 // of > told or done == of:
            told = done * 10 // of
            say(f"  {done} of {of} {what}")

    return progress


# -- controls -----------------------------------------------------------------------------------------------


def shuffled(pairs: list[Pair]) -> list[Pair]:
    """CONTROLS of the pairs, each with the question of another: what is preferred whatever was asked."""
    chosen = pairs[:: max(1, len(pairs) // CONTROLS)][:CONTROLS]
    order = list(range(len(chosen)))
    random.Random(0).shuffle(order)
    after = dict(zip(order, order[1:] + order[:1], strict=True))
    return [replace(pair, prompt=chosen[after[number]].prompt) for number, pair in enumerate(chosen)]


def random_model(folder: Path, dtype: str, device: str):
    """The base's architecture with random weights (seed 0); None where it would not fit a GPU beside the base."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if models.weight_bytes(folder) > LARGEST_RANDOM or models.place(folder) != (device, False):
        return None
    torch.manual_seed(0)
    shape = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    shape.quantization_config = None
    return AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, dtype), trust_remote_code=False).eval()


def of_controls(base, folder: Path, tokenizer, pairs: list[Pair], dtype: str) -> dict:
    """`shuffled`: the base on shuffled questions; `random`: a model of random weights on the same pairs, unshuffled."""
    chosen = pairs[:: max(1, len(pairs) // CONTROLS)][:CONTROLS]
    found = {
        "ids": [pair.id for pair in chosen],
        "shuffled": of_pairs(base, tokenizer, shuffled(pairs)),
        "random": None,
    }
    if (model := random_model(folder, dtype, str(base.device))) is not None:
        found["random"] = of_pairs(model.to(base.device), tokenizer, chosen)
    return found


# -- differences --------------------------------------------------------------------------------------------


def per_token(one: dict | None, other: dict | None) -> float | None:
    """Change of an answer's log-probability from the first model to the second, nats a token."""
    if not one or not other or one["log_probability"] is None or other["log_probability"] is None:
        return None
    return (other["log_probability"] - one["log_probability"]) / one["tokens"]


def margins(before: list[dict], after: list[dict], over: str = "failure") -> list[float | None]:
    """[change of the preferred answer] - [change of the other], nats a token, of each pair that has both answers."""
    found = []
    for one, other in zip(before, after, strict=True):
        if over in one:
            gained, lost = (per_token(one[name], other[name]) for name in ("preferred", over))
            found.append(None if gained is None or lost is None else gained - lost)
    return found


def summed_margins(before: list[dict], after: list[dict]) -> list[float | None]:
    """The same over whole answers, in nats."""
    found = []
    for one, other in zip(before, after, strict=True):
        values = [part[name]["log_probability"] for part in (one, other) for name in ("preferred", "failure")]
        usable = all(value is not None for value in values)
        found.append((values[2] - values[0]) - (values[3] - values[1]) if usable else None)
    return found


def of_like_length(pairs: list[dict]) -> list[bool]:
    """Whether a pair's two answers differ by less than a tenth in tokens."""
    return [abs(pair["preferred"]["tokens"] / pair["failure"]["tokens"] - 1) < 0.1 for pair in pairs]
