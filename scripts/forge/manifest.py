"""The record that every phase leaves: what it made, from what, with which settings.

A record is plain JSON. `subject` lists the files with size and SHA-256, names relative to the record's
folder; `inputs` the digests of what was read; `config` the digest of the config values the phase reads;
`record_sha256` the SHA-256 of all the rest of the record, so that a changed byte in it is found like one in a file.
A phase is current when config and inputs are the recorded ones and the files are there with their sizes.
"""

import json
import os
import time
from pathlib import Path

from forge.config import Config
from forge.errors import INTEGRITY, ForgeError
from forge.files import sha256_file, sha256_json, write_json
from forge.graph import BY_NAME, Layout, Phase
from forge.progress import Told, untold

# Training curves are worth keeping but no part of what later phases depend on.
BYSTANDERS = ("metrics.jsonl", "README.md", "verdict.json", "items.jsonl")


SEAL = "record_sha256"


def write(record: Path, content: dict) -> None:
    """Write a record, sealed by the digest of its content."""
    plain = json.loads(json.dumps({key: value for key, value in content.items() if key != SEAL}))  # as it will be read
    write_json(record, {**plain, SEAL: sha256_json(plain)})


def read(record: Path) -> dict | None:
    """The record's content, None when there is none. A torn or foreign file is an integrity error (6)."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        _require_form(content)
        if content.get(SEAL) != sha256_json({key: value for key, value in content.items() if key != SEAL}):
            raise ValueError(f"it does not have its {SEAL}")
        return content
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ForgeError(f"{record} is damaged: {error}", f"delete {record} and run make again", INTEGRITY) from None


def _require_form(content: dict) -> None:
    """Raises KeyError, TypeError or ValueError for what is no record."""
    if not isinstance(content["subject"], list) or not isinstance(content["inputs"], list):
        raise TypeError("subject and inputs are no lists")
    for item in content["subject"]:
        if (
            not isinstance(item["name"], str)
            or not isinstance(item["sha256"], str)
            or not isinstance(item["size"], int)
        ):
            raise TypeError("an entry of subject is none")
        if "\0" in item["name"] or Path(item["name"]).is_absolute() or ".." in Path(item["name"]).parts:
            raise ValueError("a name of subject leads out of its folder")
    for item in content["inputs"]:
        if not isinstance(item["name"], str) or not isinstance(item["sha256"], str | None):
            raise TypeError("an entry of inputs is none")
    for key in ("settings", "facts"):
        if not isinstance(content.get(key, {}), dict):
            raise TypeError(f"{key} is no mapping")


def describe(folder: Path, names: list[str] | None = None, known: dict[str, str] | None = None) -> list[dict]:
    """`subject` entries of the files in a folder (all but hidden ones), sorted by name.

    `known`: SHA-256 of files that were hashed while they were written, by name: 15 GB are not read again.
    """
    known = known or {}
    if names is None:
        names = sorted(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
    return [
        {
            "name": name,
            "sha256": known.get(name) or sha256_file(folder / name),
            "size": (folder / name).stat().st_size,
        }
        for name in names
    ]


def digest(content: dict) -> str:
    """One SHA-256 for what a phase made: its files' names and hashes; for a gate its verdict and what it judged."""
    files = sorted((item["name"], item["sha256"]) for item in content["subject"] if item["name"] not in BYSTANDERS)
    judged = content["inputs"] if content.get("verdict") else None
    return sha256_json([files, content.get("verdict"), judged])


def broken(record: Path, content: dict) -> str | None:
    """Why the recorded files are not whole, judged by presence and size; None when they are."""
    for item in content["subject"]:
        try:
            size = (record.parent / item["name"]).stat().st_size
        except OSError:
            return f"{item['name']} is missing"
        if size != item["size"]:
            return f"{item['name']} has {size} bytes instead of {item['size']}"
    return None


def verify(record: Path, content: dict, weights: bool = True, told: Told = untold) -> None:
    """Every recorded file has its recorded SHA-256, else ForgeError (6). Reads all bytes.

    With `weights=False` files of weights are checked for their size alone. `told`: MB that are read, of how many.
    """
    problem = broken(record, content)
    checked = [item for item in content["subject"] if weights or not item["name"].endswith((".safetensors", ".gguf"))]
    read, whole = 0, sum(item["size"] for item in checked)
    if problem is None:
        for item in checked:
            if sha256_file(record.parent / item["name"]) != item["sha256"]:
                problem = f"{item['name']} does not have its recorded SHA-256"
                break
            read += item["size"]
            told(read // 10**6, whole // 10**6)
    if problem:
        raise ForgeError(
            f"{record.parent}: {problem}",
            f"delete {record} and run make again: it is made anew",
            INTEGRITY,
        )


def input_digests(phase: Phase, layout: Layout, outside: str | None) -> list[dict]:
    """`inputs` as they are now; a missing one has the digest None. `outside`: see `sources.outside`."""
    found = []
    if outside is not None:
        found.append({"name": "sources", "sha256": outside})
    for name in phase.needs:
        content = read(BY_NAME[name].record(layout))
        found.append({"name": name, "sha256": digest(content) if content else None})
    return found


def why_stale(phase: Phase, config: Config, outside: str | None) -> str | None:
    """The reason why a phase must run, in words; None when its output is current."""
    layout = config.layout
    record = phase.record(layout)
    content = read(record)
    if content is None:
        return "it was not done yet"
    if content.get("config") != config.digest(phase.name):
        return changed_settings(content.get("settings") or {}, config.view(phase.name))
    changed = changed_inputs(phase, layout, content, outside)
    if changed:
        return f"changed: {', '.join(changed)}"
    return broken(record, content)


def changed_inputs(phase: Phase, layout: Layout, content: dict, outside: str | None = None) -> list[str]:
    """Names of the inputs that are not those on record.

    A merged model that was deleted to save space is not a change: its digest is still on record.
    """
    now = input_digests(phase, layout, outside)
    return [item["name"] for item in now if item not in content["inputs"] and item != {"name": "merge", "sha256": None}]


def changed_settings(old: dict, new: dict) -> str:
    """`training.learning_rate 0.001 -> 0.0005`, up to three of them."""
    before, after = _flatten(old), _flatten(new)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    shown = [f"{key} {_short(before.get(key))} -> {_short(after.get(key))}" for key in keys[:3]]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(shown) + more if shown else "its settings changed"


def _flatten(value: dict, prefix: str = "") -> dict:
    flat = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat.update(_flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def refresh(record: Path) -> None:
    """Give the record the present time: make takes everything before it as done."""
    now = time.time()
    os.utime(record, (now, now))
