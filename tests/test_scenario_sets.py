"""The project's own scenarios: enough of them, in their form, training and evaluation apart."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from forge.data.reference import CANARY
from forge.reading import scenarios

ROOT = Path(__file__).resolve().parents[1] / "scenarios"
TARGETS = ("ai_psychosis", "reality_break")
PAIR = ["id", "evaluation_target", "family", "prompt", "expected_behavior", "failure_modes", "success_criteria"]


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


TRAINING = {target: rows(f"training/{target}") for target in TARGETS}
EVALUATION = {target: rows(f"evaluation/{target}") for target in (*TARGETS, "distress")}
PROMPTS = {name: rows(f"evaluation/{name}") for name in ("edgy", "coherence")}
CALIBRATION = rows("evaluation/calibration")
SAFETY, CANARY_PROMPTS = rows("training/safety"), rows("canary")
PAIRS = [row for part in (*TRAINING.values(), *EVALUATION.values()) for row in part]


def said(row: dict) -> str:
    prompt = row["prompt"]
    return prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)


def runs(text: str, length: int = 9) -> set[tuple]:
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[place : place + length]) for place in range(len(words) - length + 1)}


def test_there_are_enough():
    assert sum(map(len, TRAINING.values())) >= 150
    assert sum(map(len, EVALUATION.values())) >= 400
    assert len(PROMPTS["edgy"]) >= 150
    assert len(PROMPTS["coherence"]) >= 50
    assert len(CALIBRATION) >= 200


@pytest.mark.parametrize("part", [*TRAINING.values(), *EVALUATION.values()], ids=lambda part: part[0]["id"])
def test_pairs_have_their_form(part):
    for row in part:
        assert [key for key in row if key != "canary"] == PAIR
        assert ("canary" in row) == row["id"].startswith("eval-")
        assert row["success_criteria"] and row["failure_modes"]
        if isinstance(row["prompt"], list):
            roles = [turn["role"] for turn in row["prompt"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    assert sum(isinstance(row["prompt"], list) for row in part) >= len(part) // 5
    assert {row["evaluation_target"] for row in part} == {part[0]["evaluation_target"]}


def test_every_identifier_is_one():
    every = (*PAIRS, *CALIBRATION, *PROMPTS["edgy"], *PROMPTS["coherence"], *SAFETY, *CANARY_PROMPTS)
    ids = [row["id"] for row in every]
    assert [name for name, count in Counter(ids).items() if count > 1] == []


def test_families_of_training_and_evaluation_are_apart():
    trained = {row["family"] for part in TRAINING.values() for row in part}
    measured = {row["family"] for part in EVALUATION.values() for row in part}
    assert not trained & measured
    assert len(measured) >= 20


def test_no_text_stands_in_two_places():
    """Runs of 9 words: the prompts, and the good answers. A set phrase of the help that is named may come back."""
    seen: dict[tuple, str] = {}
    shared = []
    for row in (*PAIRS, *PROMPTS["edgy"], *PROMPTS["coherence"], *CALIBRATION, *SAFETY, *CANARY_PROMPTS):
        found = runs(said(row)) | runs(row.get("expected_behavior", row.get("completion", "")))
        shared += [(run, seen[run], row["id"]) for run in found if seen.get(run, row["id"]) != row["id"]]
        seen.update(dict.fromkeys(found, row["id"]))
    phrases = [run for run, *_ in shared if not {"crisis", "emergency"} & set(run)]
    assert phrases == []
    assert len(shared) <= 4


def test_a_failure_is_as_long_as_the_good_answer():
    """A model that only likes one length would else look safe, or unsafe."""
    for row in PAIRS:
        good, bad = (len(text.split()) for text in (row["expected_behavior"], row["failure_modes"][0]))
        assert 0.6 <= bad / good <= 1.4, row["id"]


def test_the_readers_take_all_of_them(monkeypatch):
    monkeypatch.chdir(ROOT.parent)
    for target in TARGETS:
        source = {"kind": "scenario_json", "path": f"scenarios/training/{target}.jsonl", "targets": [target]}
        found = scenarios.read(source)
        assert len(found) == len(TRAINING[target])
        assert all(scenarios.pairs(scenario) and not scenarios.unpaired(scenario) for scenario in found)


def test_evaluation_sets_carry_the_canary():
    for path in (ROOT / "evaluation").glob("*.jsonl"):
        assert all(json.loads(line)["canary"] == CANARY for line in path.read_text(encoding="utf-8").splitlines())
    assert CANARY not in "".join(path.read_text(encoding="utf-8") for path in (ROOT / "training").iterdir())


def test_labels_of_the_calibration_set():
    names = ("refusal", "help_referral", "delusion_confirmation")
    assert all(list(row["labels"]) == list(names) for row in CALIBRATION)
    for name in names:
        counted = Counter(row["labels"][name] for row in CALIBRATION)
        assert counted[True] >= 60 and counted[False] >= 100
    for one, other in combinations(names, 2):
        assert len({(row["labels"][one], row["labels"][other]) for row in CALIBRATION}) == 4


def test_readme_counts_them():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = {name: int(count) for name, count in re.findall(r"\| `(\w+/\w+)\.jsonl` \| (\d+) \|", readme)}
    told |= {name: int(count) for name, count in re.findall(r"\| `(canary)\.jsonl` \| (\d+) \|", readme)}
    files = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in ROOT.glob("**/*.jsonl")}
    assert told == {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
