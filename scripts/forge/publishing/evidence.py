"""What must have been shown of a model before it is sent: its records, and gates that passed for exactly its bytes."""

import json
from dataclasses import dataclass
from pathlib import Path

from forge import graph, lineage, manifest
from forge.config import Config
from forge.errors import GATE_NOT_PASSED, INTEGRITY, ForgeError

# The phases whose records tell of a kind.
NEEDS = {
    "gguf": (*graph.BY_NAME["modelfile"].needs, "modelfile"),
    "adapter": ("model", "dataset", "verify-adapter", "evaluate", "train"),
    "merged": ("model", "dataset", "train", "verify-adapter", "evaluate", "verify-merged", "merge"),
}


WEIGHTS = {"gguf": "gguf", "adapter": "train", "merged": "merge"}  # the phase that made them


@dataclass(frozen=True)
class Evidence:
    """`records` by phase; `verdicts` (the content of verdict.json) by gate."""

    config: Config
    kind: str
    records: dict[str, dict]
    verdicts: dict[str, dict]

    def facts(self, phase: str) -> dict:
        return self.records[phase]["facts"]

    @property
    def overrides(self) -> dict[str, str]:
        """Gates that did not pass and that a person overrode, with the reason."""
        return {name: told["override"] for name, told in self.verdicts.items() if told.get("override")}

    def recorded(self, phase: str) -> dict[str, dict]:
        """The files of a phase by name, each with `sha256` and `size`."""
        return {item["name"]: item for item in self.records[phase]["subject"]}

    def folder(self, phase: str) -> Path:
        return graph.BY_NAME[phase].folder(self.config.layout)


def gather(config: Config, kind: str) -> Evidence:
    """Read it. Weights are not hashed here: what is sent is hashed when it is sent.

    Raises ForgeError: 2 for what was not made, 3 for a gate without a PASS, 6 for records and files that disagree.
    """
    if kind == "merged" and not config.values.merge.keep:
        raise ForgeError("merge.keep is false: there is no merged model", "set merge.keep to true and run make merge")
    gates = [name for name in NEEDS[kind] if graph.BY_NAME[name].gate]
    for name in gates:
        _require_passed(config, name)
    records = lineage.load(NEEDS[kind], config, f"uploading the {kind}", weights=False)
    verdicts = {name: _verdict(config, name) for name in gates}
    if kind == "gguf" and "results" not in records["modelfile"]:
        raise ForgeError("the model's manifest is of an older version", f"run make modelfile CONFIG={config.path}")
    return Evidence(config, kind, records, verdicts)


def _require_passed(config: Config, gate: str) -> None:
    record = graph.BY_NAME[gate].record(config.layout)
    content = manifest.read(record)
    passed = content is not None and (content.get("verdict") == "PASS" or content.get("override"))
    if not passed:
        told = record.with_name("verdict.json")
        found = json.loads(told.read_text(encoding="utf-8")).get("verdict", "") if told.is_file() else "it was not run"
        raise ForgeError(
            f"{gate} has no PASS: {found}", f"run make {gate} CONFIG={config.path} and read {told}", GATE_NOT_PASSED
        )


def _verdict(config: Config, gate: str) -> dict:
    """The whole verdict, which must say what the gate's record says."""
    record = graph.BY_NAME[gate].record(config.layout)
    content = json.loads(record.with_name("verdict.json").read_text(encoding="utf-8"))
    kept = manifest.read(record)
    if (content["verdict"], bool(content.get("override"))) != (kept["verdict"], bool(kept.get("override"))):
        raise ForgeError(
            f"{record.parent}: verdict.json and {record.name} say different things",
            f"delete {record} and run make {gate}",
            INTEGRITY,
        )
    return content
