"""make's behaviour on a checkout whose path holds a space, with the real frame around stand-in phases."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forge import graph

ROOT = Path(__file__).resolve().parents[1]
ALL = [row.name for row in graph.PHASES]
SCRIPTS = {row.script: row.name for row in graph.PHASES}
CONFIG = """\
project: {{name: {name}, description: d}}
model: {{base_model_name: org/{name}}}
data:
  sources: [{{path: corpus}}]
training:
  learning_rate: 0.001
gguf:
  quantizations: [Q4_K_M]
ollama: {{temperature: 0.3}}
"""


class Tree:
    """A checkout with stand-in phases, and what the last make started and did."""

    def __init__(self, root: Path):
        self.root = root
        self.config = root / "config/training_config.yaml"

    def run(self, *arguments: str, env: dict | None = None) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["make", f"VENV={self.root / 'venv'}".replace(str(self.root) + "/", ""), *arguments],
            cwd=self.root,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def make(self, *arguments: str, env: dict | None = None) -> str:
        done = self.run(*arguments, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def planned(self, *arguments: str) -> list[str]:
        """Phases that `make -n` names."""
        found = re.findall(r"scripts/(\w+\.py)", self.make("-n", *arguments))
        return [SCRIPTS[name] for name in found if name in SCRIPTS]

    def edit(self, old: str, new: str) -> None:
        text = self.config.read_text(encoding="utf-8")
        assert old in text
        self.config.write_text(text.replace(old, new), encoding="utf-8")


def started(output: str) -> list[str]:
    """Phases that were started, whether they worked or found nothing to do."""
    return re.findall(r"^(?:== )?([a-z-]+): (?=.*(?:\(|nothing to do))(?!wrote)", output, flags=re.M)


def worked(output: str) -> list[str]:
    return re.findall(r"^== ([a-z-]+):", output, flags=re.M)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    root = tmp_path / "a forge"
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "Modelfile.template", "requirements-finetuning.txt", "requirements-dev.txt"):
        shutil.copy2(ROOT / name, root / name)
    for name in SCRIPTS:
        shutil.copy(ROOT / "tests/standin_phase.py", root / "scripts" / name)
    (root / "scripts/summary.py").write_text("", encoding="utf-8")  # it reads figures that stand-ins do not make
    (root / "corpus").mkdir()
    (root / "corpus/one page.md").write_text("# One\n\nwords here\n", encoding="utf-8")
    (root / "config").mkdir()
    (root / "config/training_config.yaml").write_text(CONFIG.format(name="alpha"), encoding="utf-8")
    (root / "config/other.yaml").write_text(CONFIG.format(name="beta"), encoding="utf-8")
    (root / "venv/bin").mkdir(parents=True)
    wrapper = root / "venv/bin/python"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    for stamp in ("light.ok", "ready.ok", "dev.ok"):
        (root / "venv" / stamp).touch()
    return Tree(root)


@pytest.fixture
def built(tree: Tree) -> Tree:
    assert worked(tree.make("all")) == ALL
    return tree


def test_fresh_then_nothing_to_do(built):
    assert built.planned("all") == []
    assert started(built.make("all")) == []
    assert (built.root / "Modelfile").read_text() == (built.root / "models/gguf/alpha.Modelfile").read_text()


def test_dry_run_in_a_fresh_checkout_names_every_phase(tree):
    assert tree.planned("all") == ALL
    assert not (tree.root / "models").exists()


@pytest.mark.parametrize(
    ("old", "new", "first"),
    [
        ("learning_rate: 0.001", "learning_rate: 0.002", "train"),
        ("[Q4_K_M]", "[Q4_K_M, Q8_0]", "gguf"),
        ("temperature: 0.3", "temperature: 0.4", "modelfile"),
        ("description: d", "description: another", "gguf"),
    ],
)
def test_an_edit_reruns_what_depends_on_it(built, old, new, first):
    built.edit(old, new)
    expected = ALL[ALL.index(first) :]
    planned = built.planned("all")
    output = built.make("all")
    assert planned == started(output) == expected
    assert worked(output)[0] == first
    assert built.planned("all") == []


def test_an_edit_taken_back_reruns_nothing(built):
    built.edit("learning_rate: 0.001", "learning_rate: 0.002")
    assert built.planned("all")[0] == "train"
    built.edit("learning_rate: 0.002", "learning_rate: 0.001")
    assert built.planned("all") == []


def test_a_comment_reruns_nothing(built):
    built.edit("training:", "training:  # a remark")
    assert built.planned("all") == []


def test_a_changed_document_reruns_from_the_dataset(built):
    (built.root / "corpus/two.md").write_text("more words\n", encoding="utf-8")
    planned = built.planned("all")
    output = built.make("all")
    assert planned == started(output) == worked(output) == ALL[1:]
    (built.root / "corpus/two.md").unlink()
    assert worked(built.make("all")) == ALL[1:]


def test_a_document_that_gives_the_same_rows_trains_nothing(built):
    (built.root / "corpus/one page.md").write_text("# One\n\nwords   here\n\n", encoding="utf-8")
    assert worked(built.make("all"))[:1] == ["dataset"]
    assert "train" not in worked(built.make("all"))
    assert built.planned("all") == []


def test_touched_documents_and_scripts_train_nothing(built):
    (built.root / "corpus/one page.md").touch()
    assert built.planned("all") == []
    for script in (built.root / "scripts").glob("*.py"):
        script.touch()
    assert worked(built.make("all")) == []


def test_two_configs_in_turn(built):
    assert worked(built.make("all", "CONFIG=config/other.yaml")) == ALL
    assert (built.root / "Modelfile").read_text() == (built.root / "models/gguf/beta.Modelfile").read_text()
    assert started(built.make("all")) == []
    assert (built.root / "Modelfile").read_text() == (built.root / "models/gguf/alpha.Modelfile").read_text()


def test_a_missing_gguf_is_made_again(built):
    (built.root / "models/gguf/alpha-Q4_K_M.gguf").unlink()
    assert built.planned("all")[0] == "gguf"
    assert worked(built.make("all"))[0] == "gguf"
    assert (built.root / "models/gguf/alpha-Q4_K_M.gguf").is_file()


def test_a_truncated_output_is_made_again(built):
    (built.root / "models/alpha-adapter/data.bin").write_text("", encoding="utf-8")
    assert worked(built.make("all"))[0] == "train"


def test_a_deleted_merged_model_is_no_reason_to_work(built):
    shutil.rmtree(built.root / "models/merged")
    assert built.planned("all") == []
    assert "deleted" in built.make("status")
    assert "missing" not in built.make("status")


def test_redo_does_one_phase_and_before_it_what_is_missing(built):
    assert worked(built.make("redo", "PHASE=gguf"))[:1] == ["gguf"]
    built.make("all")
    shutil.rmtree(built.root / "models/merged")
    assert worked(built.make("redo", "PHASE=gguf")) == ["merge", "gguf"]
    done = built.run("redo", "PHASE=nonsense")
    assert done.returncode == 2
    assert "FAIL no phase 'nonsense'" in done.stderr


def test_files_dated_in_the_future(built):
    later = time.time() + 100_000
    for path in [*built.root.glob("corpus/*"), built.config, *built.root.glob("models/**/manifest.json")]:
        os.utime(path, (later, later))
    assert worked(built.make("all")) == []
    built.edit("learning_rate: 0.001", "learning_rate: 0.002")
    assert worked(built.make("all"))[0] == "train"


def test_clean_never_makes_make_think_that_training_must_rerun(built):
    built.make("clean")
    assert not (built.root / "build").exists()
    assert built.planned("all") == []


def test_a_failed_gate_stops_make_each_time(tree):
    for _ in range(2):
        done = tree.run("all", env={"STANDIN_FAIL": "verify-adapter"})
        assert done.returncode == 2
        assert "FAIL verify-adapter did not pass: stand-in: 0, wanted 1 (n=1)" in done.stderr
        assert not (tree.root / "models/merged").exists()
    assert (tree.root / "evaluation/alpha/verify-adapter/verdict.json").is_file()
    assert worked(tree.make("all")) == ALL[ALL.index("verify-adapter") :]


@pytest.mark.parametrize("phase", ALL)
def test_killed_in_a_phase_the_next_make_finishes(tree, phase):
    process = subprocess.Popen(
        ["make", "VENV=venv", "all"],
        cwd=tree.root,
        env={**os.environ, "STANDIN_SLEEP": phase},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("sleeping"):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert worked(tree.make("all")) == ALL[ALL.index(phase) :]
    assert list(tree.root.glob("models/**/.*partial")) == []


def test_a_second_make_says_who_holds_the_lock(tree):
    first = subprocess.Popen(
        ["make", "VENV=venv", "model"],
        cwd=tree.root,
        env={**os.environ, "STANDIN_SLEEP": "model"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in first.stdout:
        if line.startswith("sleeping"):
            break
    second = tree.run("model")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    first.stdout.close()
    assert "FAIL alpha is locked by model, process" in second.stderr
    assert "Error 5" in second.stderr
    tree.make("model")


def test_a_wrong_config_is_two_lines(built):
    built.edit("learning_rate:", "learnig_rate:")
    done = built.run("all")
    assert done.returncode == 2
    assert "FAIL config/training_config.yaml:6: training.learnig_rate: unknown key" in done.stderr
    assert "do did you mean training.learning_rate?" in done.stderr
    assert "Traceback" not in done.stderr


def test_surprising_work_is_announced_before_it_starts(built):
    built.edit("learning_rate: 0.001", "learning_rate: 0.002")
    done = built.run("-n", "gguf")
    assert re.search(
        r"gguf needs first: train \(training.learning_rate 0.001 -> 0.002, \d+ s last time\); verify-adapter",
        done.stderr,
    )
    assert built.run("-n", "model").stderr == ""


def test_status_tells_why(built):
    built.edit("learning_rate: 0.001", "learning_rate: 0.002")
    output = built.make("status")
    assert re.search(r"^train +stale .*training.learning_rate 0.001 -> 0.002$", output, flags=re.M)
    assert re.search(r"^merge +waits .*for train$", output, flags=re.M)
    assert re.search(r"^dataset +done ", output, flags=re.M)


def test_a_retrained_adapter_is_kept_and_can_be_restored(built):
    before = (built.root / "models/alpha-adapter/data.bin").read_text()
    built.edit("learning_rate: 0.001", "learning_rate: 0.002")
    built.make("train")
    listed = built.make("runs")
    assert re.search(r" NOT_RUN  \(current\)$", listed, flags=re.M)
    assert re.search(r" PASS  training.learning_rate 0.002 -> 0.001$", listed, flags=re.M)
    kept = [path.name for path in (built.root / "models/archive").iterdir()]
    assert len(kept) == 1
    restore = ["scripts/runs.py", "--restore", kept[0].removeprefix("alpha-adapter-")]
    subprocess.run([sys.executable, *restore], cwd=built.root, check=True, capture_output=True)
    assert (built.root / "models/alpha-adapter/data.bin").read_text() == before
    built.edit("learning_rate: 0.002", "learning_rate: 0.001")
    assert "train" not in worked(built.make("all"))


def test_a_prompt_reaches_the_script_as_it_was_typed(built):
    (built.root / "scripts/ask.py").write_text("import os\nprint(os.environ['PROMPT'])\n", encoding="utf-8")
    prompt = 'what\'s "$(shell touch pwned)" `touch pwned2` $5 $HOME; touch pwned3 #x'
    assert built.make("ask", f"PROMPT={prompt}").splitlines()[-1] == prompt
    assert list(built.root.glob("pwned*")) == []


def test_init_copies_a_preset_once(tree):
    shutil.copytree(ROOT / "config/presets", tree.root / "config/presets")
    assert "wrote config/local/qwen2-7b-8gb.yaml" in tree.make("init", "PRESET=qwen2-7b-8gb")
    again = tree.run("init", "PRESET=qwen2-7b-8gb")
    assert "exists already" in again.stderr
    assert "one of: " in tree.run("init", "PRESET=nonsense").stderr


def test_help_lists_every_phase(tree):
    output = tree.make()
    for name in ALL:
        assert re.search(rf"^  {name} ", output, flags=re.M)


def test_deploy_looks_for_ollama_before_it_makes_a_model(tree):
    programs = tree.root / "programs"
    programs.mkdir()
    for name in ("bash", "sh", "make", "mkdir", "rm"):
        (programs / name).symlink_to(shutil.which(name))
    done = tree.run("deploy", env={"PATH": str(programs)})
    assert "FAIL there is no ollama on PATH" in done.stderr and "Error 7" in done.stderr
    assert started(done.stdout) == []
