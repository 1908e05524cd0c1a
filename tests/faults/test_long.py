"""Runs in a row with other settings: nothing grows but what is kept on purpose, and clean brings it all back."""

from pathlib import Path

import harm
import project
import pytest

pytestmark = pytest.mark.slow


def kept_by_git(root: Path) -> set[str]:
    """What a checkout holds before anything is made, the environment of the tests included."""
    made = {"build", "logs", "models", "evaluation", "dataset_package", "report", "Modelfile"}
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    return {name for name in found if name.split("/")[0] not in made and "__pycache__" not in name}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@harm.if_asked
@pytest.mark.timeout(600 + 150 * harm.RUNS)
def test_runs_in_a_row(chain, tmp_path):
    root = harm.copy(chain, tmp_path)
    before = kept_by_git(root)
    path, adapter = root / "config/test.yaml", size(root / "models/test-adapter")
    total, text = size(root / "models"), path.read_text(encoding="utf-8")
    count = len(harm.runs(1, share=0.2))
    fault = harm.fault("settings changed in a row", "train", runs=count)
    for number in range(1, count + 1):
        path.write_text(text.replace("learning_rate: 0.005", f"learning_rate: 0.00{4 + number % 2}{number}"), "utf-8")
        done = project.make(root, "all")
        assert done.returncode == 0, done.stdout + done.stderr
        assert harm.left_running(root) == []
        assert [entry.name for entry in (root / "models/checkpoints").iterdir()] == []
    archived = list((root / "models/archive").iterdir())
    assert len(archived) == count, "each replaced adapter is kept"
    assert size(root / "models") - total < count * (adapter + 100_000)
    assert project.make(root, "verify-audit").returncode == 0
    path.write_text(text, encoding="utf-8")
    seconds = harm.recover(root, chain)

    assert project.make(root, "report").returncode == 0
    assert project.make(root, "clean").returncode == 0
    assert not (root / "report").exists() and "==" not in project.make(root, "all").stdout
    assert project.make(root, "clean-models").returncode == 0
    made = [
        path for path in root.iterdir() if path.name in ("models", "evaluation", "dataset_package", "build", "report")
    ]
    assert made == [] and kept_by_git(root) <= before | {"gguf_model_manifest.json"}
    harm.harmless(fault, seconds)
