"""Show what is done, what is stale and why, what is missing.

Reads the config and the records of all phases; changes nothing. Judged by content, not by time: a phase is
`done` when config values, inputs and files are the recorded ones.
"""

import datetime

from forge import config, graph, manifest, phase, sources


def main() -> None:
    arguments = phase.parser(__doc__).parse_args()
    phase.guard(lambda: show(config.load(arguments.config)), debug=arguments.debug)


def show(configuration: config.Config) -> None:
    layout = configuration.layout
    print(f"{layout.name} ({configuration.path})\n")
    print(f"{'phase':15} {'state':8} {'size':>9} {'when':17} {'took':>7}  where, or why")
    before = None
    for row in graph.PHASES:
        state, note, content = judge(row, configuration, before)
        if state not in ("done", "deleted"):
            before = before or row.name
        print(f"{row.name:15} {state:8} {size(content):>9} {when(content):17} {took(content):>7}  {note}")


def judge(row: graph.Phase, configuration: config.Config, before: str | None):
    record = row.record(configuration.layout)
    content = manifest.read(record)
    reason = manifest.why_stale(row, configuration, sources.outside(row.name, configuration))
    if content is None and row.name == "merge" and before is None and _later_current(configuration):
        return "deleted", "not needed: the GGUF was made from it", None
    if content is None:
        return "missing", f"make {row.name}", None
    if reason is None and before:
        return "waits", f"for {before}", content
    return ("stale", reason, content) if reason else ("done", str(record), content)


def _later_current(configuration: config.Config) -> bool:
    return manifest.why_stale(graph.BY_NAME["gguf"], configuration, None) is None


def size(content: dict | None) -> str:
    return f"{sum(item['size'] for item in content['subject']) / 1e6:.1f} MB" if content else ""


def when(content: dict | None) -> str:
    if not content or "started" not in content:
        return ""
    return datetime.datetime.fromisoformat(content["started"]).astimezone().strftime("%Y-%m-%d %H:%M")


def took(content: dict | None) -> str:
    return f"{content['seconds']:.0f} s" if content and "seconds" in content else ""


if __name__ == "__main__":
    main()
