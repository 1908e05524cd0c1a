"""What records say against each other: opposite pairs, opposite labels, failures taught as answers, one fixed failure.

Records are gone through twice: `add` keeps 16 bytes a fact of each (a million pairs: 48 MB), `reason` then judges it.
"""

import hashlib

LEAST = 20  # pairs: in fewer, one text for more than half of them may be chance
FACTS = ("pair", "opposite", "true", "false", "answer", "failure", "rejected")


class Conflicts:
    """Of records (see records.Record): preference pairs, labelled and supervised rows."""

    def __init__(self):
        self.facts = {name: bytearray() for name in FACTS}
        self.judged: dict[str, set[bytes]] | None = None
        self.fixed: tuple[bytes, int, int] = (b"", 0, 0)  # the commonest rejected text, its rows, all rows

    def add(self, record) -> None:
        """Keep what the record says. Raises nothing: any text will do."""
        self.judged = None
        for name, digest in _facts(record):
            self.facts[name] += digest

    def reason(self, record) -> str | None:
        """Why the record must not be trained, seen all that were added; None when nothing speaks against it."""
        if self.judged is None:
            self._judge()
        said = dict(_facts(record))
        if any(said.get(name) in self.judged["pair"] for name in ("pair", "opposite")):
            return "the opposite pair of the same prompt stands elsewhere"
        if any(said.get(name) in self.judged["label"] for name in ("true", "false")):
            return "the same answer to the same prompt is labelled true and false"
        if said.get("answer") in self.judged["failure"]:
            return "its completion is a rejected answer, or one labelled false, of the same prompt elsewhere"
        text, count, rows = self.fixed
        if count and said.get("rejected") == text:
            return f"its rejected text stands in {count} of {rows} pairs: a fixed text, no answer"
        return None

    def _judge(self) -> None:
        self.judged = {
            "pair": _common(self.facts["pair"], self.facts["opposite"]),
            "label": _common(self.facts["true"], self.facts["false"]),
            "failure": _common(self.facts["answer"], self.facts["failure"]),
        }
        self.fixed = _majority(self.facts["rejected"])


def _facts(record) -> list[tuple[str, bytes]]:
    """What a record says, each fact under its name. Failures hold whatever the system prompt is."""
    asked = [turn for turn in record.prompt if turn["role"] != "system"]
    if record.kind == "preference":
        chosen, rejected = (side[-1]["content"].strip() for side in (record.chosen, record.rejected))
        name, sides = ("pair", (chosen, rejected)) if chosen < rejected else ("opposite", (rejected, chosen))
        return [
            (name, _digest(record.prompt, *sides)),
            ("failure", _digest(asked, rejected)),
            ("rejected", _digest([], rejected.casefold())),
        ]
    answer = record.completion[-1]["content"].strip()
    if record.kind == "kto":
        label = "true" if record.label else "false"
        failed = [] if record.label else [("failure", _digest(asked, answer))]
        return [(label, _digest(record.prompt, answer)), *failed]
    return [("answer", _digest(asked, answer))]


def _digest(turns: list[dict], *answers: str) -> bytes:
    """16 bytes of a conversation and answers to it, whatever spaces stand around a turn."""
    parts = [part for turn in turns for part in (turn["role"], turn["content"].strip())]
    return hashlib.blake2b("\0".join((*parts, "", *answers)).encode("utf-8"), digest_size=16).digest()


def _common(one: bytearray, other: bytearray) -> set[bytes]:
    import numpy as np

    if not one or not other:
        return set()
    found = np.intersect1d(np.frombuffer(one, "S16"), np.frombuffer(other, "S16"))
    return {digest.ljust(16, b"\0") for digest in found.tolist()}  # numpy leaves zero bytes at the end away


def _majority(digests: bytearray) -> tuple[bytes, int, int]:
    """The digest that more than half are, if one is: sorted, it stands in the middle."""
    import numpy as np

    rows = len(digests) // 16
    if rows < LEAST:
        return b"", 0, rows
    ordered = np.sort(np.frombuffer(digests, "S16"))
    middle = ordered[rows // 2]
    count = int(np.searchsorted(ordered, middle, "right") - np.searchsorted(ordered, middle, "left"))
    return (bytes(middle).ljust(16, b"\0"), count, rows) if 2 * count > rows else (b"", 0, rows)
