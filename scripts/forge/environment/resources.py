"""The checks of the machine itself: disk, memory, card, token, folder, clock, line endings.

Sizes are in GB of 10**9 bytes, so that a "16 GB" machine, of which the kernel keeps some, counts as one.
"""

import contextlib
import os
import re
import shlex
import shutil
import tempfile
import time
from pathlib import Path

from forge.environment.machine import FAIL, OK, SKIP, WARN, Machine, Result

STARTER_DISK, GPU_DISK = 3.0, 50.0  # GB: 135M model / 7B model (base 15, merged 15, 16-bit GGUF 15, Q4 5)
STARTER_RAM, GPU_RAM = 8.0, 18.0  # GB: training of the starter takes 6; merging of 7B wants RAM + swap of 18
LEAST_VRAM = 7.5  # GB: an "8 GB" card
WSL_RAM = 12.0  # GB: below, WSL's default of half of Windows' memory is worth raising
CLOCK_TOLERANCE = 2.0  # s: a Windows drive keeps times in steps of up to 2 s
SWAP = "sudo fallocate -l 16G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile"


def check_disk(machine: Machine) -> Result:
    models = machine.root / "models"  # often a link to a larger disk
    free = shutil.disk_usage(models if models.exists() else machine.root).free / 1e9
    wanted = GPU_DISK if machine.needs_gpu else STARTER_DISK
    found = f"{free:.1f} GB free, {wanted:g} GB wanted for {machine.name}"
    remedy = "free some space, or make models/ a link to a folder on a larger disk"
    if free < wanted / 2:
        return Result(FAIL, found, remedy)
    return Result(WARN, found, remedy) if free < wanted else Result(OK, found)


def memory() -> tuple[float, float]:
    """RAM and swap in GB; a container's limit counts as its RAM."""
    import psutil

    limits = [psutil.virtual_memory().total]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no container, or "max"
            limits.append(int(Path(path).read_text(encoding="utf-8")))
    return min(limits) / 1e9, psutil.swap_memory().total / 1e9


def memory_remedy(machine: Machine, ram: float) -> str:
    return wslconfig(ram) if machine.wsl else SWAP


def wslconfig(ram: float, swap: int = 16) -> str:
    """The lines that give WSL three quarters of Windows' memory instead of half, and `swap` GB of swap.

    What Windows has is taken to be twice what WSL shows, which is WSL's default.
    """
    return (
        f"write into %UserProfile%\\.wslconfig (Windows) the lines [wsl2], memory={max(round(1.5 * ram), 2)}GB, "
        f"swap={swap}GB, then run wsl --shutdown"
    )


def check_ram(machine: Machine) -> Result:
    ram, swap = memory()
    if machine.needs_gpu:
        have, wanted, found = ram + swap, GPU_RAM, f"{ram:.1f} GB RAM + {swap:.1f} GB swap"
    else:
        have, wanted, found = ram, STARTER_RAM, f"{ram:.1f} GB RAM"
    found = f"{found}, {wanted:g} GB wanted for {machine.name}"
    return Result(OK, found) if have >= wanted else Result(WARN, found, memory_remedy(machine, ram))


def check_swap(machine: Machine) -> Result:
    ram, swap = memory()
    wanted = GPU_RAM if machine.needs_gpu else STARTER_RAM
    if swap == 0 and ram < wanted:
        return Result(WARN, f"none, and less than {wanted:g} GB RAM", memory_remedy(machine, ram))
    return Result(OK, f"{swap:.1f} GB" if swap else f"none; RAM alone has the {wanted:g} GB")


def check_vram(machine: Machine) -> Result:
    import torch

    if not torch.cuda.is_available():
        return Result(SKIP, "no CUDA device", "nothing: the row torch says whether one is needed")
    free, total = (size / 1e9 for size in torch.cuda.mem_get_info(0))
    found = f"{total:.1f} GB, {free:.1f} GB of it free"
    if machine.needs_gpu and total < LEAST_VRAM:
        return Result(
            FAIL,
            f"{found}; {machine.config.path} needs {LEAST_VRAM:g} GB",
            "use a card with 8 GB or more, or a smaller base model (model.base_model_name)",
        )
    return Result(OK, found)


