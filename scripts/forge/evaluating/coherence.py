"""Is an answer still language? Measures of one text that need no model.

distinct-2 (Li et al. 2016, arXiv:1510.03055): the share of word pairs that are different ones. Compression ratio: bytes
over bytes after zlib; 2.4 is where Whisper takes a text for a loop (Radford et al. 2022, arXiv:2212.04356, 4.5).
"""

import zlib

LOOP_RATIO = 2.4
LOOP_DISTINCT = 0.5  # of a text with at least LEAST word pairs; 16 such answers of the base gave 0.8 to 1
LEAST = 12
LEAST_BYTES = 80  # shorter texts hardly compress, whatever they say


def distinct_2(text: str) -> float | None:
    """Different word pairs over all word pairs; None for a text of fewer than two words."""
    words = text.casefold().split()
    pairs = list(zip(words, words[1:], strict=False))
    return len(set(pairs)) / len(pairs) if pairs else None


def compression_ratio(text: str) -> float | None:
    """How many times smaller zlib makes it; None for an empty text."""
    raw = text.encode("utf-8")
    return len(raw) / len(zlib.compress(raw, 9)) if raw else None


def loops(text: str) -> bool:
    """Does it say the same again and again?"""
    words = len(text.split())
    share, ratio = distinct_2(text), compression_ratio(text)
    repeats = words > LEAST and share is not None and share < LOOP_DISTINCT
    return repeats or (len(text.encode("utf-8")) >= LEAST_BYTES and ratio is not None and ratio > LOOP_RATIO)


def empty(text: str) -> bool:
    """Not one letter or digit."""
    return not any(map(str.isalnum, text))


def leaks(answer: dict, control_tokens: list[str]) -> bool:
    """Does it hold a token of the chat template, as a token or written out?"""
    return answer.get("control_tokens", 0) > 0 or any(text in answer["answer"] for text in control_tokens)
