"""Two makes in one checkout: of one config one works, of two configs both."""

import shutil
import signal
import subprocess
import time

import harm
import project
import pytest
from forge import files

pytestmark = pytest.mark.slow


def test_two_of_one_config(chain, tmp_path):
    """The second says at once who holds the lock; a holder that was killed holds it no longer."""
    root = harm.copy(chain, tmp_path)
    harm.undo(root, next(row for row in harm.PHASES if row.name == "train"))
    first = project.start(root, "all")
    for line in first.stdout:
        if line.startswith("== train"):
            break
    began, fault = time.monotonic(), harm.fault("two makes of one config", "train")
    second = project.script(root, "fine_tune.py")
    waited = time.monotonic() - began
    harm.refused_kindly(second, 5)
    assert "FAIL test is locked by train, process" in second.stderr
    third = project.make(root, "all")
    assert "Error 5" in third.stderr and "test is locked by train" in third.stderr
    harm.kill(first, signal.SIGKILL)
    harm.harmless(fault, harm.recover(root, chain), waited=round(waited, 2))


@harm.if_asked
def test_two_configs_at_once(chain, tmp_path):
    root = harm.copy(chain, tmp_path)
    harm.undo(root, next(row for row in harm.PHASES if row.name == "train"))
    text = (root / "config/test.yaml").read_text(encoding="utf-8").replace("name: test", "name: other", 1)
    (root / "config/other.yaml").write_text(text, encoding="utf-8")
    fault = harm.fault("two makes of two configs", "all")
    first = project.start(root, "all")
    other = subprocess.run(
        ["make", "VENV=venv", "CONFIG=config/other.yaml", "all"], cwd=root, capture_output=True, text=True, timeout=500
    )
    printed = first.communicate(timeout=500)[0]
    assert (first.returncode, other.returncode) == (0, 0), printed + other.stdout + other.stderr
    adapters = [root / f"models/{name}-adapter/adapter_model.safetensors" for name in ("test", "other")]
    assert files.sha256_file(adapters[0]) == files.sha256_file(adapters[1])
    for name in ("other-adapter", "merged/other-merged", "checkpoints/other"):
        shutil.rmtree(root / "models" / name, ignore_errors=True)
    for path in (root / "models/gguf").glob("other*"):
        path.unlink()
    seconds = harm.recover(root, chain)
    assert project.make(root, "verify-audit").returncode == 0
    harm.harmless(fault, seconds)
