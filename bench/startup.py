"""How soon an answer is there when there is nothing to compute: `make help`, a `make all` with nothing to do, and
the refusal of a misspelled config key.

The reference is bench/reference_startup.py, a script in the usual form, which imports torch, transformers, peft,
trl and datasets before it looks at its arguments, config or files. Both do the same job three times over. The
project in which nothing is to do is made in a temporary folder: the starter's config and documents, with
tests/standin_phase.py in place of the phases, because make's decision and `make status` read stamps, records and
the sizes of files alone. Before several measurements, one of each is made that does not count.

The JSON line's ours and reference are the no-op's seconds, its peak_mb is ours there; `rows` has all three.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
from forge import command, config, graph, manifest
from forge.errors import ForgeError

REFERENCE = [sys.executable, str(harness.ROOT / "bench/reference_startup.py")]
MAKE = ["make", "VENV=venv"]
STARTER, MISSPELLED = Path("config/training_config.yaml"), Path("config/misspelled.yaml")


def main() -> None:
    arguments = harness.parser(__doc__, repeat=5).parse_args()
    command.guard(lambda: compare(arguments.repeat), arguments.debug)


def compare(repeat: int) -> None:
    with tempfile.TemporaryDirectory(prefix="model-forge-bench-") as folder:
        root = finished_project(Path(folder) / "project")
        rows = [
            measured(root, repeat, "help", ["help"], ["--help"], {"says": "config"}),
            measured(root, repeat, "no-op", ["all"], [], {}),
            measured(root, repeat, "config error", ["all", f"CONFIG={MISSPELLED}"], ["--config", str(MISSPELLED)],
                     {"fails": True, "says": "learnig_rate"}),
        ]  # fmt: skip
    harness.report("startup", rows, headline=rows[1])


def measured(root: Path, repeat: int, name: str, ours: list[str], reference: list[str], wanted: dict) -> dict:
    sides = [
        lambda: harness.measure([*MAKE, *ours], root, name, **wanted),
        lambda: harness.measure([*REFERENCE, *reference], root, name, **wanted),
    ]
    if repeat > 1:
        harness.alternate(sides, 1)  # uncounted: both find their files in memory
    rounds = harness.alternate(sides, repeat)
    print(f"{name}: measured {repeat} times", flush=True)
    return harness.row(name, *([figures for parts in side for figures in parts] for side in rounds))


def finished_project(root: Path) -> Path:
    """A checkout in which every phase is done, by stand-ins."""
    harness.clone(root)
    for row in graph.PHASES:
        shutil.copy(harness.ROOT / "tests/standin_phase.py", root / "scripts" / row.script)
    harness.measure([*MAKE, "modelfile"], root, "stand-ins")
    text = (root / STARTER).read_text(encoding="utf-8")
    (root / MISSPELLED).write_text(text.replace("learning_rate:", "learnig_rate:"), encoding="utf-8")
    # `make all` ends with a summary of the model's manifest: it gets the starter's.
    record = graph.BY_NAME["modelfile"].record(config.load(root / STARTER).layout)
    made = json.loads((harness.ROOT / "gguf_model_manifest.json").read_text(encoding="utf-8"))
    manifest.write(root / record, {**made, **json.loads((root / record).read_text(encoding="utf-8"))})
    harness.measure([*MAKE, "all"], root, "summary", says="make ask")
    planned = subprocess.run([*MAKE, "-n", "all"], cwd=root, capture_output=True, text=True, check=False).stdout
    if any(row.script in planned for row in graph.PHASES):
        raise ForgeError("the project that was made for the no-op is not finished", "run make test")
    return root


if __name__ == "__main__":
    main()
