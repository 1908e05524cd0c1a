"""What a record says of how something was made: versions, the checkout's commit, the memory it took."""

import contextlib
import resource
import subprocess
import sys
from importlib import metadata

from forge import VERSION

PACKAGES = [
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "gguf",
    "llama-cpp-python",
]


def versions() -> dict[str, str]:
    found = {"model-forge": VERSION, "python": sys.version.split()[0]}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def git_commit() -> str | None:
    """Commit of the checkout, with `-dirty` when it was edited; None outside git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def peak_mb() -> int:
    """Largest resident memory of this process or one of its children so far, in MB (10**6 bytes)."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round(max(own, children) * 1024 / 1e6)
