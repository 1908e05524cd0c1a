"""Text as it may be trained: no secrets, no personal data where that is wanted, no control tokens of the model."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable

from forge.reading.documents import Unit
from forge.screening import secrets

LEAST = 16  # characters of a line of a secret that is looked for by itself: shorter ones are words


class Quarantined(Exception):
    """A text that is kept out because of what it holds. The message names the rules, never the values."""


class Cleaner:
    """`settings` are data.screening of the config; `control_tokens` those of the base (see chat.control_tokens)."""

    def __init__(self, settings: dict, control_tokens: list[str]):
        self.settings = settings
        longest_first = sorted(control_tokens, key=lambda token: (-len(token), token))
        self.control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def together(self, texts: list[str], counts: Counter) -> Callable[[str], str]:
        """A function that cleans each of the texts, after a look at all of them: some secrets are only known as such
        by what stands beside them, in another paragraph or another turn.

        What is done is added to `counts`. Raises Quarantined where the config says so.
        """
        whole, values = "\n\n".join(texts), {}
        for find, wanted in self.finders():
            spans = find(whole)
            if spans and wanted == "quarantine":
                raise Quarantined(", ".join(sorted({span.rule for span in spans})))
            counts.update(f"redacted {span.rule}" for span in spans)
            for span in spans:
                value = whole[span.start : span.end]
                values |= {line: span.rule for line in value.split("\n") if len(line) >= LEAST} | {value: span.rule}
        if not values and not self.control.search(whole):
            return str

        def clean(text: str) -> str:
            for value in sorted(values, key=len, reverse=True):
                text = text.replace(value, f"[redacted: {values[value]}]")
            return self.neutral(self.redacted(text), counts)

        return clean

    def neutral(self, text: str, counts: Counter) -> str:
        """The text with a space in every control token, so that it is text to the model, too."""
        while self.control.search(text):  # what is left may form another one
            text, changed = self.control.subn(lambda match: f"{match[0][0]} {match[0][1:]}", text)
            counts["control tokens"] += changed
        return text

    def finders(self) -> list[tuple[Callable, str]]:
        """What is looked for, and what the config wants done with it."""
        found = [(secrets.find, self.settings["secrets"])]
        if self.settings["personal_data"] != "keep":
            found.append((secrets.find_personal, self.settings["personal_data"]))
        return found

    def redacted(self, text: str) -> str:
        """The text without secrets whatever the config wants: for lists of what was left out."""
        return secrets.redact(text, personal=self.settings["personal_data"] != "keep")[0]

    def unit(self, unit: Unit, counts: Counter) -> Unit:
        """The unit with every text of it clean; most are clean already."""
        clean = self.together(texts_of(unit), counts)
        if clean is str:
            return unit
        return dataclasses.replace(
            unit,
            path=[clean(part) for part in unit.path],
            blocks=[dataclasses.replace(block, text=clean(block.text)) for block in unit.blocks],
            questions=[
                dataclasses.replace(
                    group,
                    wordings=[clean(text) for text in group.wordings],
                    answer=clean(group.answer),
                    facts=[clean(text) for text in group.facts],
                )
                for group in unit.questions
            ],
            definitions=[
                dataclasses.replace(item, term=clean(item.term), text=clean(item.text)) for item in unit.definitions
            ],
        )


def texts_of(unit: Unit) -> list[str]:
    """Every text of a unit."""
    groups = [text for group in unit.questions for text in (*group.wordings, group.answer)]
    terms = [text for item in unit.definitions for text in (item.term, item.text)]
    return [*unit.path, *(block.text for block in unit.blocks), *groups, *terms]
