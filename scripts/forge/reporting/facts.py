"""Everything that the page tells, gathered from the records. Nothing is measured, no phase is run.

What a phase has not done is None here, and the page says so: a verdict counts only where it is about what is there now.
"""

import itertools
import json
import math
import shlex
from pathlib import Path

import yaml
from markupsafe import Markup

from forge import graph, manifest, state
from forge.config import Config
from forge.errors import INTEGRITY, ForgeError
from forge.reporting import answers, diagram, drawing, results
from forge.screening import secrets

MOST = 200  # rows of a table of the page
EXAMPLES = 20  # of what was dropped


def gather(configuration: Config) -> dict:
    """What page.html.j2 shows. Raises ForgeError (2) when nothing at all was made yet."""
    layout, project = configuration.layout, configuration.values.project
    listed = state.of_phases(configuration)
    if all(found.record is None for found in listed):
        raise ForgeError(f"{layout.name} has nothing to report yet", f"run make all CONFIG={configuration.path}")
    states = {found.phase.name: found for found in listed}
    verdicts = {found.phase.name: current_verdict(found, layout) for found in listed if found.phase.gate}
    told = {
        "project": project.model_dump(mode="json"),
        "given": given(configuration.path),
        "headline": headline(listed, verdicts),
        "states": {name: {"name": found.name, "note": found.note} for name, found in states.items()},
        "gates": [diagram.gate(states[name], verdict) for name, verdict in verdicts.items()],
        "overrides": {name: told["override"] for name, told in verdicts.items() if told and told.get("override")},
        "results": table(states["modelfile"].record),
        "training": training(states["train"].record, layout),
        "evaluation": evaluation(verdicts["evaluate"], layout),
        "fidelity": fidelity(states, verdicts["verify-gguf"], layout),
        "checks": {
            name: verdict["checks"][:MOST] for name, verdict in verdicts.items() if verdict and verdict["checks"]
        },
        "heldout": heldout(verdicts, layout),
        "data": data(states["dataset"].record, layout),
        "costs": costs(listed),
        "lineage": diagram.diagram(states, verdicts),
        "reproduction": reproduction(states),
    }
    return redacted(told)


def given(path: Path) -> str:
    """What a command of the page must name beside its target."""
    return "" if path == Path("config/training_config.yaml") else f" CONFIG={shlex.quote(str(path))}"


