"""The whole chain, phase by phase: seconds, peak memory and bytes written, ours beside the reference.

Ours is `make <phase>` for each phase of the config in a fresh copy of this checkout, with this environment: make,
the config's check, hashing and records are in the figures. The reference is bench/reference_all.py, one plain script
with the same base, rows, settings and libraries, but only the supervised stage of training; its imports count to its
first stage. Rows, gates and Modelfile have no reference: "-". Both write into a temporary folder, where the starter
needs 4 GB.

The JSON line's ours and reference are the seconds of the phases that both have, its peak_mb is ours in these.
`rows` has every phase and the total of ours. One measurement takes as long as two times `make all`.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import dotenv
import harness
import yaml
from forge import command, config, graph
from forge.llamacpp import llama
from harness import Figures

PHASES = [row.name for row in graph.PHASES]
BOTH, ALL = "total of both", "total of ours"


def main() -> None:
    parser = harness.parser(__doc__, repeat=1)
    parser.add_argument("--config", default="config/training_config.yaml", help="the config file")
    parser.add_argument("--epochs", type=harness.positive, help="training.num_train_epochs for both sides")
    arguments = parser.parse_args()
    command.guard(lambda: compare(arguments), arguments.debug)


def compare(arguments) -> None:
    values = harness.resolved(config.load(arguments.config))
    if arguments.epochs:
        values["training"]["num_train_epochs"] = arguments.epochs
    dotenv.load_dotenv(".env")  # a gated base's token reaches both sides, as in this checkout
    os.environ.setdefault("LLAMA_CPP", str(llama.source().absolute()))
    with tempfile.TemporaryDirectory(prefix="model-forge-bench-") as name:
        folder = Path(name)
        sides = [lambda: ours(values, folder / "ours"), lambda: reference(values, folder)]
        found = harness.alternate(sides, arguments.repeat)
    shared = {figures.name for parts in found[1] for figures in parts}
    for parts in found[0]:
        parts.append(harness.total(ALL, parts))
    for side in found:
        for parts in side:
            parts.append(harness.total(BOTH, [figures for figures in parts if figures.name in shared]))
    rows = [
        harness.row(name, *([figures for parts in side for figures in parts if figures.name == name] for side in found))
        for name in [*PHASES, BOTH, ALL]
    ]
    harness.report("all", rows, headline=next(row for row in rows if row["name"] == BOTH))


def ours(values: dict, root: Path) -> list[Figures]:
    harness.clone(root)
    make = ["make", "VENV=venv", f"CONFIG={harness.write_config(root, 'bench', values)}"]
    return [part for name in PHASES for part in shown(harness.measure([*make, name], root, name), "ours")]


def reference(values: dict, folder: Path) -> list[Figures]:
    """The plain script on the rows that ours has just made; what ours found out by itself is written out for it."""
    out, root = folder / "reference", folder / "ours"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    adapter = root / "models" / f"{values['project']['name']}-adapter"
    facts = json.loads((adapter / "manifest.json").read_text(encoding="utf-8"))["facts"]
    plain = {**values, **harness.plain(values, facts["choices"])}
    (folder / "reference.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    command = [sys.executable, str(harness.ROOT / "bench/reference_all.py"), "--config", "../reference.yaml"]
    rows = root / "dataset_package" / values["project"]["name"]
    command += ["--rows", str(rows), "--llama", str(llama.source().absolute()), "--out", str(out)]
    return shown(harness.measure(command, out, "reference"), "reference")


def shown(parts: list[Figures], side: str) -> list[Figures]:
    for part in parts:
        print(f"{side}: {part.name} {part.seconds:.1f} s, {part.peak_mb:.0f} MB", flush=True)
    return parts


if __name__ == "__main__":
    main()