def check_token(machine: Machine) -> Result:
    """Whether there is a Hugging Face token, and where; never what it is."""
    names = ("HF_TOKEN", "HUGGING_FACE_TOKEN")
    absent = "write HF_TOKEN=... into .env, if you use a gated model or upload (https://hf.co/settings/tokens)"
    for name in names:
        if os.environ.get(name, "").strip():
            return Result(OK, f"present: {name} in the environment")
    path = machine.root / ".env"
    if not path.exists():
        return Result(SKIP, "absent: only gated models and uploads need one", absent)
    from dotenv import dotenv_values

    try:
        values = dotenv_values(path, interpolate=False, encoding="utf-8-sig")
    except (OSError, ValueError):  # the error's text could hold a part of it
        return Result(WARN, ".env cannot be read", "save .env as a UTF-8 text file that you may read")
    for name in names:
        value = (values.get(name) or "").strip()
        if value and "your_token" not in value:  # the line that instructions give as an example
            return Result(OK, f"present: {name} in .env")
    return Result(SKIP, "absent: .env has none; only gated models and uploads need one", absent)


def check_folder(machine: Machine) -> Result:
    root = machine.root.resolve()
    if machine.wsl and re.match(r"/mnt/[a-z](/|$)", str(root)):
        return Result(
            WARN,
            f"{root} is a Windows drive: many times slower, and its files' times are coarse",
            "clone into a folder of Linux, such as ~/model-forge, and work there",
        )
    return Result(OK, f"{root}{' (a folder of Linux)' if machine.wsl else ''}")


def check_clock(machine: Machine) -> Result:
    """make decides by files' times: they must be neither skewed nor in the future."""
    with tempfile.NamedTemporaryFile(dir=machine.root, prefix=".clock-") as handle:
        skew = Path(handle.name).stat().st_mtime - time.time()
    if abs(skew) > CLOCK_TOLERANCE:
        remedy = "sudo hwclock -s (or wsl --shutdown in Windows)" if machine.wsl else "sudo timedatectl set-ntp true"
        return Result(WARN, f"a file written now is dated {skew:+.0f} s off", remedy)
    future = future_files(machine.root, time.time() + CLOCK_TOLERANCE)
    if future:
        return Result(
            WARN,
            f"{len(future)} files are dated in the future, first {future[0]}: make takes them for new again and again",
            "when the clock is right: find . -path ./.git -prune -o -type f -newermt '2 seconds' -exec touch {} +",
        )
    return Result(OK, f"files written now are dated right ({abs(skew):.1f} s off), none in the future")


def future_files(root: Path, limit: float) -> list[str]:
    """Files dated after `limit`, relative to root; hidden folders and environments are left out."""
    found = []
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = [name for name in folders if name[0] != "." and not (here / name / "pyvenv.cfg").exists()]
        for name in names:
            with contextlib.suppress(OSError):  # another process may just have removed it
                if (here / name).lstat().st_mtime > limit:
                    found.append(str((here / name).relative_to(root)))
    return sorted(found)


def check_wsl_memory(machine: Machine) -> Result:
    if not machine.wsl:
        return Result(SKIP, "this is not WSL", "nothing: only Windows limits it so")
    ram, swap = memory()
    found = f"WSL gives {ram:.1f} GB RAM and {swap:.1f} GB swap"
    return (
        Result(OK, found) if ram >= WSL_RAM else Result(WARN, f"{found}, its share of Windows' memory", wslconfig(ram))
    )


def check_line_endings(machine: Machine) -> Result:
    """CRLF breaks make's recipes and bash with messages that name neither."""
    root = machine.root
    scripts = [path for path in [root / "Makefile", *sorted((root / "scripts").glob("*.sh"))] if path.is_file()]
    configs = sorted(path for path in (root / "config").rglob("*") if path.suffix in (".yaml", ".yml"))
    broken, odd = (
        [str(path.relative_to(root)) for path in paths if b"\r\n" in path.read_bytes()] for paths in (scripts, configs)
    )
    if not broken and not odd:
        return Result(OK, f"LF in {len(scripts) + len(configs)} files (Makefile, scripts/*.sh, config)")
    names = " ".join(map(shlex.quote, broken + odd))
    return Result(FAIL if broken else WARN, f"CRLF line endings: {names}", f"sed -i 's/\\r$//' {names}")