def redacted(value):
    """The same with credentials replaced in every text but the charts."""
    if isinstance(value, dict):
        return {key: redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    if isinstance(value, str) and not isinstance(value, Markup):
        return secrets.redact(value)[0]
    return value


def current_verdict(found: state.State, layout: graph.Layout) -> dict | None:
    """What a gate said about what it let through, or did not; None where it has not judged what is there now."""
    if found.record is None and found.name != state.FAILED:
        return None
    return state.verdict(found.phase, layout)


def headline(listed: list[state.State], verdicts: dict[str, dict | None]) -> dict:
    """`word`, `kind` (good, bad, open) and `told`: PASS only when everything is done, current and not overridden."""
    by_name = {found.name: found for found in reversed(listed)}  # the first of each
    overridden = [name for name, verdict in verdicts.items() if verdict and verdict.get("override")]
    if found := by_name.get(state.FAILED):
        verdict = verdicts[found.phase.name]
        return {"word": verdict["verdict"], "kind": "bad", "told": f"{found.phase.name} did not pass: {cause(verdict)}"}
    if found := by_name.get(state.STALE):
        return {"word": "OUT OF DATE", "kind": "open", "told": f"{found.phase.name} is stale ({found.note})"}
    if found := by_name.get(state.MISSING):
        return {"word": "UNFINISHED", "kind": "open", "told": f"{found.phase.name} has not been done: {found.note}"}
    if overridden:
        told = "; ".join(f"{name} was {verdicts[name]['verdict']}" for name in overridden)
        return {"word": "OVERRIDDEN", "kind": "bad", "told": f"{told}. A person let it pass, for the reason below."}
    told = f"All {len(verdicts)} gates passed, for the files that are there now."
    return {"word": "PASS", "kind": "good", "told": told}


def cause(verdict: dict) -> str:
    if verdict.get("cause"):
        return verdict["cause"]
    failed = [check["name"] for check in verdict["checks"] if check["passed"] is not True]
    return ", ".join(failed) or "no cause is on record"


def table(made: dict | None) -> dict | None:
    if not made or "results" not in made:
        return None
    columns = ["base", "tuned", *(item["quantization"] for item in made["files"])]
    return {"columns": columns, "rows": results.figures(made["results"], columns)}


# -- training, evaluation, fidelity -------------------------------------------------------------------------------


def training(record: dict | None, layout: graph.Layout) -> dict | None:
    if record is None:
        return None
    metrics, stages = rows_of(layout.adapter / "metrics.jsonl"), []
    for stage in record["facts"]["stages"]:
        own = [row for row in metrics if row.get("stage") == stage["name"]]
        stages.append({**stage, "chart": drawing.curves(stage["name"], own, stage.get("kept_step"))})
    return {"stages": stages, "choices": record["facts"].get("choices", {})}


def evaluation(verdict: dict | None, layout: graph.Layout) -> dict | None:
    if verdict is None:
        return None
    items, signals = rows_of(layout.gate("evaluate") / "items.jsonl"), verdict.get("signals", [])
    drawn = [signal for signal in signals if signal["role"] != "diagnostic"]
    charts = [
        drawing.intervals("margins", [signal for signal in drawn if signal["unit"]], "nats a token"),
        drawing.intervals("shares", [signal for signal in drawn if not signal["unit"]], "share, tuned less base"),
    ]
    return {
        **{key: verdict.get(key) for key in ("targets", "detectors")},
        "cause": None if verdict["verdict"] == "PASS" else cause(verdict),
        "signals": signals[:MOST],
        "charts": [chart for chart in charts if chart],
        "families": answers.families(items)[:MOST],
        "asked": answers.asked(items),
    }


def fidelity(states: dict[str, state.State], verdict: dict | None, layout: graph.Layout) -> list[dict] | None:
    """One entry a file. Files that were converted and not compared have no figures."""
    made = states["gguf"].record
    if made is None:
        return None
    measured, said = (verdict or {}).get("fidelity", {}), (verdict or {}).get("answers", {})
    sizes = {item["name"]: item for item in made["subject"]}
    return [
        {
            "quantization": name,
            "file": file["name"],
            "size": sizes[file["name"]]["size"],
            "sha256": sizes[file["name"]]["sha256"],
            "figures": measured.get(name),
            "answers": said.get(name),
        }
        for name, file in made["facts"]["files"].items()
    ]


def heldout(verdicts: dict[str, dict | None], layout: graph.Layout) -> dict | None:
    found = [
        rows_of(layout.gate(name) / "items.jsonl") if verdicts[name] else []
        for name in ("verify-adapter", "verify-gguf")
    ]
    return answers.heldout(*found) if any(found) else None


# -- data, costs, reproduction ------------------------------------------------------------------------------------


def data(record: dict | None, layout: graph.Layout) -> dict | None:
    if record is None:
        return None
    statistics = read(layout.dataset / "statistics.json")
    dropped = rows_of(layout.dataset / "dropped.jsonl", EXAMPLES)
    kept = ("origin", "reason", "characters")  # not the text: it may be why it was dropped
    older = {"sources": [], "dropped_reasons": {}, "redacted": {}, "unreadable": 0}  # versions told less
    return {
        **older,
        **statistics,
        "dropped": [{key: row.get(key) for key in kept} for row in dropped],
        "sources": statistics.get("sources", [])[:MOST],
    }


def costs(listed: list[state.State]) -> dict:
    """A row a phase with the share of the longest time and of the largest memory; the sum and the peak."""
    records = {found.phase.name: found.record or {} for found in listed}
    longest = max((record.get("seconds", 0) for record in records.values()), default=0) or 1
    largest = max((record.get("peak_mb", 0) for record in records.values()), default=0) or 1
    rows = [
        {
            "name": name,
            "started": record.get("started", "")[:16].replace("T", " "),
            "seconds": record.get("seconds"),
            "time": math.ceil(100 * record.get("seconds", 0) / longest),
            "peak_mb": record.get("peak_mb"),
            "memory": math.ceil(100 * record.get("peak_mb", 0) / largest),
            "bytes": sum(item["size"] for item in record.get("subject", [])),
            "state": next(found.name for found in listed if found.phase.name == name),
        }
        for name, record in records.items()
    ]
    return {
        "rows": rows,
        "minutes": sum(record.get("seconds", 0) for record in records.values()) / 60,
        "peak_mb": max((record.get("peak_mb", 0) for record in records.values()), default=0),
    }


def reproduction(states: dict[str, state.State]) -> dict:
    """Commits, versions, digests and settings on record."""
    records = {name: found.record for name, found in states.items() if found.record}
    commits = {name: record["git_commit"] for name, record in records.items() if record.get("git_commit")}
    known = list(dict.fromkeys(commits.values()))
    settings: dict[str, dict] = {}
    for record in records.values():
        for section, values in record.get("settings", {}).items():
            settings.setdefault(section, {}).update(values)
    versions = next((record["versions"] for record in reversed(records.values()) if "versions" in record), {})
    torch = versions.get("torch", "").partition("+")[2]
    return {
        "commit": known[-1].removesuffix("-dirty") if known else None,
        "edited": any(commit.endswith("-dirty") for commit in known),
        "commits": known if len(known) > 1 else [],
        "torch": f" TORCH={torch}" if torch in ("cpu", "cu126", "cu130") else "",
        "versions": versions,
        "digests": {name: manifest.digest(record) for name, record in records.items()},
        "settings": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
    }


# -- reading ------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ForgeError(
            f"{path} cannot be read: {error}", "run make status: it names what is not whole", INTEGRITY
        ) from None


def rows_of(path: Path, most: int | None = None) -> list[dict]:
    """The first rows of a JSONL file, all without `most`; an absent file has none."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8") as handle:
            return [json.loads(line) for line in itertools.islice(handle, most)]
    except ValueError as error:
        raise ForgeError(
            f"{path} cannot be read: {error}", "run make status: it names what is not whole", INTEGRITY
        ) from None
