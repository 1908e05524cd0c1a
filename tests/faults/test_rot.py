"""A byte that changed between two phases is found before it is used: never a wrong model."""

import json
import os
import random
import shutil
from pathlib import Path

import harm
import pytest
from forge import files, manifest
from project import make, script

pytestmark = pytest.mark.slow

#: What is used after make all, each with a file that it must not take when it is not the one that was checked.
USES = {
    "ask": ("ask.py", "--prompt", "Who are you?"),
    "chat": ("chat_model.py",),
    "serve": ("serve_model.py",),
    "upload-plan": ("upload_model.py", "--plan", "--repo", "me/test"),
    "deploy": ("deploy_ollama.py",),
    "verify-audit": ("audit_trail.py", "--verify"),
}


def flip(path: Path, draw: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    put(path, bytes(raw))


def truncate(path: Path, draw: random.Random) -> None:
    raw = path.read_bytes()
    put(path, raw[: draw.randrange(1, max(2, len(raw)))])


def empty(path: Path, draw: random.Random) -> None:
    put(path, b"")


def swap(path: Path, draw: random.Random) -> None:
    """Another file of the same kind in its place."""
    others = [other for other in path.parents[1].rglob(f"*{path.suffix}") if other.is_file()]
    others = [other for other in others if other.read_bytes() != path.read_bytes()]
    put(path, draw.choice(sorted(others)).read_bytes() if others else b"{}")


def put(path: Path, raw: bytes) -> None:
    """In a new file: the old one may be linked to the project that all tests share."""
    path.unlink()
    path.write_bytes(raw)


DAMAGES = {"a flipped bit": flip, "truncated": truncate, "emptied": empty, "another's in its place": swap}


def read_by(chain: Path) -> list[tuple[str, str, Path]]:
    """Every phase with each file that it reads, its inputs' records included: (phase, whose, file)."""
    layout, found = harm.loaded(chain).layout, []
    for phase in harm.PHASES:
        for needed in (row for row in harm.PHASES if row.name in phase.needs):
            record = needed.record(layout)
            names = [item["name"] for item in manifest.read(chain / record)["subject"] if item["size"]]
            if not phase.weights:  # these phases read no weights, so they do not look into them
                names = [name for name in names if not name.endswith((".safetensors", ".gguf"))]
            found += [(phase.name, needed.name, record.parent / name) for name in names]
            found.append((phase.name, needed.name, record))
    return found


@pytest.fixture(scope="module")
def root(chain, tmp_path_factory) -> Path:
    """One copy for all: a file that was damaged is put back afterwards."""
    return harm.copy(chain, tmp_path_factory.mktemp("rot"))


@pytest.mark.parametrize("run", harm.runs(24, share=4))
def test_a_damaged_input_of_a_phase(chain, root, run):
    draw = random.Random(3000 + run)
    phase, whose, name = draw.choice(read_by(chain))
    damage = draw.choice(sorted(DAMAGES))
    row = next(row for row in harm.PHASES if row.name == phase)
    fault = harm.fault(damage, phase, whose=whose, file=name.name)
    with damaged(chain, root, name, damage, draw):
        before = harm.weights(root)
        harm.refused_kindly(script(root, row.script, "--force"), 6)
        assert harm.weights(root) == before
    harm.harmless(fault)


class damaged:
    """The file is damaged inside, and as before afterwards."""

    def __init__(self, chain: Path, root: Path, name: Path, damage: str, draw: random.Random):
        self.path, self.original = root / name, chain / name
        self.damage, self.draw = DAMAGES[damage], draw

    def __enter__(self) -> None:
        raw, mode = self.path.read_bytes(), self.path.stat()
        self.damage(self.path, self.draw)
        assert self.path.read_bytes() != raw
        os.utime(self.path, ns=(mode.st_atime_ns, mode.st_mtime_ns))  # rot leaves the time as it was

    def __exit__(self, *_) -> None:
        self.path.unlink(missing_ok=True)
        shutil.copy2(self.original, self.path)


@pytest.mark.parametrize("run", harm.runs(6))
def test_a_damaged_file_of_the_finished_model(chain, root, run):
    draw = random.Random(4000 + run)
    layout = harm.loaded(chain).layout
    made = json.loads((chain / layout.gguf_folder / "test.manifest.json").read_text(encoding="utf-8"))
    name = layout.gguf_folder / draw.choice([made["deployed"], "test.Modelfile", "test.manifest.json"])
    damage = draw.choice(sorted(DAMAGES))
    use = list(USES)[run % len(USES)]
    fault = harm.fault(damage, use, whose="modelfile", file=name.name)
    with damaged(chain, root, name, damage, draw):
        harm.refused_kindly(script(root, *USES[use]), 6)
    harm.harmless(fault)


@pytest.mark.parametrize("run", harm.runs(2, share=0.4))
def test_make_after_damage_gives_the_same_model_or_says_why_not(chain, tmp_path, run):
    """make looks at sizes, the phase at every byte: what is used is whole, what is not whole is made again or named."""
    draw = random.Random(5000 + run)
    phase, whose, name = draw.choice(read_by(chain))
    damage = draw.choice(sorted(DAMAGES))
    row = next(row for row in harm.PHASES if row.name == phase)
    root = harm.copy(chain, tmp_path)
    harm.undo(root, row)
    if not (root / name).is_file():
        pytest.skip("what the phase reads went with its own output")
    fault = harm.fault(f"{damage}, then make", phase, file=name.name)
    DAMAGES[damage](root / name, draw)
    done = make(root, "all")
    if done.returncode == 0:
        assert harm.differences(root, chain) == []
    else:
        assert "Error 6" in done.stderr and "Traceback" not in done.stdout + done.stderr, done.stderr
        [remedy] = [line for line in done.stderr.splitlines() if line.startswith("  do ")]
        follow(root, remedy)
    harm.harmless(fault, harm.recover(root, chain))


def follow(root: Path, remedy: str) -> None:
    """Do what the remedy says: delete a record, or all of a folder, and run make again."""
    _, verb, name, *rest = remedy.split()
    assert (verb, " ".join(rest).startswith("and run make again")) == ("delete", True), remedy
    files.remove(root / name)
