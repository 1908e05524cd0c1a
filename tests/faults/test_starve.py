"""No room, no memory, no answer: an end with 7 that says what to do, the old files whole, and then it goes on."""

import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import harm
import project
import pytest
from forge import files

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(chain, tmp_path):
    """A file system in memory, half as large again as the project."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_of(chain) * 3 // 2}", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@harm.needs_mount
@pytest.mark.parametrize("run", harm.runs(2, share=0.4))
def test_a_full_disk(chain, disk, run):
    draw = random.Random(6000 + run)
    phase = harm.PHASES[(run * 3 + 3) % len(harm.PHASES)]
    root = Path(shutil.copytree(chain, disk / "a copy", symlinks=True))
    before = harm.weights(root)
    wanted = size_of(root / phase.folder(harm.loaded(root).layout))
    filler = disk / "filler"
    free = draw.randrange(max(1, wanted // 2))
    with filler.open("wb") as handle:
        os.posix_fallocate(handle.fileno(), 0, shutil.disk_usage(disk).free - free)
    done = project.script(root, phase.script, "--force")
    fault = harm.fault("disk full" if done.returncode else "disk nearly full", phase.name, free=free)
    if done.returncode:  # a phase that writes little may fit
        harm.refused_kindly(done, 7)
        assert "disk" in done.stderr or "space" in done.stderr, done.stderr
        assert harm.weights(root) == before
    filler.unlink()
    harm.harmless(fault, harm.recover(root, chain), code=done.returncode)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@harm.needs_mount
@pytest.mark.parametrize("run", harm.runs(1, share=0.1))
def test_a_folder_that_can_only_be_read(chain, tmp_path, run):
    phase = [row for row in harm.PHASES if row.name in harm.MAKES_FILES][(run + 2) % 5]
    root = harm.copy(chain, tmp_path)
    fault = harm.fault("read-only folder", phase.name)
    held = root / phase.folder(harm.loaded(root).layout).parent
    for arguments in (["--bind", held, held], ["-o", "remount,ro,bind", held]):
        subprocess.run(["mount", *arguments], check=True)
    try:
        harm.refused_kindly(project.script(root, phase.script, "--force"), 7)
    finally:
        subprocess.run(["umount", held], check=True)
    harm.harmless(fault, harm.recover(root, chain))


@pytest.mark.parametrize("run", harm.runs(3, share=0.3))
def test_little_memory(chain, tmp_path, run):
    """The kernel refuses more address space than this; what a library says then is as bad as it gets."""
    draw = random.Random(7000 + run)
    phase = next(row for row in harm.PHASES if row.name == ("train", "merge", "gguf")[run % 3])
    root = harm.copy(chain, tmp_path)
    limit = round(draw.uniform(0.5e9, 4e9))
    before, fault = harm.weights(root), harm.fault("little memory", phase.name, limit=limit)
    done = subprocess.run(
        [sys.executable, f"scripts/{phase.script}", "--config", "config/test.yaml", "--force"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    began = time.monotonic()
    if done.returncode:
        harm.refused_kindly(done, 7)
        assert before.items() <= harm.weights(root).items()  # a checkpoint may be there besides, to go on from
        again = project.make(root, "redo", f"PHASE={phase.name}")  # there is room now
        assert again.returncode == 0, again.stdout + again.stderr
    harm.recover(root, chain)
    harm.harmless(fault, time.monotonic() - began, code=done.returncode)


@pytest.fixture
def silent():
    """The address of a server that takes a request and never answers: a stand-in of a Hub that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = []

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_a_hub_that_hangs(checkout, write_config, run_script, silent, tmp_path):
    path = write_config(checkout, base="org/model")
    began, fault = time.monotonic(), harm.fault("hub that hangs", "model")
    done = run_script("download_model.py", "--config", path, env={"HF_ENDPOINT": silent, "HF_HOME": str(tmp_path)})
    harm.refused_kindly(done, 7)
    waited = round(time.monotonic() - began, 1)
    assert files.read_jsonl(checkout / "logs/audit.jsonl")[-1]["event"] == "failed"
    harm.harmless(fault, waited=waited)
