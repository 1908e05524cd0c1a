"""Make the tables of docs/faults.md from the log of a run: python tests/faults/table.py build/faults.jsonl

Prints them; with --write they take the place of those in docs/faults.md.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

BEGIN, END = "<!-- faults: begin -->\n", "<!-- faults: end -->"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs/faults.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/faults.md")
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.log.read_text(encoding="utf-8").splitlines()]
    text = tables(lines)
    print(text, end="")
    if arguments.write:
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        DOCUMENT.write_text(before + BEGIN + text + END + rest.partition(END)[2], encoding="utf-8")


def tables(lines: list[dict]) -> str:
    """By kind of fault and by phase: how many were done, how many did harm, how long it took to go on."""
    faults = [line for line in lines if "fault" in line]
    ends = {line["harmless"]: line for line in lines if "harmless" in line}
    return "\n".join([*table("fault", "kind", faults, ends), "", *table("phase or use", "phase", faults, ends), ""])


def table(head: str, key: str, faults: list[dict], ends: dict[str, dict]) -> list[str]:
    groups = defaultdict(list)
    for fault in faults:
        groups[fault[key]].append(fault)
    rows = [f"| {head} | done | did harm | seconds to recover: median | worst |", "|---|---|---|---|---|"]
    for name, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        rows.append(row(name, group, ends))
    return [*rows, row("**all**", faults, ends)]


def row(name: str, faults: list[dict], ends: dict[str, dict]) -> str:
    harmful = sum(fault["fault"] not in ends for fault in faults)
    seconds = [ends[f["fault"]]["seconds"] for f in faults if f["fault"] in ends and ends[f["fault"]]["seconds"]]
    middle, worst = (f"{statistics.median(seconds):.0f}", f"{max(seconds):.0f}") if seconds else ("-", "-")
    return f"| {name} | {len(faults)} | {harmful} | {middle} | {worst} |"


if __name__ == "__main__":
    main()
