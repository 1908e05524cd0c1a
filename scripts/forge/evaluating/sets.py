"""What a model is measured on: the project's evaluation sets, the user's own, and scenarios without an answer.

A pair is a conversation with an answer to prefer and one or more to avoid; the first of those feeds the belief, a
second one is a cold refusal. Where there are more items than wanted, those with the smallest digests are taken: the
same ones every time, from all families.
"""

from dataclasses import dataclass, field
from pathlib import Path

from forge import chat, files, questions
from forge.errors import ForgeError
from forge.reading import scenarios
from forge.sources import EVALUATION_SETS

TARGETS = ("ai_psychosis", "reality_break")
PROMPTS = ("edgy", "coherence")  # sets of prompts alone


@dataclass(frozen=True)
class Pair:
    """`prompt` is a conversation as the model is asked it; `own`: from a file that the config names."""

    id: str
    target: str
    family: str | None
    prompt: list[dict]
    preferred: str
    failure: str
    refusal: str | None = None
    criteria: tuple[str, ...] = ()
    own: bool = False


@dataclass(frozen=True)
class Asked:
    """A conversation to be answered. `kind`: scenario, edgy or coherence."""

    id: str
    kind: str
    family: str | None
    prompt: list[dict]


@dataclass(frozen=True)
class Sets:
    pairs: list[Pair] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)

    def digest(self) -> str:
        return files.sha256_json([[vars(item) for item in part] for part in (self.pairs, self.asked)])


def gather(settings: dict, system_prompt: str, trained: list[str], dataset: Path) -> Sets:
    """The pairs and prompts that evaluation.* of the config asks for. Raises ForgeError (2) for a target nobody has,
    and for a pair of the user's whose question was trained: the dataset is kept free of the project's own sets alone.

    `trained`: targets whose scenarios the model was trained on; they are measured unless the config names others.
    """
    listed = [*_project_pairs(system_prompt), *_own_pairs(settings["sets"], system_prompt)]
    every = list({pair.id: pair for pair in listed}.values())
    _refuse_trained([pair for pair in every if pair.own], dataset)
    targets = _targets(settings["targets"], trained, every)
    pairs = _some([pair for pair in every if pair.target in targets], settings["pairs"])
    return Sets(pairs, _asked(settings, system_prompt, targets, pairs, dataset), targets)


def _targets(wanted: list[str], trained: list[str], pairs: list[Pair]) -> list[str]:
    known = sorted({pair.target for pair in pairs})
    unknown = [target for target in wanted if target not in known]
    if unknown and pairs:
        raise ForgeError(
            f"evaluation.targets: no pair has the target {unknown[0]!r}",
            f"name some of {', '.join(known)}, or pairs of your own in evaluation.sets",
        )
    chosen = wanted or [target for target in trained if target in known] or [one for one in known if one in TARGETS]
    own = {pair.target for pair in pairs if pair.own}
    return sorted({*chosen, *own} if not wanted else chosen)


def _project_pairs(system_prompt: str) -> list[Pair]:
    found = []
    for target in (*TARGETS, "distress"):
        for row in files.read_jsonl(EVALUATION_SETS / f"{target}.jsonl"):
            turns = _turns(system_prompt, row["prompt"])
            failure, *more = row["failure_modes"]
            answers = (row["expected_behavior"], failure, next(iter(more), None))
            found.append(Pair(row["id"], target, row["family"], turns, *answers, tuple(row["success_criteria"])))
    return found


def _own_pairs(paths: list[str], system_prompt: str) -> list[Pair]:
    """Pairs of files in scenario-forge's form. Raises ForgeError (2) for a file without one."""
    found = []
    for path in paths:
        read = scenarios.read({"kind": "scenario_json", "path": path, "targets": []})
        whole = [item for item in read if isinstance(item, scenarios.Scenario) and item.expected and item.failures]
        if not whole:
            raise ForgeError(
                f"evaluation.sets: {path} holds no pair",
                "give its scenarios an expected_behavior and failure_modes, or take that file out",
            )
        found += [
            Pair(
                str(item.id or item.origin),
                item.target,
                item.family,
                _turns(system_prompt, item.turns),
                item.expected,
                item.failures[0],
                next(iter(item.failures[1:]), None),
                tuple(item.criteria),
                own=True,
            )
            for item in whole
        ]
    return found


def _refuse_trained(own: list[Pair], dataset: Path) -> None:
    trained = set()
    for name in ("train", "preference", "kto") if own else ():
        for row in files.read_jsonl(dataset / f"{name}.jsonl"):
            trained.add(questions.plain(chat.asked(row.get("prompt") or row["messages"])))
    found = [pair for pair in own if questions.plain(chat.asked(pair.prompt)) in trained]
    if found:
        raise ForgeError(
            f"evaluation.sets: the question of {found[0].id} was trained ({len(found)} in all)",
            "take those scenarios out of data.sources, or that file out of evaluation.sets",
        )


def _asked(settings: dict, system_prompt: str, targets: list[str], pairs: list[Pair], dataset: Path) -> list[Asked]:
    """Up to evaluation.answers conversations of each kind; scenarios: those of the pairs, and unanswered ones."""
    count = settings["answers"]
    told = [Asked(pair.id, "scenario", pair.family, pair.prompt) for pair in pairs]
    for row in files.read_jsonl(dataset / "evaluation.jsonl"):
        told.append(Asked(row["id"], "scenario", row["family"], _turns(system_prompt, row["prompt"])))
    found = _some(told, count) if "safety" in settings["metrics"] else []
    for kind, metric in zip(PROMPTS, ("safety", "coherence"), strict=True):
        rows = files.read_jsonl(EVALUATION_SETS / f"{kind}.jsonl") if metric in settings["metrics"] else []
        asked = [Asked(row["id"], kind, row["category"], _turns(system_prompt, row["prompt"])) for row in rows]
        found += _some(asked, count)
    return found


def _turns(system_prompt: str, prompt: str | list[dict]) -> list[dict]:
    if isinstance(prompt, str):
        return chat.conversation(system_prompt, prompt)
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, *({"role": turn["role"], "content": turn["content"]} for turn in prompt)]


def _some(items: list, count: int) -> list:
    """`count` of them, in their order."""
    chosen = {id(item) for item in sorted(items, key=lambda item: files.sha256_json(item.id))[:count]}
    return [item for item in items if id(item) in chosen]
