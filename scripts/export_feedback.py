"""Tell scenario-forge what failed: ~/.scenario-forge/feedback/model_forge/<model>.json.

Reads the last evaluation (evaluation/<name>/evaluate/, whatever its verdict) and the records of the dataset and the
training. Writes one file, whole or not at all, for every evaluated model another; docs/feedback.schema.json has its
form. Nothing is sent anywhere.
"""

import datetime
import json
from pathlib import Path

from forge import command, config, files, graph, manifest
from forge.errors import ForgeError
from forge.evaluating import feedback


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--folder", type=Path, default=feedback.FOLDER, help="where to write (default: %(default)s)")
    arguments = parser.parse_args()
    command.guard(lambda: export(config.load(arguments.config), arguments.folder), debug=arguments.debug)


def export(configuration: config.Config, folder: Path) -> None:
    layout = configuration.layout
    judged = layout.gate("evaluate")
    verdict_file, trained = judged / "verdict.json", manifest.read(graph.BY_NAME["train"].record(layout))
    if not verdict_file.is_file() or trained is None:
        raise ForgeError(f"{layout.name} was not evaluated yet", f"run make evaluate CONFIG={configuration.path}")
    verdict = json.loads(verdict_file.read_text(encoding="utf-8"))
    if {"name": "train", "sha256": manifest.digest(trained)} not in verdict["bound_to"]:
        raise ForgeError(
            f"{verdict_file} is about another adapter than is there now",
            f"run make evaluate CONFIG={configuration.path}",
        )
    model_id = f"{layout.name}-{manifest.digest(trained)[:12]}"
    items = files.read_jsonl(judged / "items.jsonl")
    content = filled(model_id, verdict, items, manifest.read(graph.BY_NAME["dataset"].record(layout)) or {})
    path = folder.expanduser() / feedback.name_of(model_id)
    files.write_json(path, content.model_dump(mode="json"))
    print(f"wrote {path}: {len(content.failed_scenarios)} failures, {len(content.discovered_patterns)} patterns")


def filled(model_id: str, verdict: dict, items: list[dict], dataset: dict) -> feedback.Feedback:
    scenarios = (dataset.get("facts") or {}).get("scenarios") or {}
    read = scenarios.get("files", [])
    wanted = ("role", "value", "interval", "n", "unit", "verdict")
    return feedback.Feedback(
        model_id=model_id,
        timestamp=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        verdict=verdict["verdict"],
        override=verdict.get("override"),
        metrics={signal["name"]: {key: signal[key] for key in wanted} for signal in verdict["signals"]},
        failed_scenarios=feedback.failures(items),
        discovered_patterns=feedback.patterns(items),
        scenario_forge_version=next(
            (item["scenario_forge_version"] for item in read if item.get("scenario_forge_version")), None
        ),
        databases=[{key: item[key] for key in ("path", "sha256") if key in item} for item in read],
    )


if __name__ == "__main__":
    main()
