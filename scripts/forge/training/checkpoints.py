"""Training checkpoints that can be trusted: sealed with hashes, chosen by number, bound to the run's inputs.

transformers writes a checkpoint's files one by one and, on resume, takes the highest number whatever is
inside. Here a checkpoint counts only when its seal is there and every file has its hash.
"""

import json
from collections.abc import Callable
from pathlib import Path

from forge import files, manifest
from forge.training import ranks

SEAL = "complete.json"


def folder(run) -> Path:
    """models/checkpoints/<name>/<digest>/: another setting or another dataset never resumes this one.

    Another number of processes does; but what was saved in shards is read in shards only.
    """
    digest = files.sha256_json([run.config.digest(run.phase.name), run.input_digests()])
    return run.layout.checkpoints / (digest[:16] + ("-sharded" if ranks.sharded() else ""))


def seal(checkpoint: Path) -> None:
    """Record every file's hash, last: from here on the checkpoint counts."""
    files.write_json(checkpoint / SEAL, manifest.describe(checkpoint))


def is_sound(folder: Path) -> bool:
    """Whether a sealed folder is there and every file has its hash."""
    return _damage(folder) is None


def latest(place: Path, say: Callable[[str], None]) -> Path | None:
    """The complete checkpoint with the highest number; damaged ones are removed and named."""
    found = [path for path in place.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        problem = _damage(path)
        if problem is None:
            say(f"resuming from {path.name}")
            return path
        say(f"{path.name} is not complete ({problem}): removed, the one before is taken")
        files.remove(path)
    return None


def newest(project: Path) -> Path | None:
    """The folder that was sealed last below models/checkpoints/<name>, a finished stage's included; damage is not
    looked for. Raises FileNotFoundError where a training removes it meanwhile."""
    found = [path.parent for path in project.glob(f"*/*/*/{SEAL}")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _damage(checkpoint: Path) -> str | None:
    try:
        listed = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        if not listed:
            return "its seal names no file"
        for item in listed:
            if files.sha256_file(checkpoint / item["name"]) != item["sha256"]:
                return f"{item['name']} was changed"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}"
    return None
