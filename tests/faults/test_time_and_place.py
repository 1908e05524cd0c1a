"""A clock that was set back, and a checkout that lies elsewhere now: what is made is still what was made from this."""

import os
import time

import harm
import pytest
from project import make

pytestmark = pytest.mark.slow


def test_a_clock_that_was_set_back(chain, copy):
    """All files are of tomorrow, the edit of a document is of today: it is seen, and so is that it was taken back."""
    tomorrow = time.time() + 86_400
    for path in copy.rglob("*"):
        os.utime(path, (tomorrow, tomorrow), follow_symlinks=False)
    assert "==" not in make(copy, "all").stdout
    fault = harm.fault("clock set back", "dataset")
    page = copy / "documents/bees.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("one queen", "a single queen"), encoding="utf-8")
    assert "== dataset" in make(copy, "dataset").stdout
    assert "fine_tune.py" in make(copy, "-n", "all").stdout
    page.write_text(text, encoding="utf-8")
    harm.harmless(fault, harm.recover(copy, chain))


def test_a_checkout_that_was_moved(chain, tmp_path):
    root = harm.copy(chain, tmp_path)
    fault = harm.fault("checkout moved", "all")
    moved = tmp_path / "elsewhere/another name"
    moved.parent.mkdir()
    root.rename(moved)
    assert "==" not in make(moved, "all").stdout
    assert make(moved, "verify-audit").returncode == 0
    harm.harmless(fault, harm.recover(moved, chain))
