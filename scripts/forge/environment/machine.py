"""What the checks of `make env` ask for: the config and what it needs, the card, WSL; and how a check answers."""

import contextlib
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from forge.config import Config

OK, FAIL, WARN, SKIP = "ok", "FAIL", "warn", "skip"
CRITICAL, REQUIRED, OPTIONAL = "critical", "required", "optional"
SETUP = "run make setup"


@dataclass(frozen=True)
class Result:
    """What a check found. `detail` and `remedy` are one line each; only `ok` has no remedy."""

    state: str
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """One row. `remedy` is for the case that the function raises."""

    name: str
    level: str
    function: Callable[["Machine"], Result]
    remedy: str = SETUP


@dataclass(frozen=True)
class Card:
    """The first NVIDIA card as the driver sees it, whether PyTorch can use it or not."""

    name: str
    driver: str

    def wheel(self) -> str | None:
        """The build of PyTorch for this driver: NVIDIA wants >= 580 for CUDA 13.x, >= 525 for CUDA 12.x."""
        major = int(self.driver.split(".")[0])
        return "cu130" if major >= 580 else "cu126" if major >= 525 else None


@dataclass(frozen=True)
class Machine:
    """What several checks ask for: the checkout's root, the config and what it needs, the card, WSL."""

    root: Path
    config: Config

    @property
    def name(self) -> str:
        return self.config.layout.name

    @cached_property
    def needs_gpu(self) -> str | None:
        """Why this config needs an NVIDIA card; None when a CPU will do."""
        return needs_gpu(self.config.values.training.optim, self.config.values.model.base_model_name)

    @cached_property
    def card(self) -> Card | None:
        return find_card()

    @cached_property
    def wsl(self) -> bool:
        return in_wsl()


def in_wsl(root: Path = Path("/")) -> bool:
    """Whether this is Windows' Linux: its RAM is a share of Windows', which .wslconfig sets."""
    with contextlib.suppress(OSError):
        return "microsoft" in (root / "proc/version").read_text(encoding="utf-8", errors="replace").lower()
    return False


def needs_gpu(optim: str, base: str) -> str | None:
    """Reason why training would take days without a card, from the optimizer and the base's name."""
    if optim.startswith("paged_"):
        return f"training.optim is {optim}"
    sizes = [float(size) for size in re.findall(r"(\d+(?:\.\d+)?)[bB](?![A-Za-z0-9])", base)]
    largest = max(sizes, default=0)
    return f"{base} has {largest:g} billion weights" if largest >= 3 else None


def find_card() -> Card | None:
    # WSL's driver is outside PATH when a login shell was skipped
    command = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if command is None:
        return None
    found = output(command, "--query-gpu=name,driver_version", "--format=csv,noheader")
    match = re.match(r"(.+?), (\d+\.[\d.]+)", found or "")
    return Card(match[1], match[2]) if match else None


def output(*command: str) -> str | None:
    """What a command prints on both streams; None when it fails or hangs."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
