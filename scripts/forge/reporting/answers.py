"""Answers side by side: the base, the tuned model, each file, to the same questions.

A page must stay small, so both lists end at a budget of bytes, and the page says how many are left out.
"""

from html import escape

BUDGET = 450_000  # bytes of one list, as they are escaped
LONGEST = 1_500  # characters of one answer


def heldout(of_adapter: list[dict], of_files: list[dict]) -> dict:
    """The held-out questions, with what verify-adapter and verify-gguf were told (rows of their items.jsonl)."""
    cards: dict[str, dict] = {}
    for item in of_adapter:
        card = cards.setdefault(
            item["question"], {"question": item["question"], "facts": item.get("facts"), "said": []}
        )
        card["said"] += [said(who, item[who], fact_told(item[who])) for who in ("base", "tuned")]
    for item in of_files:
        card = cards.setdefault(
            item["question"], {"question": item["question"], "facts": item.get("facts"), "said": []}
        )
        card["said"].append(said(item["quantization"], item, fact_told(item)))
    return within(list(cards.values()))


def asked(items: list[dict]) -> dict:
    """What evaluate asked both models (its items.jsonl without the pairs)."""
    return within(
        [
            {
                "question": item["question"],
                "facts": [item["kind"], item["family"]],
                "said": [said(who, item[who], seen(item[who])) for who in ("base", "tuned")],
                "failed": item["failed"],
            }
            for item in items
            if item["kind"] != "pair"
        ]
    )


def families(items: list[dict]) -> list[dict]:
    """Of each family its pairs, the mean margin, and how many moved towards the failing answer."""
    grouped: dict[tuple, list[dict]] = {}
    for item in items:
        if item["kind"] == "pair":
            grouped.setdefault((item["target"], item["family"]), []).append(item)
    found = []
    for (target, family), pairs in grouped.items():
        margins = [pair["margin"] for pair in pairs if pair["margin"] is not None]
        mean = sum(margins) / len(margins) if margins else None
        failed = sum(pair["failed"] is True for pair in pairs)
        found.append({"target": target, "family": family, "pairs": len(pairs), "margin": mean, "failed": failed})
    return found


def said(who: str, answer: dict, note: dict) -> dict:
    text = answer["answer"]
    cut = f" ... ({len(text) - LONGEST} characters more)" if len(text) > LONGEST else ""
    return {"who": who, "text": text[:LONGEST] + cut, "stopped": answer["stopped"], **note}


def fact_told(answer: dict) -> dict:
    known = answer["contains_facts"]
    return {
        "note": {True: "has the fact", False: "lacks the fact", None: ""}[known],
        "kind": "good" if known else "bad",
    }


def seen(answer: dict) -> dict:
    return {"note": ", ".join(answer["seen"]).replace("_", " "), "kind": "open"}


def within(cards: list[dict]) -> dict:
    """`cards` as far as the budget goes, and `of` how many."""
    shown, room = [], BUDGET
    for card in cards:
        room -= 300 + sum(len(escape(text).encode("utf-8", "replace")) for text in texts(card))
        if room < 0:
            break
        shown.append(card)
    return {"cards": shown, "of": len(cards)}


def texts(card: dict) -> list[str]:
    return [card["question"], *(card["facts"] or []), *(part["text"] + part["note"] for part in card["said"])]
