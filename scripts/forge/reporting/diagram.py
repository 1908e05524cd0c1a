"""The lineage as a diagram: what was made from what, with its digest, and the gates between."""

from forge import manifest
from forge.llamacpp.ggufmeta import public_name
from forge.state import DELETED, FAILED, MISSING, STALE, State

WIDE, HIGH, GAP, LANE = 360, 62, 56, 34  # units of the SVG: its width, a box, the room between two, the base's lane
LETTERS = 52  # of a line in a box
# Boxes from top to bottom, each with the phase that makes it, and the gates that stand between it and the next.
CHAIN = (
    ("dataset", "Dataset", ("validate",)),
    ("train", "Adapter", ("verify-adapter", "evaluate")),
    ("merge", "Merged model", ("verify-merged",)),
    ("gguf", "GGUF", ("verify-gguf",)),
    ("modelfile", "Modelfile and manifest", ()),
)


def diagram(states: dict[str, State], verdicts: dict[str, dict | None]) -> dict:
    """`height`, `boxes` (x, y, width, title, lines, kind) and `gates` (y, lines of name, word, kind)."""
    model, dataset = states["model"], states["dataset"]
    sources = (dataset.record or {}).get("facts", {}).get("sources", [])
    named = [f"{len(sources)} sources" if len(sources) > 1 else "1 source"] if sources else ["not read yet"]
    digest = [dataset.record["facts"]["sources_sha256"][:16]] if sources else []
    half = (WIDE - 12) // 2
    boxes = [
        box(0, 0, half, "Base model", lines_of(model), kind(model)),
        box(WIDE - half, 0, half, "Documents, scenarios", named + digest, kind(dataset) if not sources else ""),
    ]
    gates = []
    for place, (phase, title, between) in enumerate(CHAIN, 1):
        y = place * (HIGH + GAP)
        boxes.append(box(LANE, y, WIDE - LANE, title, lines_of(states[phase]), kind(states[phase])))
        gates.append({"y": y + HIGH, "told": [gate(states[name], verdicts[name]) for name in between]})
    return {
        "width": WIDE,
        "height": (len(CHAIN) + 1) * (HIGH + GAP) - GAP,
        "high": HIGH,
        "gap": GAP,
        "lane": LANE,
        "boxes": boxes,
        "gates": gates,
    }


def box(x: int, y: int, width: int, title: str, lines: list[str], kind: str) -> dict:
    letters = LETTERS * width // WIDE
    shown = [line if len(line) <= letters else f"{line[: letters - 3]}..." for line in lines]
    return {"x": x, "y": y, "width": width, "title": title, "lines": shown, "kind": kind}


def kind(state: State) -> str:
    return {MISSING: "missing", FAILED: "missing", STALE: "stale"}.get(state.name, "")


def lines_of(state: State) -> list[str]:
    """What it is, and its digest."""
    if state.name == DELETED:
        return ["deleted after the GGUF was made from it"]
    if state.record is None:
        return ["not made yet"]
    return [described(state), manifest.digest(state.record)[:16] + (" (out of date)" if state.name == STALE else "")]


def described(state: State) -> str:
    record, facts = state.record, state.record.get("facts", {})
    if state.phase.name == "model":
        return public_name(facts["base_model_name"]).rsplit("/", 1)[-1]
    if state.phase.name == "dataset":
        return f"{facts['rows']['train']} rows to train"
    if state.phase.name == "train":
        return ", ".join(f"{stage['name']} {stage['steps']} steps" for stage in facts["stages"])
    if state.phase.name == "merge":
        return f"{facts['dtype']}, {facts['way']}" if "way" in facts else facts["dtype"]
    if state.phase.name == "gguf":
        return ", ".join(facts["files"])
    return ", ".join(item["name"] for item in record["subject"])


def gate(state: State, verdict: dict | None) -> dict:
    """Name, word and colour of a gate. It is PASS only where it passed for what is there now."""
    if verdict is None:
        return {"name": state.phase.name, "word": "not done", "kind": "open"}
    if verdict.get("override"):
        return {"name": state.phase.name, "word": f"{verdict['verdict']}, overridden", "kind": "bad"}
    if verdict["verdict"] != "PASS":
        return {"name": state.phase.name, "word": verdict["verdict"], "kind": "bad"}
    if not state.settled:
        return {"name": state.phase.name, "word": f"{state.name}, was PASS", "kind": "open"}
    return {"name": state.phase.name, "word": "PASS", "kind": "good"}
