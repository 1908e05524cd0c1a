"""Several processes give what one gives, in order; a killed one is named; none is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from forge.data import parallel
from forge.errors import ForgeError

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_order(count):
    def work(number: int) -> tuple[int, bool]:
        time.sleep(0.002 * (number % 3))
        return number * number, os.getpid() == parent

    parent = os.getpid()
    found = list(parallel.ordered(work, range(50), count))
    assert [value for value, _ in found] == [number * number for number in range(50)]
    assert all(here for _, here in found) == (count == 1)


def test_items_are_taken_as_they_are_needed():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = parallel.ordered(str, items(), 2)
    assert next(results) == "0"
    assert len(taken) <= 2 * parallel.UNDER_WAY + 1
    results.close()


def test_a_killed_worker_is_an_error_of_the_environment():
    def work(number: int) -> int:
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(ForgeError) as caught:
        list(parallel.ordered(work, range(20), 2))
    assert caught.value.code == 7
    assert "killed" in caught.value.cause


def test_workers_end_with_their_parent(tmp_path):
    """Killed with -9, the parent can say nothing to them."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from forge.data import parallel\n"
        "def work(number):\n"
        "    os.write(1, b'%d\\n' % os.getpid())\n"  # in one piece: print writes the line end apart
        "    time.sleep(60)\n"
        "list(parallel.ordered(work, range(2), 2))\n",
        encoding="utf-8",
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(SCRIPTS)}
    )
    workers = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_an_error_of_a_worker_comes_as_it_is():
    def work(number: int) -> int:
        raise ForgeError("the cause", "the remedy", 4)

    with pytest.raises(ForgeError) as caught:
        list(parallel.ordered(work, range(3), 2))
    assert (caught.value.cause, caught.value.remedy, caught.value.code) == ("the cause", "the remedy", 4)
