"""A kill at any instant costs nothing: the next make goes on, and what it makes is what it would have made."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import harm
import project
import pytest

pytestmark = pytest.mark.slow
APART = 3  # has no divisor in common with the number of phases: a few runs are spread, many reach every phase


@pytest.mark.parametrize("run", harm.runs(3))
def test_killed_at_an_instant_drawn_over_a_phase(chain, tmp_path, run):
    draw = random.Random(run)
    phase = harm.PHASES[run * APART % len(harm.PHASES)]
    root = harm.copy(chain, tmp_path)
    harm.undo(root, phase)
    lead, seconds = harm.window(chain, phase)
    instant = draw.uniform(0, lead + seconds)
    process = project.start(root, "all")
    time.sleep(instant)
    if process.poll() is not None:
        pytest.skip("make was over before the kill: no fault")
    fault = harm.fault("killed at any instant", phase.name, instant=instant)
    harm.kill(process)
    harm.harmless(fault, harm.recover(root, chain))


#: The kernel ends the process just before its n-th change of the file system: no instant is more delicate.
KILL_AT = """\
number, count = int(sys.argv.pop(1)), 0
def changes(event, given):
    global count
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir") and not str(given[0]).startswith(("/tmp", "/dev")):
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(3, b".")
sys.addaudithook(changes)
"""


def killed_at(root: Path, script: str, number: int) -> tuple[int, int]:
    """Exit code, and how many changes there were before its end."""
    reading, writing = os.pipe()
    counted = KILL_AT.replace("os.write(3,", f"os.write({writing},")
    command = [*harm.program(counted), f"scripts/{script}", str(number), "--config", "config/test.yaml"]
    process = subprocess.Popen(
        command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[writing]
    )
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        count = len(pipe.read())
    return process.wait(timeout=300), count


@pytest.mark.parametrize("run", harm.runs(2, share=0.4))
def test_killed_between_two_changes_of_the_disk(chain, tmp_path, run):
    draw = random.Random(1000 + run)
    phase = harm.PHASES[(run * APART + 2) % len(harm.PHASES)]
    root = harm.copy(chain, tmp_path)
    harm.undo(root, phase)
    number = draw.randint(1, 30)
    code, count = killed_at(root, phase.script, number)
    if code == 0:  # there were fewer
        harm.undo(root, phase)
        number = draw.randint(1, count)
        code, count = killed_at(root, phase.script, number)
    assert (code, count) == (-signal.SIGKILL, number - 1)
    fault = harm.fault("killed before a rename or removal", phase.name, change=number)
    harm.harmless(fault, harm.recover(root, chain))


SIGNALS = {
    "SIGTERM": [signal.SIGTERM],
    "SIGINT": [signal.SIGINT],
    "SIGINT twice": [signal.SIGINT, signal.SIGINT],
}


@pytest.mark.parametrize("run", harm.runs(2, share=0.3))
def test_a_signal_to_all_processes(chain, tmp_path, run):
    """Ctrl-C reaches make and all its children, as does the end of a session."""
    draw = random.Random(2000 + run)
    name, signals = list(SIGNALS.items())[run % len(SIGNALS)]
    phase = harm.PHASES[(run * APART + 3) % len(harm.PHASES)]
    root = harm.copy(chain, tmp_path)
    harm.undo(root, phase)
    _, seconds = harm.window(chain, phase)
    fault = harm.fault(name, phase.name)
    process = project.start(root, "all")
    for line in process.stdout:
        if line.startswith(f"== {phase.name}:"):
            break
    time.sleep(draw.uniform(0, seconds / 2))  # while a phase works: Python's own start tells of Ctrl-C in its own way
    for number in signals[:-1]:
        os.killpg(process.pid, number)
        time.sleep(draw.uniform(0, 0.5))
    printed = harm.kill(process, signals[-1])
    over = f"{phase.name}: wrote" in printed  # sooner than when it was measured: the signal met the start of a Python,
    assert "Traceback" not in printed or (over and "in guard" not in printed), printed  # before its script had a guard
    harm.harmless(fault, harm.recover(root, chain))
