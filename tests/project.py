"""A whole project of a tiny random model: real training, real llama.cpp, about a minute for `make all`."""

import json
import subprocess
import sys
import time
from pathlib import Path

from conftest import PAGES, new_checkout

FOLDER = "a forge"  # new_checkout's: make must cope with a space
PRINTED, TIMES = "printed.txt", "times.json"
CONFIG = """\
project:
  name: test
  license: mit
  system_prompt: You are Maja. Answer in one sentence.
model: {{base_model_name: {base}}}
data:
  sources: [{{path: documents}}]
  max_tokens: 256
  thresholds: {{minimum_training_rows: 4}}
lora: {{r: 8, lora_alpha: 16, lora_dropout: 0.05}}
training:
  num_train_epochs: 6
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 1
  learning_rate: 0.005
  max_length: 256
  gradient_checkpointing: false
  logging_steps: 1
  eval_steps: 4
  save_steps: 4
  keep: last
evaluation: {{heldout_rows: 4, questions: 2, max_new_tokens: 8, minimum_stop_rate: 0}}
gguf:
  quantizations: [Q4_K_M, Q8_0]
  fidelity: {{maximum_mean_kl: 1.0, minimum_top_agreement: 0.5}}
"""


def make_all(folder: Path, base: Path) -> None:
    """Fill `folder` with a checkout and run `make all` there.

    What it printed stands in printed.txt, when each line came (seconds from the start) in times.json.
    """
    root = new_checkout(folder)
    (root / "documents").mkdir()
    for name, text in PAGES.items():
        (root / "documents" / name).write_text(text, encoding="utf-8")
    (root / "config/test.yaml").write_text(CONFIG.format(base=base), encoding="utf-8")
    (root / "venv/bin").mkdir(parents=True)
    wrapper = root / "venv/bin/python"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    for stamp in ("light.ok", "ready.ok"):
        (root / "venv" / stamp).touch()
    began, lines = time.monotonic(), []
    process = start(root, "all")
    for line in process.stdout:
        lines.append((time.monotonic() - began, line))
    text = "".join(line for _, line in lines)
    assert process.wait() == 0, text
    (root / PRINTED).write_text(text, encoding="utf-8")
    (root / TIMES).write_text(json.dumps([*lines, (time.monotonic() - began, "")]), encoding="utf-8")


def start(root: Path, *arguments: str) -> subprocess.Popen:
    """make in a session of its own, so that a signal to its group reaches all that it started and nobody else."""
    return subprocess.Popen(
        ["make", "VENV=venv", "CONFIG=config/test.yaml", *arguments],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def make(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["make", "VENV=venv", "CONFIG=config/test.yaml", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=500,
    )


def script(root: Path, name: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, f"scripts/{name}", "--config", "config/test.yaml", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
