"""Show what is done, what is stale and why, what failed or is missing.

Reads the config and the records of all phases; changes nothing. Judged by content, not by time: a phase is
`done` when config values, inputs and files are the recorded ones.
"""

import datetime
from pathlib import Path

from forge import command, config, disk, files, graph, state
from forge.training import checkpoints


def main() -> None:
    arguments = command.parser(__doc__).parse_args()
    command.guard(lambda: show(config.load(arguments.config)), debug=arguments.debug)


def show(configuration: config.Config) -> None:
    layout = configuration.layout
    print(f"{layout.name} ({configuration.path})\n")
    print(f"{'phase':15} {'state':8} {'size':>9} {'when':17} {'took':>7}  where, or why")
    for found in state.of_phases(configuration):
        told = found.phase.name, found.name, size(found.record), when(found, layout), took(found.record), found.note
        print("{:15} {:8} {:>9} {:17} {:>7}  {}".format(*told))
    if saved := unfinished(layout.checkpoints):
        print(f"\n{saved}")


def unfinished(folder: Path) -> str | None:
    """What a training that has not ended saved: `make redo` that was stopped leaves it beside the adapter of before."""
    try:
        last, held = checkpoints.newest(folder), disk.size_of(folder)
    except FileNotFoundError:  # it trains just now: older checkpoints are removed meanwhile
        return None
    if last is None:
        return None
    return (
        f"a training that has not ended: {last.relative_to(folder)}, "
        f"{files.size_text(held)} in {folder}\n"
        "  with the settings that it began with, make train goes on from there (make redo PHASE=train if it is done)"
    )


def size(record: dict | None) -> str:
    """Of all files on record."""
    return files.size_text(sum(item["size"] for item in record["subject"])) if record else ""


def when(found: state.State, layout: graph.Layout) -> str:
    """When it was made. The model's manifest holds no time (same model, same bytes): there its file's own tells it."""
    if not found.record:
        return ""
    if "started" in found.record:
        moment = datetime.datetime.fromisoformat(found.record["started"])
    else:
        made = [found.phase.folder(layout) / item["name"] for item in found.record["subject"]]
        times = [path.stat().st_mtime for path in made if path.is_file()]
        if not times:
            return ""
        moment = datetime.datetime.fromtimestamp(max(times), datetime.UTC)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def took(record: dict | None) -> str:
    return f"{record['seconds']:.0f} s" if record and "seconds" in record else ""


if __name__ == "__main__":
    main()
