"""Where a project stands: every phase done, stale and why, waiting, failed or missing.

Judged by content, not by time: a phase is `done` when config values, inputs and files are the recorded ones. `deleted`
is a merged model that nobody needs any more, `failed` a gate whose verdict about what is there now is no PASS.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from forge import graph, manifest, sources
from forge.config import Config
from forge.errors import INTEGRITY, ForgeError

DONE, DELETED, STALE, WAITS, FAILED, MISSING = "done", "deleted", "stale", "waits", "failed", "missing"


@dataclass(frozen=True)
class State:
    """`name` is one of the words above, `note` says where or why, `record` is what the phase left (None: nothing)."""

    phase: graph.Phase
    name: str
    note: str
    record: dict | None

    @property
    def settled(self) -> bool:
        return self.name in (DONE, DELETED)


def of_phases(configuration: Config) -> list[State]:
    """One for every phase, in run order."""
    found: list[State] = []
    for row in graph.PHASES:
        before = next((state.phase.name for state in found if not state.settled), None)
        found.append(_of(row, configuration, before))
    return found


def _of(row: graph.Phase, configuration: Config, before: str | None) -> State:
    record = row.record(configuration.layout)
    content = manifest.read(record)
    outside = sources.outside(row.name, configuration)
    if content is None:
        return _without_record(row, configuration, before, outside)
    reason = manifest.why_stale(row, configuration, outside)
    if reason:
        return State(row, STALE, reason, content)
    return State(row, WAITS, f"for {before}", content) if before else State(row, DONE, str(record), content)


def _without_record(row: graph.Phase, configuration: Config, before: str | None, outside: str | None) -> State:
    if (
        row.name == "merge"
        and before is None
        and manifest.why_stale(graph.BY_NAME["gguf"], configuration, None) is None
    ):
        return State(row, DELETED, "not needed: the GGUF was made from it", None)
    told = verdict(row, configuration.layout)
    now = manifest.input_digests(row, configuration.layout, outside)
    if told and told["verdict"] != "PASS" and all(item in told["bound_to"] for item in now):
        return State(row, FAILED, f"{told['verdict']}, see {verdict_file(row, configuration.layout)}", None)
    return State(row, MISSING, f"make {row.name}", None)


def verdict_file(row: graph.Phase, layout: graph.Layout) -> Path:
    return row.folder(layout) / "verdict.json"


def verdict(row: graph.Phase, layout: graph.Layout) -> dict | None:
    """What a gate said last, about whatever was there then; None of other phases and of a gate that never ran."""
    path = verdict_file(row, layout)
    if not row.gate or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _ = content["verdict"], content["bound_to"]
        return content
    except (ValueError, KeyError, TypeError) as error:
        raise ForgeError(f"{path} is damaged: {error}", f"delete {path} and run make again", INTEGRITY) from None
