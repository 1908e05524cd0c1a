"""Read the config for make: names, stamps, sources.

make includes what this writes, so it runs before any rule and also under `make -n`:

    build/<config>.mk              the names and paths of this config's outputs
    build/<name>/<phase>.json      the config values that a phase reads (its stamp)
    build/<name>/sources.json      one digest of all documents

make decides by time. So each stamp's time is set to what is true by content: older than the phase's output
when that was made with exactly these values and its files are whole, newer when not. Editing a value and
taking the edit back reruns nothing.

With --goals it also says, before any work starts, which phases the goals need that their names do not promise.
"""

import json
import os
import sys
import time
from pathlib import Path

from forge import command, config, graph, manifest, phase, sources
from forge.files import write_if_changed

USERS = ("ask", "chat", "serve", "deploy")  # goals that need the finished model


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--makefile", type=Path, required=True, help="the file that make includes")
    parser.add_argument("--goals", default="", help="make's goals, to announce surprising work")
    arguments = parser.parse_args()
    command.guard(lambda: sync(arguments), debug=arguments.debug)


def sync(arguments) -> None:
    configuration = config.load(arguments.config)
    layout = configuration.layout
    phase.tidy(configuration)
    stale = {}
    for row in graph.PHASES:
        outside = sources.outside(row.name, configuration)
        reason = manifest.why_stale(row, configuration, outside)
        if reason:
            stale[row.name] = reason
        write_stamps(row, configuration, outside)
    write_if_changed(arguments.makefile, makefile(configuration))
    for goal in arguments.goals.split():
        announce(goal, stale, layout)


def write_stamps(row: graph.Phase, configuration: config.Config, outside: str | None) -> None:
    """The phase's stamp, and for the dataset that of its documents."""
    layout = configuration.layout
    record = row.record(layout)
    content = manifest.read(record)
    if content is not None and record.stat().st_mtime > time.time():
        manifest.refresh(record)  # made under a wrong clock: make would hold it for newer than all that follows
    whole = content is not None and manifest.broken(record, content) is None
    same = whole and (outside is None or {"name": "sources", "sha256": outside} in content["inputs"])
    stamp = layout.stamp(row.name)
    write_if_changed(stamp, json.dumps(configuration.view(row.name), indent=1, sort_keys=True) + "\n")
    align(stamp, record, whole and content.get("config") == configuration.digest(row.name))
    if outside is not None:
        stamp = layout.stamp(f"{row.name}.sources")
        write_if_changed(stamp, json.dumps({"sha256": outside}) + "\n")
        align(stamp, record, same)


def align(stamp: Path, record: Path, current: bool) -> None:
    """Make the stamp older than the record when the record is current, newer when it is not."""
    if not record.exists():
        return
    made = record.stat().st_mtime
    stamped = stamp.stat().st_mtime
    if current and stamped >= made:
        os.utime(stamp, (made - 1, made - 1))
    elif not current and stamped <= made:
        later = max(time.time(), made + 1)
        os.utime(stamp, (later, later))


def makefile(configuration: config.Config) -> str:
    layout = configuration.layout
    names = {"NAME": layout.name, "BUILD": layout.build}
    for row in graph.PHASES:
        names[row.name.upper().replace("-", "_")] = row.record(layout)
    names["OLLAMA_FILE"] = layout.gguf_folder / f"{layout.name}.Modelfile"
    for value in names.values():
        if any(character in str(value) for character in "$#:%\\") or " " in str(value):
            raise config.ForgeError(
                f"make cannot handle the path {value}",
                "name the base model's folder without spaces, $, #, : and %",
            )
    return "".join(f"{name} := {value}\n" for name, value in names.items())


def announce(goal: str, stale: dict[str, str], layout: graph.Layout) -> None:
    """Say in one line which phases a goal will start that its name does not promise, why, and how long."""
    if goal not in (*graph.BY_NAME, *USERS):
        return
    notes: list[str] = []
    for row in graph.upstream("modelfile" if goal in USERS else goal):
        # one stale phase makes all after it run
        reason = stale.get(row.name) or (f"after {notes[0].split()[0]}" if notes else None)
        if reason is not None and row.name != goal:
            content = manifest.read(row.record(layout))
            took = f", {content['seconds']:.0f} s last time" if content and "seconds" in content else ""
            notes.append(f"{row.name} ({reason}{took})")
    if notes:
        print(f"{goal} needs first: {'; '.join(notes)}", file=sys.stderr)


if __name__ == "__main__":
    main()
