"""What this machine has: memory with whatever caps it, a graphics card, disk, and how fast it multiplies.

Bytes throughout. Memory is what can be had now: free and reclaimable RAM, and free swap.
"""

import contextlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from forge import files
from forge.environment.machine import in_wsl

WSL, CONTAINER = "WSL2", "a container"
SIZE, LEAST = 1536, 0.5  # of the matrices that are multiplied, and seconds for how long


@dataclass(frozen=True)
class Machine:
    """`memory` that can be had now; `capped` what holds it below the computer's own, WSL2 or a container.

    `card` free graphics memory, None without one. `disk` free where the project is, `cache` where downloads of the
    Hub lie, and whether these are one.
    """

    ram: int
    memory: int
    capped: str | None
    card: int | None
    disk: int
    cache: int
    one_disk: bool


@dataclass(frozen=True)
class Rates:
    """`compute` floating-point operations a second in the dtype of training; `hashing` bytes a second."""

    compute: float
    hashing: float


def look(root: Path = Path()) -> Machine:
    """Measure what is free now."""
    import psutil

    memory, capped = free_memory()
    disk, cache = existing(root / "models"), existing(hub_cache())
    return Machine(
        ram=psutil.virtual_memory().total,
        memory=memory,
        capped=capped,
        card=free_card(),
        disk=shutil.disk_usage(disk).free,
        cache=shutil.disk_usage(cache).free,
        one_disk=disk.stat().st_dev == cache.stat().st_dev,
    )


def room(device: str) -> int:
    """Bytes that a phase can have on a device: graphics memory, or RAM and swap."""
    return free_memory()[0] if device == "cpu" else free_card()


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def hub_cache() -> Path:
    """Where huggingface_hub keeps downloads, by its own variables; importing it costs half a second."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface").expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def free_memory(root: Path = Path("/")) -> tuple[int, str | None]:
    """Bytes that can be had, and what caps them. `root`: where proc and sys are looked for.

    What this process itself has counts: a plan ends before training begins, or becomes it.
    """
    import psutil

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    free, capped = memory.available + swap.free, WSL if in_wsl(root) else None
    contained = container_free(root)
    if contained is not None and contained < free:
        free, capped = contained, CONTAINER
    return free + psutil.Process().memory_info().rss, capped


def container_free(root: Path = Path("/")) -> int | None:
    """Bytes below the tightest limit of the control groups that this process is in; None without a limit.

    File pages that the kernel can drop count as free, as they do in MemAvailable.
    """
    found = [room for folder in control_groups(root) if (room := room_in(folder)) is not None]
    return min(found) if found else None


def control_groups(root: Path) -> list[Path]:
    """Folders of this process's memory groups, versions 1 and 2, from the innermost to the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = []
    for line in [*lines, "0::/"]:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / controllers
        inner = top / path.strip("/")
        found += [inner, *(parent for parent in inner.parents if parent.is_relative_to(top))]
    return list(dict.fromkeys(found))


def room_in(folder: Path) -> int | None:
    """What a control group still allows; None when it sets no limit."""
    for limit, used, dropped in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = int((folder / limit).read_text(encoding="utf-8"))
            now = int((folder / used).read_text(encoding="utf-8"))
            lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):  # no such group, or "max"
            continue
        if most < 2**60:  # version 1 writes nearly 2**63 for no limit
            reclaimable = sum(int(line.split()[1]) for line in lines if line.split()[:1] == [dropped])
            return max(0, most - now + reclaimable)
    return None


def free_card() -> int | None:
    """Free memory of the first graphics card, this process's own context already taken off."""
    import torch

    return torch.cuda.mem_get_info(0)[0] if torch.cuda.is_available() else None


def rates(device: str, dtype: str, cache: Path) -> Rates:
    """How fast a device of this machine is, measured once and kept in `cache`; `dtype` of the matrices."""
    import torch

    name = f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name(0)
    key = f"{device} {name} {dtype} {torch.__version__}"
    known = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(cache.read_text(encoding="utf-8"))
        return Rates(**known[key])
    found = Rates(multiplying(device, dtype), hashing())
    with contextlib.suppress(OSError):
        files.write_json(cache, {**known, key: asdict(found)} if isinstance(known, dict) else {key: asdict(found)})
    return found


def cores() -> int:
    return os.cpu_count() or 1


def multiplying(device: str, dtype: str, least: float = LEAST) -> float:
    """Floating-point operations a second of square matrix products, measured for at least `least` seconds."""
    import torch

    left = torch.ones((SIZE, SIZE), dtype=getattr(torch, dtype), device=device)
    left @ left  # the first call chooses a kernel
    rounds, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < least:
        product = left @ left
        rounds += 1
        if device == "cuda":
            product[0, 0].item()  # waits for the card
    return 2 * SIZE**3 * rounds / spent


def hashing() -> float:
    """Bytes a second of SHA-256."""
    import hashlib

    block, began = bytes(32 * files.BLOCK), time.perf_counter()
    hashlib.sha256(block).digest()
    return len(block) / (time.perf_counter() - began)
