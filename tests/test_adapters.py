"""DoRA and rank-stabilised LoRA through the chain: trained, resumed, merged as their formulas say, verified.

DoRA (Liu et al. 2024) learns the length of each row of a weight apart from its direction; rsLoRA (Kalajdzievski 2023)
scales by lora_alpha / sqrt(r) instead of lora_alpha / r.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import PAGES, read_rows
from forge import files

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
ADAPTER = "models/bees-adapter"
RANK, ALPHA = 4, 6
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "both": {"use_rslora": True, "use_dora": True},
}


def configure(folder: Path, base: Path, lora: dict, **training: object) -> None:
    values = {
        "project": {"name": "bees", "system_prompt": "You are Maja."},
        "model": {"base_model_name": str(base)},
        "data": {
            "sources": [{"kind": "documents", "path": "documents"}, {"kind": "records", "path": "pairs.jsonl"}],
            "max_tokens": 256,
            "thresholds": {"minimum_training_rows": 4},
        },
        "lora": {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, **lora},
        "training": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "learning_rate": 0.01,
            "max_length": 256,
            "eval_steps": 2,
            "save_steps": 2,
            "canary_steps": 0,
            "logging_steps": 1,
            **training,
        },
        "evaluation": {"heldout_rows": 4, "questions": 2, "max_new_tokens": 8, "minimum_stop_rate": 0.0},
    }
    (folder / "config/test.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


@pytest.fixture(scope="module")
def ready(tmp_path_factory, tiny_base, warm) -> Path:
    """A folder whose dataset (pages and pairs) is made and validated."""
    folder = tmp_path_factory.mktemp("ready")
    for name in ("documents", "config"):
        (folder / name).mkdir()
    for name, text in PAGES.items():
        (folder / "documents" / name).write_text(text, encoding="utf-8")
    pairs = [
        {"prompt": f"Is {n} more than ten?", "chosen": "Yes." if n > 10 else "No.", "rejected": f"It is {n}."}
        for n in range(20)
    ]
    files.write_jsonl(folder / "pairs.jsonl", pairs)
    configure(folder, tiny_base, {})
    for script in ("download_model.py", "forge_dataset.py", "validate_dataset.py"):
        done = warm.run(folder, script, "--config", "config/test.yaml")
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def work(ready, tmp_path) -> Path:
    return Path(shutil.copytree(ready, tmp_path / "work", symlinks=True))


def tensors(folder: Path) -> dict:
    """Every weight in the files of a folder."""
    from safetensors.torch import load_file

    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_what_the_formula_says(kind, work, tiny_base, warm):
    import torch

    configure(work, tiny_base, KINDS[kind])
    for script in ("fine_tune.py", "verify_adapter.py", "evaluate_model.py", "merge_adapter.py", "verify_merged.py"):
        done = warm.run(work, script, "--config", "config/test.yaml")
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    settings = json.loads((work / ADAPTER / "adapter_config.json").read_text(encoding="utf-8"))
    dora, rslora = "use_dora" in KINDS[kind], "use_rslora" in KINDS[kind]
    assert (settings["use_dora"], settings["use_rslora"]) == (dora, rslora)
    adapter, base, merged = tensors(work / ADAPTER), tensors(tiny_base), tensors(work / "models/merged/bees-merged")
    assert {value.dtype for value in adapter.values()} == {torch.float32}
    lengths = {name: value for name, value in adapter.items() if "lora_magnitude_vector" in name}
    assert len(lengths) == (14 if dora else 0)
    scale = ALPHA / RANK**0.5 if rslora else ALPHA / RANK
    for name in [name for name in adapter if "lora_A" in name]:
        weight = name.removeprefix("base_model.model.").replace(".lora_A", "")
        change = scale * adapter[name.replace("lora_A", "lora_B")] @ adapter[name]
        wanted = base[weight].float() + change
        if dora:
            length = lengths[name.replace("lora_A.weight", "lora_magnitude_vector")]
            wanted *= (length / wanted.norm(dim=1))[:, None]
        difference = (merged[weight].float() - wanted).abs().max() / wanted.abs().max()
        assert difference < 0.01, weight  # bfloat16 keeps 8 bits of a weight, and of the length that it divides by
        assert (base[weight].float() - wanted).abs().max() / wanted.abs().max() > 0.05, "else this shows nothing"


# What stands in for a kill: the process ends itself, without a word, right after a checkpoint was sealed.
KILLED = """
import os, runpy, sys

place, scripts = sys.argv[1], sys.argv[2]
sys.path.insert(0, scripts)
from forge.training import checkpoints

seal = checkpoints.seal

def die(folder):
    seal(folder)
    if f"{folder.parent.name}/{folder.name}" == place:
        os._exit(137)

checkpoints.seal = die
sys.argv = ["fine_tune.py", "--config", "config/test.yaml"]
runpy.run_path(f"{scripts}/fine_tune.py", run_name="__main__")
"""


@pytest.mark.parametrize("place", ["sft/checkpoint-4", "dpo/checkpoint-2"])
def test_lengths_survive_a_kill_bit_for_bit(place, work, tiny_base, warm):
    import torch

    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 0.001}
    configure(work, tiny_base, {"use_dora": True, "lora_dropout": 0.05}, stages=["sft", "dpo"], preference=settings)
    command = [sys.executable, "-c", KILLED, place, str(ROOT / "scripts")]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 137, done.stdout + done.stderr
    [kept] = (work / "models/checkpoints/bees").glob(f"*/{place}")
    found = {name: value for name, value in tensors(kept).items() if "lora_magnitude_vector" in name}
    assert len(found) == 14 and {value.dtype for value in found.values()} == {torch.float32}
    done = warm.run(work, "fine_tune.py", "--config", "config/test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resuming from {kept.name}" in done.stdout
    resumed = tensors(work / ADAPTER)
    assert any(not torch.equal(found[name], resumed[name]) for name in found), "lengths are learned"
    assert not [name for name in resumed if "ref" in name.split(".")]
    first = next(row for row in read_rows(work / ADAPTER / "metrics.jsonl") if row["stage"] == "dpo" and "loss" in row)
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3), "the reference is the adapter that sft trained"
    done = warm.run(work, "fine_tune.py", "--config", "config/test.yaml", "--force")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming" not in done.stdout
    whole = tensors(work / ADAPTER)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
