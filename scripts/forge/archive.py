"""Adapters that a new training replaced: models/archive/<name>-adapter-<digest>/, with the verdict each had."""

import json
import shutil
from pathlib import Path

from forge import files, graph, manifest

RECORD = "manifest.json"
VERDICT = "verdict.json"


def keeper(layout: graph.Layout) -> files.Archive:
    """Where a replaced adapter is kept: training is hours, everything else can be had again."""

    def place(old: Path) -> Path | None:
        content = manifest.read(old / RECORD)
        if content is None:
            return None
        judged = layout.gate("verify-adapter") / VERDICT
        if _judges(judged, content):
            shutil.copyfile(judged, old / VERDICT)
        return layout.archive / f"{layout.name}-adapter-{manifest.digest(content)[:12]}"

    return place


def kept(layout: graph.Layout) -> list[Path]:
    return sorted(layout.archive.glob(f"{layout.name}-adapter-*"))


def verdict(layout: graph.Layout, folder: Path) -> str:
    """PASS or FAIL of verify-adapter for the adapter of a folder; NOT_RUN where it judged another or none."""
    content = manifest.read(folder / RECORD)
    for path in (folder / VERDICT, layout.gate("verify-adapter") / VERDICT):
        if content is not None and _judges(path, content):
            return json.loads(path.read_text(encoding="utf-8"))["verdict"]
    return "NOT_RUN"


def _judges(path: Path, content: dict) -> bool:
    """Whether a verdict is bound to the adapter with this record."""
    try:
        bound = json.loads(path.read_text(encoding="utf-8"))["bound_to"]
        return {"name": "train", "sha256": manifest.digest(content)} in bound
    except (OSError, ValueError, KeyError, TypeError):
        return False
