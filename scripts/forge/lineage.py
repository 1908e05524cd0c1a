"""The records of phases, read together: what is there, whole, judged as it is now, and made from each other.

make sees to that; a script that is run alone could be given a verdict of another model, or an adapter of another base.
"""

from collections.abc import Iterable

from forge import graph, manifest, sources
from forge.config import Config
from forge.errors import GATE_NOT_PASSED, INTEGRITY, ForgeError
from forge.progress import Told, untold


def load(
    names: Iterable[str], config: Config, wanted_by: str, weights: bool = True, told: Told = untold
) -> dict[str, dict]:
    """Records by the phase's name; every byte behind them is checked (without `weights` only the size of those).

    Raises ForgeError: 2 for a record that is not there, 3 for a gate that passed for something else, 6 for changed
    files or records that do not belong together. `wanted_by`: who asks, in words; `told`: MB of
    a record's files that are checked.
    """
    found = {}
    for name in names:
        needed = graph.BY_NAME[name]
        record = needed.record(config.layout)
        content = manifest.read(record)
        if content is None:
            raise ForgeError(f"{wanted_by} needs {record}, which is not there", f"run make {name} CONFIG={config.path}")
        if content.get("phase", name) != name:
            raise ForgeError(
                f"{record} is the record of {content['phase']}", f"delete {record} and run make again", INTEGRITY
            )
        outside = sources.outside(name, config) if needed.gate else None
        changed = manifest.changed_inputs(needed, config.layout, content, outside) if needed.gate else []
        if changed:
            named = ["set of files" if item == "sources" else item for item in changed]
            raise ForgeError(
                f"{name} passed for another {' and '.join(named)} than is there now",
                f"run make {name} CONFIG={config.path}",
                GATE_NOT_PASSED,
            )
        manifest.verify(record, content, weights, told)
        found[name] = content
    require_one(found, config)
    return found


def require_one(records: dict[str, dict], config: Config) -> None:
    """What is read was made from each other: an adapter from this base, a GGUF from this merged model."""
    for name, content in records.items():
        for item in content["inputs"]:
            other = records.get(item["name"])
            if other is not None and manifest.digest(other) != item["sha256"]:
                folder = graph.BY_NAME[name].folder(config.layout)
                raise ForgeError(
                    f"{folder} was made from another {item['name']} than is there now",
                    f"run make {name} CONFIG={config.path}, or restore the {item['name']} it was made from",
                    INTEGRITY,
                )
