"""Harm done to a finished project on purpose, and what must be true when it goes on.

`make test-slow` does a few minutes of it; `make test-faults RUNS=50` as much as one wants, and prints the table of
docs/faults.md. Each fault's random choices come from its number: the same run is the same fault again.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from forge import config, files, graph, manifest
from forge.errors import ForgeError
from hypothesis import HealthCheck, settings
from project import TIMES, make

RUNS = int(os.environ.get("RUNS") or 0)
LOG = os.environ.get("FAULTS_LOG")
PHASES = list(graph.PHASES)
MAKES_FILES = ("model", "dataset", "train", "merge", "gguf")
LINKED = 1_000_000  # bytes: larger files of a copy are hard links; no phase writes into a finished file


def runs(few: int, share: float = 1) -> range:
    """Numbers of the faults of one kind: `few` in make test-slow, else RUNS times `share`."""
    return range(max(few, round(RUNS * share)) if RUNS else few)


def cases(few: int) -> int:
    """How many examples Hypothesis tries: RUNS=50 are 10,000 of each kind."""
    return RUNS * 200 or few


#: One folder serves all examples of a test: each writes its file anew.
poison = settings(
    max_examples=cases(60),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def copy(chain: Path, folder: Path) -> Path:
    """The finished project again, its large files as links: 300 MB would be copied for each fault."""

    def link(source: str, target: str) -> None:
        if "/models/" in source and Path(source).stat().st_size > LINKED:
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    return Path(shutil.copytree(chain, folder / "a copy", symlinks=True, copy_function=link))


def loaded(root: Path) -> config.Config:
    return config.load(root / "config/test.yaml")


def undo(root: Path, phase: graph.Phase) -> None:
    """As if the phase had not run; where it makes files, the GGUF must be made again from what it makes now."""
    layout = loaded(root).layout
    if phase.name == "modelfile":
        (root / phase.record(layout)).unlink()
    else:
        files.remove(root / phase.folder(layout))
    if phase.name in MAKES_FILES:
        files.remove(root / layout.gguf_folder)


def window(chain: Path, phase: graph.Phase) -> tuple[float, float]:
    """Seconds from make's start to the first phase's first line, and how long this phase took, its imports included."""
    lines = json.loads((chain / TIMES).read_text(encoding="utf-8"))
    begun = [(seconds, line.split()[1]) for seconds, line in lines if line.startswith("== ")]
    names = [name.rstrip(":") for _, name in begun]
    ends = [seconds for seconds, _ in begun[1:]] + [lines[-1][0]]
    place = names.index(phase.name)
    return begun[0][0], ends[place] - begun[place][0]


def kill(process: subprocess.Popen, how: int = signal.SIGKILL) -> str:
    """Send a signal to all that make started; what it had printed."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, how)
    return process.communicate(timeout=120)[0]


def left_running(root: Path) -> list[str]:
    """Processes that still work in this checkout after ten seconds."""
    deadline = time.monotonic() + 10
    while True:
        found = []
        for process in psutil.process_iter(["cwd", "cmdline", "pid"]):
            if process.info["pid"] != os.getpid() and str(process.info["cwd"] or "").startswith(str(root)):
                found.append(" ".join(process.info["cmdline"] or []))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def recover(root: Path, chain: Path) -> float:
    """Run make all; then everything must be as if nothing had happened. Seconds that it took."""
    assert left_running(root) == []
    began = time.monotonic()
    done = make(root, "all")
    took = time.monotonic() - began
    assert done.returncode == 0, done.stdout + done.stderr
    assert differences(root, chain) == []
    assert "==" not in make(root, "all").stdout, "a second make all works again"
    return took


def weights(root: Path) -> dict[str, str]:
    """SHA-256 of everything that a user might load, by name."""
    found = [path for path in (root / "models").rglob("*") if path.suffix in (".gguf", ".safetensors")]
    return {path.relative_to(root).as_posix(): files.sha256_file(path) for path in found if "archive" not in path.parts}


def differences(root: Path, chain: Path) -> list[str]:
    """What is not as in the project that nothing happened to, what its record does not vouch for, and litter."""
    expected, found = weights(chain), weights(root)
    problems = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    for phase in PHASES:
        record = root / phase.record(loaded(root).layout)
        try:
            content = manifest.read(record)
            manifest.verify(record, content)
        except (ForgeError, TypeError) as error:
            problems.append(f"{phase.name}: {error}")
    litter = [path for path in root.rglob("*") if path.name.endswith((".partial", ".old"))]
    return problems + [f"left behind: {path.relative_to(root)}" for path in litter]


def program(*lines: str) -> list[str]:
    """A command line that runs a script of scripts/ after these lines: `-c`, then its path and its arguments."""
    head = ["import os, runpy, signal, sys", "sys.path.insert(0, 'scripts')", "sys.argv = sys.argv[1:]"]
    return [sys.executable, "-c", "\n".join([*head, *lines, "runpy.run_path(sys.argv[0], run_name='__main__')"])]


def fault(kind: str, phase: str, **more: object) -> dict:
    """A fault that is about to be done: it is counted now, as harmful until `harmless` says that it was not."""
    told = {"fault": f"{os.getpid()}-{time.monotonic_ns()}", "kind": kind, "phase": phase, **more}
    write(told)
    return told


def harmless(told: dict, seconds: float | None = None, **more: object) -> None:
    """Everything that must be true after a fault is; `seconds` that the next make took to get there."""
    write({"harmless": told["fault"], "seconds": seconds, **more})


def write(line: dict) -> None:
    if LOG:
        with Path(LOG).open("a", encoding="utf-8") as log:
            log.write(files.json_line(line))


def refused_kindly(done: subprocess.CompletedProcess, *codes: int) -> None:
    """One line of cause, one of remedy, one of these exit codes, and no traceback."""
    assert done.returncode in codes, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    assert "Traceback" not in done.stdout + done.stderr
    assert "FAIL " in done.stderr and "\n  do " in done.stderr, done.stderr[-2000:]


MOUNTS = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]  # seen by that process alone
if_asked = pytest.mark.skipif(not RUNS, reason="some minutes: make test-faults does it")
needs_mount = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(MOUNTS, capture_output=True).returncode != 0,
    reason="a file system of a given size can only be mounted by root",
)
