"""Near-duplicates: what counts as almost the same, and that it is found wherever it stands."""

import random

import numpy as np
import pytest
from forge.data import clusters

WORDS = [f"word{number}" for number in range(2_000)]


def text(noise: random.Random, length: int) -> list[str]:
    return [noise.choice(WORDS) for _ in range(length)]


def triples(words: list[str]) -> set[tuple]:
    return {tuple(words[place : place + 3]) for place in range(len(words) - 2)}


def overlap(one: list[str], other: list[str]) -> float:
    a, b = triples(one), triples(other)
    return len(a & b) / len(a | b)


def edited(noise: random.Random, words: list[str], edits: int) -> list[str]:
    found = list(words)
    for place in noise.sample(range(len(found)), edits):
        found[place] = noise.choice(WORDS)
    return found


def signatures(texts: list[list[str]]) -> np.ndarray:
    return np.array([clusters.signature(" ".join(words)) for words in texts])


def test_letter_case_punctuation_and_spaces_do_not_count():
    one = clusters.signature("The bees, they say, are HOME.")
    assert (one == clusters.signature("the bees they  say\nare home")).all()
    assert (one != clusters.signature("the bees they say are gone")).any()
    assert one.shape == (clusters.VALUES,) and one.dtype == np.uint32


@pytest.mark.parametrize("short", ["", "yes", "two words", "?!"])
def test_short_texts_have_signatures_too(short):
    assert clusters.signature(short).shape == (clusters.VALUES,)


def test_the_estimate_is_as_good_as_it_says():
    noise = random.Random(1)
    errors = []
    for _ in range(200):
        words = text(noise, 120)
        other = edited(noise, words, noise.randint(0, 40))
        one, two = signatures([words, other])
        errors.append(float(clusters.similarity(one, two)) - overlap(words, other))
    assert np.std(errors) < 0.045  # sqrt(0.25 / 128) = 0.044 at most
    assert abs(np.mean(errors)) < 0.01


def test_pairs_are_those_that_overlap():
    """200 texts, half of them with an edited twin: the twins above the threshold are found, strangers are not."""
    noise = random.Random(2)
    originals = [text(noise, 100) for _ in range(100)]
    twins = [edited(noise, words, noise.randint(1, 12)) for words in originals]
    found = {tuple(sorted(pair)) for pair in clusters.pairs(signatures(originals + twins), 0.7)}
    near = {(place, place + 100) for place in range(100) if overlap(originals[place], twins[place]) >= 0.8}
    far = {(place, place + 100) for place in range(100) if overlap(originals[place], twins[place]) < 0.6}
    assert len(near) > 30 and len(far) > 10
    assert near <= found
    assert not far & found
    assert found <= {(place, place + 100) for place in range(100)}


def test_groups_of_any_size_are_joined():
    noise = random.Random(3)
    words = text(noise, 200)
    members = [edited(noise, words, 3) for _ in range(50)] + [text(noise, 200) for _ in range(50)]
    groups = clusters.Groups(100)
    for one, other in clusters.pairs(signatures(members), 0.7):
        groups.join(one, other)
    names = groups.names()
    assert set(names[:50]) == {0}
    assert sorted(names[50:]) == list(range(50, 100))


def test_no_rows():
    assert list(clusters.pairs(np.zeros((0, clusters.VALUES), np.uint32), 0.7)) == []
    assert clusters.Groups(0).names().tolist() == []
