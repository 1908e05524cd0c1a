"""Tell from the audit trail and the records alone which base, data, code and evaluation made the model.

Reads logs/audit.jsonl and the records of all phases; changes nothing. With --verify it checks the trail instead: every
line has its hash and follows the one before, every head that a record holds is in it, and every file that it says was
made still has its bytes. It ends with 6 when one of these is not so. A line that a crash left unfinished is noted only.
"""

import argparse
from pathlib import Path

from forge import audit, command, config, graph, manifest
from forge.errors import INTEGRITY, ForgeError
from forge.files import sha256_file


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--verify", action="store_true", help="check the trail and the files that it names")
    arguments = parser.parse_args()
    command.guard(lambda: run(arguments), debug=arguments.debug)


def run(arguments: argparse.Namespace) -> None:
    layout = config.load(arguments.config).layout
    entries, notes = audit.entries()
    for note in notes:
        print(f"note {audit.LOG}: {note}")
    records = {row.name: manifest.read(row.record(layout)) for row in graph.PHASES}
    made = {name: content for name, content in records.items() if content}
    (verify if arguments.verify else show)(layout, entries, made)


# -- what made it -------------------------------------------------------------------------------------------


def show(layout: graph.Layout, entries: list[dict], made: dict[str, dict]) -> None:
    if "gguf" not in made:
        raise ForgeError(f"{layout.name} has no GGUF yet", "run make all, then make audit")
    print(f"{layout.name}, by {audit.LOG} ({len(entries)} entries) and the records\n")
    for item in made["gguf"]["subject"]:
        if item["name"].endswith(".gguf"):
            print(f"file       {item['name']}  sha256 {item['sha256']}")
    for title, line in lines(layout, made):
        print(f"{title:10} {line}")
    print()
    for row in graph.PHASES:
        if row.name in made:
            print(f"{row.name:15} {trace(row, layout, entries, made[row.name])}")


def lines(layout: graph.Layout, made: dict[str, dict]) -> list[tuple[str, str]]:
    """Base, data, code and evaluation, in words; what has no record is said to have none."""
    found = []
    base = made.get("model", {}).get("facts")
    if base:
        named = f"{base['base_model_name']} revision {base['revision'] or '-'}"
        found.append(("base", f"{named}  digest {manifest.digest(made['model'])}"))
    data = made.get("dataset", {}).get("facts")
    if data:
        rows = ", ".join(f"{count} {kind}" for kind, count in data["rows"].items())
        found.append(("data", f"{rows}  digest {manifest.digest(made['dataset'])}"))
        found += [("", f"{source['kind']} {source['path']}  {source['sha256']}") for source in data.get("sources", [])]
    trained = made.get("train")
    if trained:
        versions = trained["versions"]
        code = f"model-forge {versions['model-forge']}, commit {trained['git_commit']}, torch {versions.get('torch')}"
        found.append(("code", f"{code}, Python {versions['python']}"))
        found.append(("adapter", f"digest {manifest.digest(trained)}  settings {trained['config'][:16]}"))
    evaluated = made.get("evaluate")
    if evaluated:
        over = f", overridden: {evaluated['override']}" if evaluated.get("override") else ""
        found.append(("evaluation", f"{evaluated['verdict']}{over}  {layout.gate('evaluate')}/verdict.json"))
    return found


def trace(row: graph.Phase, layout: graph.Layout, entries: list[dict], content: dict) -> str:
    """Where the trail tells of the record that is there now."""
    entry = told_of(row.record(layout), entries, content)
    if entry is None:
        return "not in the trail: made before there was one, or the trail is not this checkout's"
    return f"entry {entry['entry']}, {entry['time'][:19]}Z, digest {entry['digest'][:16]}"


def told_of(record: Path, entries: list[dict], content: dict) -> dict | None:
    """The latest entry that says this record was written as it is now."""
    digest = manifest.digest(content)
    told = (item for item in reversed(entries) if item["event"] == "done" and item["record"] == str(record))
    return next((item for item in told if item["digest"] == digest), None)


# -- is it whole --------------------------------------------------------------------------------------------


def verify(layout: graph.Layout, entries: list[dict], made: dict[str, dict]) -> None:
    heads = {entry["entry"]: entry["sha256"] for entry in entries}
    problems = []
    for row in graph.PHASES:
        if row.name in made:
            problems += list(wrong(row, row.record(layout), entries, heads, made[row.name]))
    for problem in problems[1:]:
        print(f"FAIL {problem}")
    if problems:
        raise ForgeError(
            f"{problems[0]}" + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""),
            "restore the file or the log from a backup, or make it again and say why in a commit",
            INTEGRITY,
        )
    last = entries[-1] if entries else {"entry": 0, "sha256": audit.GENESIS}
    print(f"ok   {audit.LOG}: {len(entries)} entries, head {last['entry']} {last['sha256']}")


def wrong(row: graph.Phase, record: Path, entries: list[dict], heads: dict[int, str], content: dict):
    """What does not agree about one phase's record and files, in words."""
    head = content.get("audit")
    if head and heads.get(head["entry"]) != head["sha256"]:
        yield f"{record} was written at entry {head['entry']} of the audit trail, which {audit.LOG} does not hold"
        return
    entry = told_of(record, entries, content)
    if entry is None:
        if head or any(item["event"] == "done" and item["record"] == str(record) for item in entries):
            yield f"{record} is not as {audit.LOG} says it was written"
        return
    for item in entry["subject"]:
        path = record.parent / item["name"]
        if not path.is_file():
            print(f"note {path} is gone")
        elif path.stat().st_size != item["size"] or sha256_file(path) != item["sha256"]:
            yield f"{path} has other bytes than when {row.name} made it (entry {entry['entry']})"


if __name__ == "__main__":
    main()
