"""The end of `make all`: what was made, how good it is beside its base, how long it took, what comes next.

Reads the records of the phases; measures nothing itself.
"""

import os
from pathlib import Path

from forge import command, config, graph, manifest
from forge.errors import ForgeError
from forge.reporting.results import figures


def main() -> None:
    arguments = command.parser(__doc__).parse_args()
    command.guard(lambda: show(config.load(arguments.config)), debug=arguments.debug)


def show(configuration: config.Config) -> None:
    layout = configuration.layout
    records = {row.name: manifest.read(row.record(layout)) or {} for row in graph.PHASES}
    made = records["modelfile"]
    if not made:
        raise ForgeError(f"{layout.name} is not made yet", f"run make all CONFIG={configuration.path}")
    print(f"\n{layout.name}")
    for item in made["files"]:
        print(f"  {layout.gguf_folder / item['name']}  {item['size'] / 1e6:.1f} MB")
    print(f"  trained on {made['data']['rows']['train']} rows; gates: {_gates(made)}")
    for gate, reason in made["overrides"].items():
        print(f"  OVERRIDDEN: {gate} was {made['verdicts'][gate]}; the reason given: {reason}")
    for found in made.get("evaluation") or []:
        if found["interval"]:
            low, high = found["interval"]
            print(
                f"  {found['name']} {found['value']:.3g} {found['unit']}, 90% interval {low:.3g} to {high:.3g} "
                f"(n={found['n']}), limit {found['limit']:g}"
            )
    print()
    columns = ["base", "tuned", *(item["quantization"] for item in made["files"])]
    if "results" in made:
        table(["", *columns], figures(made["results"], columns))
    else:
        print(
            "  made by an older version, without these figures: make redo PHASE=verify-adapter, then PHASE=verify-gguf"
        )
    seconds = sum(record.get("seconds", 0) for record in records.values())
    peak = max(record.get("peak_mb", 0) for record in records.values())
    slowest = max(records, key=lambda name: records[name].get("seconds", 0))
    print(
        f"\n  {seconds / 60:.1f} minutes of work in all phases ({slowest} {records[slowest]['seconds'] / 60:.1f}), "
        f"{peak / 1000:.1f} GB of memory at most"
    )
    given = "" if configuration.path == Path("config/training_config.yaml") else f" CONFIG={configuration.path}"
    given += f" VENV={os.environ['VENV']}" if os.environ.get("VENV", ".venv") != ".venv" else ""
    print(f'next: make ask PROMPT="..."{given}    ollama create {_name(configuration)} -f Modelfile')
    print(f"      make chat{given}    make report{given}    make status{given}")


def table(header: list[str], body: list[list[str]]) -> None:
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]
    for first, *others in [header, *body]:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        print("  " + "   ".join(cells).rstrip())


def _gates(made: dict) -> str:
    return ", ".join(f"{name} {verdict}" for name, verdict in made["verdicts"].items())


def _name(configuration: config.Config) -> str:
    return configuration.values.ollama.model_name or configuration.layout.name.lower()


if __name__ == "__main__":
    main()
