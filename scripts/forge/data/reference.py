"""Evaluation sets: what a model is measured on, and how training data is kept free of it.

The sets of this project lie in scenarios/evaluation/. A training row is taken out when it shares a run of 13 words
with an evaluation prompt (the rule of Brown et al. 2020, appendix C), or all of a prompt that has 8 to 12 words, or
when it holds the sets' canary.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from forge import files
from forge.errors import ForgeError
from forge.sources import EVALUATION_SETS

# Stands in every row of the sets. Whoever finds it in a corpus knows that the sets got into it.
CANARY = "model-forge-evaluation-canary-5f1c7a52-9d0e-4c83-b1a6-2e8f30d64b97"
RUN, LEAST = 13, 8  # words
WORD = re.compile(r"\w+")


class Reference:
    """Evaluation prompts as (name, text) pairs, ready to be looked for in training rows."""

    def __init__(self, prompts: Iterable[tuple[str, str]]):
        self.prompts = list(prompts)
        # Every run is filed under its longest word, with the next two: a row without all three cannot hold it. With
        # one word alone this took half of all time that rows take; most rows have "something" or "everything".
        self.runs: dict[str, list[tuple[str, str, str, str]]] = defaultdict(list)
        for name, text in self.prompts:
            words = WORD.findall(text.casefold())
            if len(words) < LEAST:
                continue
            for place in range(max(1, len(words) - RUN + 1)):
                run = words[place : place + RUN]
                first, second, third = sorted(run, key=len, reverse=True)[:3]
                self.runs[first].append((second, third, f" {' '.join(run)} ", name))
        self.keys = frozenset(self.runs)

    def holds(self, text: str) -> str | None:
        """The name of a prompt that the text holds a run of, or of the canary; None when it is free of them."""
        if CANARY in text:
            return "the canary of an evaluation set"
        if not self.keys:
            return None
        words = WORD.findall(text.casefold())
        known = set(words)
        line = f" {' '.join(words)} "
        for key in sorted(self.keys & known):
            for second, third, run, name in self.runs[key]:
                if second in known and third in known and run in line:
                    return name
        return None


def prompts_of(folder: Path = EVALUATION_SETS) -> list[tuple[str, str]]:
    """(id, text) of every prompt in the JSON Lines files of a folder; what the person says, turns joined.

    Raises ForgeError (2) naming file and line of one that holds none.
    """
    return [found for path in sorted(folder.glob("*.jsonl")) for found in prompts_in(path)]


def prompts_in(path: Path) -> Iterator[tuple[str, str]]:
    """`prompts_of` one file, row by row; an absent file has none."""
    if path.is_file():
        for name, said in _rows(path):
            yield name, "\n".join(said)


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Id and the person's texts of each line that is not blank, read one after the other."""
    with path.open("rb") as handle:
        for place, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = _row(line)
            except (ValueError, RecursionError) as error:
                remedy = 'write {"id": ..., "prompt": ...} there, or remove that line'
                raise ForgeError(f"{path}:{place}: {error}", remedy) from None
            yield row


def _row(line: bytes) -> tuple[str, list[str]]:
    row = json.loads(line.decode("utf-8"), **files.STRICT_JSON)
    if not isinstance(row, dict):
        raise ValueError("the line is no object")
    prompt = row.get("prompt")
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("prompt is neither a text nor a list of turns")
    said = [turn.get("content") for turn in turns if turn.get("role") == "user"]
    if not said:
        raise ValueError("prompt has no turn of the user")
    for key, text in [("id", row.get("id")), *(("prompt", text) for text in said)]:
        if not isinstance(text, str):
            raise ValueError(f"{key} is no text")
        text.encode("utf-8")  # half of a surrogate pair, which JSON can spell, is no character
    return row["id"], said
