"""What a training set consists of: statistics.json, and the README.md that says it to a reader."""

from collections import Counter

ALWAYS = ("train", "validation", "questions")  # told even where there are none


def statistics(package, found) -> dict:
    """Counts of a finished `package.Package`; `found` is what the sources named."""
    counts, lengths = package.counts, package.lengths.tolist()
    characters = counts["characters"]
    result = {
        "files": counts["files"],
        "rows": {
            **{name: count for name, count in package.rows.items() if count or name in ALWAYS},
            "dropped": package.dropped.count,
        },
        "characters": characters,
        "dropped_share": round(min(1.0, counts["lost"] / characters), 6) if characters else 0.0,
        "dropped_reasons": dict(sorted(package.dropped.reasons.items())),
        "tokens": {
            "total": sum(lengths),
            "median": lengths[len(lengths) // 2] if lengths else 0,
            "p95": lengths[int(len(lengths) * 0.95)] if lengths else 0,
            "longest": lengths[-1] if lengths else 0,
            "budget": package.data["max_tokens"],
        },
        "redacted": _named(counts, "redacted "),
        "control_tokens": counts["control tokens"],
        "unreadable": counts["unreadable"],
        "near_duplicates": dict(zip(("rows", "units"), package.near, strict=True)),
    }
    if package.safety:
        result["safety"] = package.safety
    if found.scenarios:
        result["scenarios"] = {
            "read": counts["scenarios"],
            "targets": _named(counts, "target "),
            "files": found.scenario_facts,
        }
    if counts["records"]:
        result["records"] = {"read": counts["records"], "formats": _named(counts, "format ")}
    return result


def _named(counts: Counter, prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): n for name, n in sorted(counts.items()) if name.startswith(prefix)}


def noticed(figures: dict) -> list[str]:
    """Lines for the screen: what was done to the text, where anything was."""
    found = []
    if figures["redacted"]:
        listed = ", ".join(f"{rule} {count}" for rule, count in figures["redacted"].items())
        found.append(f"redacted: {listed}")
    if figures["control_tokens"]:
        found.append(f"control tokens of the model that are now plain text: {figures['control_tokens']}")
    if figures["unreadable"]:
        found.append(f"unreadable files and records: {figures['unreadable']}, listed in dropped.jsonl")
    if figures["near_duplicates"]["rows"]:
        rows, units = figures["near_duplicates"]["rows"], figures["near_duplicates"]["units"]
        found.append(f"near-duplicates: {rows} rows of {units} sections or conversations, kept on one side of a split")
    if "safety" in figures:
        found += mixed(figures["safety"], figures["rows"]["train"])
    return found


def mixed(told: dict, train: int) -> list[str]:
    """Lines about the rows that were mixed in against a loss of safety."""
    listed = ", ".join(f"{kind} {count}" for kind, count in told["kinds"].items())
    found = [f"safety: {told['rows']} of {train} training rows ({listed})"] if told["rows"] else []
    if told["rows"] < told["wanted"]:
        found.append(
            f"safety: data.safety_share {told['share']:g} asks for {told['wanted']} rows, "
            f"there are {told['available']}, and all are taken"
        )
    return found


def card(run, figures: dict) -> str:
    rows = "\n".join(f"| {name} | {count} |" for name, count in figures["rows"].items())
    said = [f"{figures['files']} documents"] if figures["files"] else []
    told = ""
    if "scenarios" in figures:
        found = figures["scenarios"]
        said.append(f"{found['read']} scenarios")
        targets = ", ".join(f"{target} ({count})" for target, count in found["targets"].items())
        told = (
            f"Targets: {targets}. Scenarios with a good `expected_behavior` are training rows; those without an answer "
            "are in `evaluation.jsonl`. A rating of scenario-forge judges the scenario and labels nothing.\n\n"
        )
    if "records" in figures:
        formats = ", ".join(f"{name} ({count})" for name, count in figures["records"]["formats"].items())
        said.append(f"{figures['records']['read']} records")
        told += f"Formats of the records: {formats}.\n\n"
    sources = "\n".join(
        f"| `{item['path']}` | {item['kind']} | {item['files']} | `{item['sha256'][:16]}` |"
        for item in figures["sources"]
    )
    noted = "".join(f"- {line}\n" for line in noticed(figures))
    return (
        f"# Training set of {run.layout.name}\n\n"
        f"Made from {' and '.join(said) or 'nothing'}; sources' digest `{run.sources}`.\n\n"
        f"| source | kind | files | digest |\n|---|---|---|---|\n{sources}\n\n"
        f"{told}"
        f"| file | rows |\n|---|---|\n{rows}\n\n"
        f"Tokens a row: median {figures['tokens']['median']}, longest {figures['tokens']['longest']} "
        f"of {figures['tokens']['budget']}.\n" + (f"\n{noted}" if noted else "")
    )
