"""The gate's checks of a file's tensors against the merged weights, from what the worker measured."""

import tempfile
from collections import Counter
from pathlib import Path

from forge.graph import Layout
from forge.llamacpp import converter
from forge.progress import Told, untold
from forge.quantizing import process
from forge.quantizing.process import Unsupported

LEAST_KEPT = 0.5  # of what the adapter changed: between all of it (1) and the base's own weights (0)


def measured(layout: Layout, facts: dict, paths: list[Path], told: Told = untold) -> dict[Path, list[dict]] | str:
    """For each file what tensors.compare says of it; a text that says why where it cannot be compared.

    `facts`: the merge's.
    """
    with tempfile.TemporaryDirectory(prefix="model-forge-") as folder:
        model = {
            "folder": converter.for_converter(layout.merged, Path(folder) / "source").resolve(),
            "name": layout.name,
            "outtype": converter.OUTTYPES[facts["dtype"]],
        }
        try:
            found = process.compare(
                process.weights_of(layout, facts), process.base_of(layout, facts), model, paths, told
            )
        except Unsupported as reason:
            return str(reason)
    return {Path(path): rows for path, rows in found.items()}


def checks(rows: list[dict]) -> list[dict]:
    """Two checks of a gate: each tensor's error is within its type's bound; what was trained is in the file."""
    bounded = [row for row in rows if row["limit"] is not None]
    beyond = [row for row in bounded if not row["error"] <= row["limit"]]
    changed = [row for row in rows if row["change"] > 0]
    return [
        {
            "name": "tensors further from the merged weights than their type allows",
            "value": f"{len(beyond)} ({beyond[0]['name']})" if beyond else 0,
            "limit": "0",
            "n": len(bounded),
            "passed": bool(bounded) and not beyond,
        },
        {
            "name": "share of what training changed in the weights that is in the file",
            "value": kept(changed),
            "limit": f">= {LEAST_KEPT}",
            "n": len(changed),
            "passed": bool(changed) and kept(changed) >= LEAST_KEPT,
        },
    ]


def kept(changed: list[dict]) -> float:
    change = sum(row["change"] for row in changed)
    return sum(row["there"] for row in changed) / change if change else float("nan")


def figures(rows: list[dict]) -> dict:
    """For the record: tensors of each type with the largest error, and those for whose type no bound is known."""
    types = Counter(row["type"] for row in rows)
    changed = [row for row in rows if row["change"] > 0]
    return {
        "tensors": {
            name: {"n": count, "largest_error": round(max(row["error"] for row in rows if row["type"] == name), 6)}
            for name, count in sorted(types.items())
        },
        "unbounded": sorted({row["type"] for row in rows if row["limit"] is None}),
        "training_kept": round(kept(changed), 4) if changed else None,
    }
