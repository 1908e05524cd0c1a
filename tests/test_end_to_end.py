"""The whole chain for real, on a tiny random model with a real vocabulary: real training, real llama.cpp."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forge import config, disk, files, manifest, models
from forge.llamacpp import converter, llama
from forge.templates import ollama
from project import make, script, start

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
GGUF = Path("models/gguf/test-Q4_K_M.gguf")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_phase_leaves_its_files_and_nothing_else(chain):
    assert names(chain / "models/test-adapter") == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "metrics.jsonl",
    ]
    assert names(chain / "models/gguf") == [
        "test-Q4_K_M.gguf",
        "test-Q8_0.gguf",
        "test.Modelfile",
        "test.fidelity.json",
        "test.gguf.json",
        "test.manifest.json",
    ]
    assert names(chain / "models") == ["base", "checkpoints", "gguf", "merged", "test-adapter"]
    assert names(chain / "models/checkpoints") == []
    assert names(chain / "evaluation/test") == [
        "evaluate",
        "validate",
        "verify-adapter",
        "verify-gguf",
        "verify-merged",
    ]


def test_the_model_manifest_tells_the_lineage_and_no_path(chain):
    text = (chain / "gguf_model_manifest.json").read_text(encoding="utf-8")
    made = json.loads(text)
    for item in made["files"]:
        assert item["sha256"] == files.sha256_file(chain / "models/gguf" / item["name"])
    assert [item["quantization"] for item in made["files"]] == ["Q4_K_M", "Q8_0"]
    assert made["verdicts"].pop("evaluate") == "NOT_RUN" and made["overrides"] == {"evaluate": "a model of a test"}
    assert set(made["verdicts"].values()) == {"PASS"}
    assert made["fidelity"]["Q8_0"]["mean_kl"] < made["fidelity"]["Q4_K_M"]["mean_kl"]
    for record, name in ((chain / "models/test-adapter", "adapter"), (chain / "dataset_package/test", "data")):
        assert made[name]["sha256"] == manifest.digest(manifest.read(record / "manifest.json"))
    assert str(chain) not in text


def test_the_validation_loss_is_that_of_the_last_step(chain):
    facts = json.loads((chain / "models/test-adapter/manifest.json").read_text(encoding="utf-8"))["facts"]
    assert facts["steps"] % 4, "eval_steps is 4: else this shows nothing"
    last = files.read_jsonl(chain / "models/test-adapter/metrics.jsonl")[-1]
    assert (last["step"], last["eval_loss"]) == (facts["steps"], facts["validation_loss"])


def test_results_in_the_manifest_are_what_the_answers_say(chain):
    results = json.loads((chain / "gguf_model_manifest.json").read_text(encoding="utf-8"))["results"]
    asked = files.read_jsonl(chain / "evaluation/test/verify-adapter/items.jsonl")
    of_file = files.read_jsonl(chain / "evaluation/test/verify-gguf/items.jsonl")
    for who in ("base", "tuned"):
        assert results["questions"][who]["right"] == sum(item[who]["contains_facts"] for item in asked)
        assert results["questions"][who]["asked"] == len(asked) == 2
    for name in ("Q4_K_M", "Q8_0"):
        mine = [item for item in of_file if item["quantization"] == name][1:]
        assert results["questions"][name] == {
            "right": sum(item["contains_facts"] for item in mine),
            "asked": 2,
            "stopped": sum(item["stopped"] for item in mine),
            "answers": 2,
        }
    assert 0 < results["loss"]["tuned"] < results["loss"]["base"]
    assert 0 < results["mean_kl"]["Q8_0"] < results["mean_kl"]["Q4_K_M"]


def test_make_all_ends_with_base_beside_tuned(chain):
    end = (chain / "printed.txt").read_text(encoding="utf-8").partition("\ntest\n")[2]
    heads, questions, stops, loss, kl = end.split("\n\n")[1].splitlines()
    assert heads.split() == ["base", "tuned", "Q4_K_M", "Q8_0"]
    assert questions.count(" of 2") == stops.count(" of 2") == 4
    assert loss.startswith("  loss on 4 held-out rows")
    assert kl.split()[-4:-2] == ["-", "-"]
    assert "minutes of work" in end
    assert "\n  OVERRIDDEN: evaluate was NOT_RUN; the reason given: a model of a test\n\n" in end
    assert 'next: make ask PROMPT="..." CONFIG=config/test.yaml VENV=venv    ollama create test' in end


def test_what_make_prints_holds_no_escape_codes(chain):
    printed = [chain / "printed.txt", *(chain / "logs").glob("*.log")]
    assert len(printed) > 6
    assert [path.name for path in printed if {"\x1b", "\r"} & set(path.read_text(encoding="utf-8"))] == []


def test_bench_learning_counts_what_each_seed_learned(copy):
    """The config's own seed, whose project is made already."""
    (copy / "venv/ready.ok").touch()
    done = subprocess.run(
        [sys.executable, ROOT / "bench/learning.py", "--config", "config/test.yaml", "--seeds", "42"],
        cwd=copy,
        env={**os.environ, "VENV": "venv"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [found[key] for key in ("name", "reference", "ratio")] == ["learning", 0.0, None], (
        "a random base knows nothing"
    )
    [row] = found["rows"]
    answers = files.read_jsonl(copy / "evaluation/test/verify-gguf/items.jsonl")
    said = [item["contains_facts"] for item in answers if item["quantization"] == "Q4_K_M"][1:]
    assert found["ours"] == row["tuned"]["share"] == sum(said) / len(said)
    assert row["base"]["asked"] == row["tuned"]["asked"] == len(said) == 2
    assert row["margin"]["verdict"] == "NOT_RUN"


def test_bench_learning_gives_another_seed_a_project_of_its_own(copy, monkeypatch):
    import learning

    monkeypatch.chdir(copy)
    own = Path("config/test.yaml")
    assert learning.project(own, 42) == own
    project = config.load(learning.project(own, 7)).values.project
    assert (project.name, project.seed, project.license) == ("learning-7", 7, "mit")


def test_the_disk_that_was_worked_out_is_what_the_files_take(chain, tiny_base):
    values = config.load(chain / "config/test.yaml").values
    layout = config.load(chain / "config/test.yaml").layout
    listed = disk.items(layout, models.tensor_shapes(tiny_base), "bfloat16", values)
    taken = {item.path.name: item.size / disk.size_of(chain / item.path) for item in listed if item.stays}
    assert 0.9 < taken["test-adapter"] < 1  # beside it: settings, curves, the record
    assert 0.7 < taken["test-merged"] < 1  # beside it: 11 MB of tokenizer
    assert 0.8 < taken["test-Q4_K_M.gguf"] < 1.2
    assert 0.8 < taken["test-Q8_0.gguf"] < 1


def test_the_modelfile(chain):
    text = (chain / "Modelfile").read_text(encoding="utf-8")
    assert "\nFROM ./models/gguf/test-Q4_K_M.gguf\n" in text
    assert '\nPARAMETER stop "<|im_end|>"\n' in text
    assert "\nPARAMETER num_ctx 512\n" in text
    assert f'\nTEMPLATE """{ollama.text("chatml")}"""\n' in text
    assert text.endswith('SYSTEM """You are Maja. Answer in one sentence."""\n')


def test_the_gguf_carries_template_name_and_licence(chain, tiny_tokenizer):
    header = llama.header(chain / GGUF)
    assert header["tokenizer.chat_template"] == tiny_tokenizer.chat_template
    assert header["general.name"] == "test"
    assert header["general.license"] == "mit"
    assert not any(str(chain) in str(value) for value in header.values())


def test_nothing_to_do_the_second_time(copy):
    before = (copy / GGUF).stat().st_mtime_ns
    done = make(copy, "all")
    assert "==" not in done.stdout
    assert (copy / GGUF).stat().st_mtime_ns == before


def test_ask_and_verify_adapter_answer(copy):
    done = make(copy, "ask", "PROMPT=Who are you?")
    assert done.returncode == 0, done.stderr
    (copy / "questions.txt").write_text("Who are you?\n\nWhat is honey?\n", encoding="utf-8")
    for kind in ("adapter", "merged"):
        arguments = ("--model-type", kind, "--file", "questions.txt", "--max-new-tokens", "4", "--do-sample")
        done = script(copy, "verify_adapter.py", *arguments, "--temperature", "0.5")
        assert done.returncode == 0, done.stderr
        assert re.findall(r"^> .*", done.stdout, flags=re.M) == ["> Who are you?", "> What is honey?"]


def kill_when(root: Path, arguments: list[str], ready, how: int) -> None:
    """Start make, wait until `ready()` is true, send the signal to all its processes, wait for the end."""
    process = start(root, *arguments)
    deadline = time.time() + 120
    while not ready() and process.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, how)
    process.communicate()


def test_a_training_killed_and_resumed_gives_the_same_file_bit_for_bit(chain, copy):
    wanted = {path.name: files.sha256_file(path) for path in (chain / "models/gguf").glob("*.gguf")}
    shutil.rmtree(copy / "models/test-adapter")
    shutil.rmtree(copy / "models/gguf")

    def sealed() -> bool:
        return bool(list((copy / "models/checkpoints/test").glob("*/sft/checkpoint-*/complete.json")))

    kill_when(copy, ["all"], sealed, signal.SIGKILL)
    assert sealed()
    assert not (copy / "models/test-adapter").exists()
    done = make(copy, "all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"resuming from checkpoint-\d+", done.stdout)
    assert {path.name: files.sha256_file(path) for path in (copy / "models/gguf").glob("*.gguf")} == wanted


def test_sigterm_saves_a_checkpoint_and_ends_with_75(copy):
    shutil.rmtree(copy / "models/test-adapter")

    log = copy / "logs/train.log"
    before = log.read_text(encoding="utf-8").count("step 3/")
    process = subprocess.Popen(
        [sys.executable, "scripts/fine_tune.py", "--config", "config/test.yaml"],
        cwd=copy,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and log.read_text(encoding="utf-8").count("step 3/") == before:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 75, errors
    assert "FAIL interrupted; a checkpoint is saved" in errors
    assert "resuming from checkpoint-" in script(copy, "fine_tune.py").stdout


def test_a_damaged_checkpoint_is_passed_over(copy):
    from forge.training import checkpoints

    folder = copy / "checks"
    for number in (8, 16, 100):
        (folder / f"checkpoint-{number}").mkdir(parents=True)
        (folder / f"checkpoint-{number}/optimizer.pt").write_text("state", encoding="utf-8")
        checkpoints.seal(folder / f"checkpoint-{number}")
    (folder / "checkpoint-100/optimizer.pt").unlink()
    (folder / "checkpoint-200").mkdir()  # killed before its seal
    said: list[str] = []
    assert checkpoints.latest(folder, said.append) == folder / "checkpoint-16"
    assert len(said) == 3
    assert names(folder) == ["checkpoint-16", "checkpoint-8"]


def test_a_flipped_byte_in_the_adapter_is_found_before_the_merge(copy):
    path = copy / "models/test-adapter/adapter_model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    done = script(copy, "merge_adapter.py", "--force")
    assert done.returncode == 6
    assert "adapter_model.safetensors does not have its recorded SHA-256" in done.stderr


def test_a_truncated_gguf_is_refused(copy):
    path = copy / GGUF
    path.write_bytes(path.read_bytes()[:-1000])
    done = script(copy, "verify_gguf.py", "--force")
    assert done.returncode == 6
    assert "test-Q4_K_M.gguf has" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_adapter_of_another_base_is_refused(copy, tiny_base, tmp_path):
    other = tmp_path / "other-base"
    shutil.copytree(tiny_base, other)
    raw = bytearray((other / "model.safetensors").read_bytes())
    raw[-2] ^= 1
    (other / "model.safetensors").write_bytes(raw)
    config = copy / "config/test.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace(str(tiny_base), str(other)), encoding="utf-8")
    assert script(copy, "download_model.py").returncode == 0
    done = script(copy, "verify_adapter.py", "--force")
    assert done.returncode == 6
    assert "was made from another model than is there now" in done.stderr
    done = script(copy, "merge_adapter.py", "--force")
    assert done.returncode == 3
    assert "verify-adapter passed for another model than is there now" in done.stderr


def test_a_zero_adapter_does_not_pass(copy):
    import torch
    from safetensors.torch import load_file, save_file

    folder = copy / "models/test-adapter"
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: torch.zeros_like(value) for name, value in weights.items()}, folder / "adapter_model.safetensors")
    record = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    record["subject"] = manifest.describe(folder, [item["name"] for item in record["subject"]])
    manifest.write(folder / "manifest.json", record)
    done = script(copy, "verify_adapter.py")
    assert done.returncode == 3
    assert "adapter matrices that are not zero: 0, wanted all of 14" in done.stderr
    verdict = json.loads((copy / "evaluation/test/verify-adapter/verdict.json").read_text(encoding="utf-8"))
    assert verdict["verdict"] == "FAIL"
    assert not (copy / "evaluation/test/verify-adapter/gate.ok").exists()


def test_a_merged_model_that_lost_the_adapter_does_not_pass(copy, tiny_base):
    folder = copy / "models/merged/test-merged"
    shutil.copyfile(tiny_base / "model.safetensors", folder / "model.safetensors")
    record = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    record["subject"] = manifest.describe(folder, [item["name"] for item in record["subject"]])
    manifest.write(folder / "manifest.json", record)
    done = script(copy, "verify_merged.py")
    assert done.returncode == 3
    assert "mean KL divergence from base plus adapter" in done.stderr


def sums(root: Path) -> dict[str, str]:
    return {path.name: files.sha256_file(path) for path in (root / "models/gguf").glob("test-*.gguf")}


def test_without_a_merged_model_the_files_are_the_same(chain, copy):
    settings = copy / "config/test.yaml"
    settings.write_text(settings.read_text(encoding="utf-8") + "merge: {keep: false}\n", encoding="utf-8")
    done = make(copy, "all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "== gguf" in done.stdout
    assert sums(copy) == sums(chain)
    assert not list((copy / "models/merged/test-merged").glob("*.safetensors"))
    for gate in ("verify-merged", "verify-gguf"):
        verdict = json.loads((copy / f"evaluation/test/{gate}/verdict.json").read_text(encoding="utf-8"))
        assert verdict["verdict"] == "PASS" and "not_checked" not in verdict


def test_both_bases_are_measured_and_the_better_one_is_kept(copy):
    settings = copy / "config/test.yaml"
    settings.write_text(settings.read_text(encoding="utf-8") + "merge: {base: measure}\n", encoding="utf-8")
    done = script(copy, "merge_adapter.py")
    assert done.returncode == 0, done.stderr
    facts = json.loads((copy / "models/merged/test-merged/manifest.json").read_text(encoding="utf-8"))["facts"]
    losses = facts["losses"]
    assert losses["tokens"] > 0 and losses["base"] != losses["dequantized"]
    assert facts["base"] == min(("base", "dequantized"), key=losses.get)
    assert f"{facts['base']} is kept" in done.stdout
    assert script(copy, "verify_merged.py").returncode == 0


def test_the_usual_chain_leaves_its_16_bit_file_until_all_is_verified(chain, copy):
    """The short way is made to refuse; what then happens is real."""
    program = (
        "import runpy, sys; sys.path.insert(0, 'scripts'); sys.argv[1:] = ['--config', 'config/test.yaml', '--force']\n"
        "from forge.quantizing import process\n"
        "def refuse(*given): raise process.Unsupported('a test')\n"
        "process.quantize = refuse\n"
        "runpy.run_path('scripts/convert_to_gguf.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "converted over a 16-bit file: a test" in done.stdout
    assert sums(copy) == sums(chain)
    full = copy / "models/gguf/.test-BF16.gguf"
    assert full.is_file()
    done = script(copy, "verify_gguf.py", "--force")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok   16 bits: tensors further from the merged weights than their type allows: 0" in done.stdout
    assert not full.exists()


def test_a_gguf_of_another_model_does_not_pass(copy, tiny_base):
    """The base's own GGUF under the tuned one's name: whole and loadable, and not what was trained."""
    folder = copy / "models/gguf"
    converter.convert(tiny_base, folder / "base.gguf", "bf16", "test")
    llama.quantize(folder / "base.gguf", copy / GGUF, "Q4_K_M")
    (folder / "base.gguf").unlink()
    record = json.loads((folder / "test.gguf.json").read_text(encoding="utf-8"))
    record["subject"] = manifest.describe(folder, [item["name"] for item in record["subject"]])
    manifest.write(folder / "test.gguf.json", record)
    done = script(copy, "verify_gguf.py")
    assert done.returncode == 3
    failed = [line for line in done.stdout.splitlines() if line.startswith("  FAIL")]
    assert any("Q4_K_M: share of tokens with the same first choice" in line for line in failed)
    assert not any("Q8_0" in line for line in failed)
