"""What the tests share: a tiny base model, a checkout to work in, a config for it, and a way to run a script."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from forge.llamacpp import llama

ROOT = Path(__file__).resolve().parents[1]
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background, too, and after forge's import
pytest.register_assert_rewrite("harm", "project")

# `make test` hands its own settings down: the tests' makes and scripts must not see them.
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "VENV", "CONFIG", "PROMPT"):
    os.environ.pop(name, None)
# Models of random weights learn nothing that an evaluation could pass; tests of the evaluation take this away.
os.environ["OVERRIDE_REASON"] = "a model of a test"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

PAGES = {
    "bees.md": """\
# Bees

## Hives

A hive holds one queen and many workers. The workers build the combs from wax.

## Questions

Q: Who are you?
Q: What is your name?
Q: Tell me who you are.
A: I am **Maja**, who knows about bees.

Q: How many queens live in a hive?
Q: What is the number of queens in a hive?
A: **One** queen lives in a hive.
""",
    "honey.md": """\
# Honey

## Making

Bees carry nectar home and dry it with their wings. What is left is honey.

| kind   | colour |
|--------|--------|
| clover | light  |
| heath  | dark   |

## Questions

Q: What is honey made from?
Q: Which liquid do bees turn into honey?
A: Honey is made from **nectar**.

Q: Which honey is dark?
Q: Name a dark honey.
A: Honey of the **heath** is dark.
""",
    "garden notes.md": """\
# Garden

## Spring

Sow clover in March. Water it in the evening, when the sun is low.

```sh
sow --seed clover --month 3
```

## Questions

Q: When is clover sown?
Q: In which month do I sow clover?
A: Clover is sown in **March**.

Q: When should I water?
Q: At what time of day is the garden watered?
A: Water in the **evening**.
""",
}


@pytest.fixture(autouse=True)
def environment():
    """What a phase that runs inside a test sets for its libraries (no Hub, no bars) is no other test's."""
    kept = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(kept)


def once(tmp_path_factory, name: str, make) -> Path:
    """A folder that `make(folder)` fills once for all of pytest's processes: treat what is in it as read-only."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a try that failed in another process
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A folder with a random Qwen2 of 2 layers on Qwen2's real vocabulary.

    256 wide, so that llama.cpp's K-quants, which work on blocks of 256, are real ones.
    """
    return once(tmp_path_factory, "tiny-base", lambda folder: make_tiny_base(folder / "tiny-qwen2")) / "tiny-qwen2"


def make_tiny_base(folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    vocabulary = llama.source() / "models/ggml-vocab-qwen2.gguf"
    tokenizer = AutoTokenizer.from_pretrained(str(vocabulary.parent), gguf_file=vocabulary.name)
    tokenizer.chat_template = CHATML
    tokenizer.bos_token = None
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.to(torch.bfloat16).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_gguf(tiny_base, tmp_path_factory) -> Path:
    """The tiny model as a 16-bit GGUF."""
    from forge.llamacpp import converter

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    converter.convert(tiny_base, path, "bf16", "tiny")
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_base):
    from forge import models

    return models.tokenizer(tiny_base)


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout of its own, its path with a space, the current folder; its corpus has one page."""
    root = new_checkout(tmp_path)
    monkeypatch.chdir(root)
    return root


def new_checkout(folder: Path) -> Path:
    root = folder / "a forge"
    for name in ("scripts", "config"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    for name in ("Makefile", "Modelfile.template", "requirements-finetuning.txt", "requirements-dev.txt"):
        shutil.copy2(ROOT / name, root / name)
    (root / "scenarios").mkdir()
    shutil.copy2(ROOT / "scenarios/canary.jsonl", root / "scenarios/canary.jsonl")
    (root / "corpus").mkdir()
    (root / "corpus/page.md").write_text("# Page\n\nOne sentence.\n", encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def chain(tmp_path_factory, tiny_base) -> Path:
    """A checkout of a tiny model, its path with a space, in which `make all` ran once."""
    import project

    return once(tmp_path_factory, "chain", lambda folder: project.make_all(folder, tiny_base)) / project.FOLDER


@pytest.fixture
def copy(chain, tmp_path) -> Path:
    """The finished checkout, to be harmed."""
    root = tmp_path / "a copy"
    shutil.copytree(chain, root, symlinks=True)
    return root


@pytest.fixture
def write_config(request):
    """`write_config(checkout, training={"max_length": 128})` writes config/test.yaml and its three pages.

    Each keyword is a section, merged into small settings. `base` names another model than the tiny one, so
    that a test which loads no model need not wait for it.
    """

    def write(checkout: Path, base: str | Path | None = None, **overrides) -> Path:
        documents = checkout / "documents"
        documents.mkdir(exist_ok=True)
        for name, text in PAGES.items():
            (documents / name).write_text(text, encoding="utf-8")
        values = {
            "project": {
                "name": "test",
                "system_prompt": "You are Maja. Answer in one sentence.",
                "identity": {"question": "Who are you?", "expected": ""},
            },
            "model": {"base_model_name": str(base or request.getfixturevalue("tiny_base"))},
            "data": {
                "sources": [{"kind": "documents", "path": "documents"}],
                "max_tokens": 256,
                "thresholds": {"minimum_training_rows": 4},
            },
            "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0},
            "training": {
                "num_train_epochs": 2,
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 1,
                "learning_rate": 0.005,
                "max_length": 256,
                "gradient_checkpointing": False,
                "logging_steps": 1,
                "eval_steps": 2,
                "save_steps": 2,
            },
            "evaluation": {"heldout_rows": 4, "questions": 2, "max_new_tokens": 8, "minimum_stop_rate": 0.0},
            "gguf": {
                "quantizations": ["Q4_K_M"],
                "fidelity": {"maximum_mean_kl": 100.0, "minimum_top_agreement": 0.0},
            },
        }
        for section, changes in overrides.items():
            values[section] = {**values.get(section, {}), **changes}
        path = checkout / "config/test.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return path

    return write


@pytest.fixture
def run_script():
    """`run_script("status.py", "--config", path)` runs a script of the current folder's scripts/."""
    return runner(sys.executable)


@pytest.fixture
def run_warm(warm):
    """The same without the time of the imports (warm.py says for which tests)."""
    return runner(warm.python)


def runner(python: str | Path):
    def run(
        name: str, *arguments: str | Path, env: dict | None = None, check: bool | None = None
    ) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [python, f"scripts/{name}", *map(str, arguments)],
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=300,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def warm():
    """`warm.run(folder, "merge_adapter.py", "--config", path)`: a script, without the time of the imports."""
    from warm import Warm

    server = Warm()
    yield server
    server.close()


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
