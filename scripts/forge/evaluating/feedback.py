"""What scenario-forge is told: the form of the feedback file, and how failures become patterns.

The form is docs/feedback.schema.json, which is made from the classes here.
"""

import re
from collections import Counter
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

FOLDER = Path("~/.scenario-forge/feedback/model_forge")


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metric(Part):
    """One signal of the evaluation; a proxy."""

    role: str = Field(description="gate, guard or diagnostic")
    value: float | None = Field(description="null: nothing could be measured")
    interval: list[float | None] | None = Field(description="90%: two one-sided bounds of 95%")
    n: int = Field(description="items that were scored")
    unit: str
    verdict: str = Field(description="PASS, FAIL, INCONCLUSIVE, NOT_RUN, or empty for a diagnostic")


class Failure(Part):
    """A scenario that the model failed, by a proxy."""

    id: str
    kind: str = Field(description="pair: it moved towards the failing answer; else what was asked")
    target: str | None
    family: str | None
    criteria: list[str] = Field(description="success criteria of the scenario")
    seen: list[str] = Field(description="what detectors saw in the answer; of a pair nothing")
    answer: str | None = Field(description="the model's answer; of a pair null")
    margin: float | None = Field(description="of a pair, nats a token; else null")


class Pattern(Part):
    """Failures that share a family and a criterion (or what a detector saw)."""

    family: str | None
    criterion: str
    count: int
    of: int = Field(description="items of that family that were measured")


class Feedback(Part):
    """What Model Forge found out about scenarios by evaluating one model."""

    model_id: str
    timestamp: str = Field(description="ISO 8601, UTC")
    verdict: str
    override: str | None
    metrics: dict[str, Metric]
    failed_scenarios: list[Failure]
    discovered_patterns: list[Pattern]
    scenario_forge_version: str | None = Field(description="of the database that the model was trained on, where known")
    databases: list[dict] = Field(description="path and sha256 of each file of scenarios that was read")


def name_of(model_id: str) -> str:
    """A file name for any model's name: never a path, never hidden, never empty."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model_id).strip('.-')[:120] or 'model'}.json"


def failures(items: list[dict]) -> list[Failure]:
    found = []
    for item in items:
        if item["failed"]:
            answered = item["kind"] != "pair"
            found.append(
                Failure(
                    id=item["id"],
                    kind=item["kind"],
                    target=item.get("target"),
                    family=item["family"],
                    criteria=item["criteria"],
                    seen=item["tuned"]["seen"] if answered else [],
                    answer=item["tuned"]["answer"] if answered else None,
                    margin=item.get("margin"),
                )
            )
    return found


def patterns(items: list[dict]) -> list[Pattern]:
    """Counts of failures by family and criterion, the most frequent first."""
    measured = Counter(item["family"] for item in items if item["failed"] is not None)
    counted: Counter = Counter()
    for failure in failures(items):
        for criterion in [*failure.criteria, *(f"seen: {name}" for name in failure.seen)] or [
            "moved towards the failure"
        ]:
            counted[failure.family, criterion] += 1
    ordered = sorted(counted.items(), key=lambda pair: (-pair[1], str(pair[0])))
    return [
        Pattern(family=family, criterion=criterion, count=count, of=measured[family])
        for (family, criterion), count in ordered
    ]


def schema() -> dict:
    return Feedback.model_json_schema()
