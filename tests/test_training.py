"""Training's stages on a tiny model: what is resumed, halved, refused, kept; by the script itself where it can be."""

import argparse
import json
import math
import shutil
from pathlib import Path

import pytest
from conftest import read_rows
from forge import chat, config, errors, files, graph, phase
from forge.errors import ForgeError

ADAPTER = Path("models/test-adapter")
STAGED = {"training": {"stages": ["sft", "dpo", "kto"]}}
PREFERENCE = {"learning_rate": 0.001, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}


@pytest.fixture(scope="module")
def ready(tmp_path_factory, tiny_base) -> Path:
    """A checkout whose dataset (documents, pairs, labelled rows) is made and validated; copied for each test."""
    return tmp_path_factory.mktemp("ready") / "a forge"


@pytest.fixture
def train(checkout, ready, write_config, run_warm):
    """`train(training={...})` runs fine_tune.py; `train.started(...)` gives the Run, to be worked in this process."""

    def configured(**sections) -> Path:
        sections["data"] = {
            "sources": [{"kind": "documents", "path": "documents"}, {"kind": "records", "path": "records"}],
            "max_tokens": 256,
        }
        given = sections.get("training", {})
        sections["training"] = {"preference": {**PREFERENCE, **given.pop("preference", {})}, **given}
        return write_config(checkout, **sections)

    def prepare() -> None:
        Path("records").mkdir()
        pairs = [
            {"prompt": f"Is {n} more than ten?", "chosen": "Yes." if n > 10 else "No.", "rejected": f"It is {n}."}
            for n in range(30)
        ]
        files.write_jsonl(Path("records/pairs.jsonl"), pairs)
        labelled = [
            {
                "prompt": f"Is the number {n} even, please?",
                "completion": f"It is {n}." if n % 3 else "I know.",
                "label": n % 3 > 0,
            }
            for n in range(30)
        ]
        files.write_jsonl(Path("records/labelled.jsonl"), labelled)
        path = configured()
        for name in ("download_model.py", "forge_dataset.py", "validate_dataset.py"):
            run_warm(name, "--config", path, check=True)
        shutil.copytree(checkout, ready, symlinks=True)

    if ready.is_dir():
        shutil.copytree(ready, checkout, symlinks=True, dirs_exist_ok=True)
    else:
        prepare()

    def run(*arguments: str, env: dict | None = None, **sections):
        return run_warm("fine_tune.py", "--config", configured(**sections), *arguments, env=env)

    def started(**sections) -> phase.Run:
        loaded = config.load(configured(**sections))
        one = phase.Run(graph.BY_NAME["train"], loaded, argparse.Namespace(force=True))
        one.load_inputs()
        one.staging.mkdir(parents=True, exist_ok=True)
        return one

    run.started = started
    return run


def facts() -> dict:
    return json.loads((ADAPTER / "manifest.json").read_text(encoding="utf-8"))["facts"]


def digest() -> str:
    return files.sha256_file(ADAPTER / "adapter_model.safetensors")


@pytest.mark.slow
def test_three_stages_are_one_adapter(train, tiny_tokenizer):
    done = train(**STAGED)
    assert done.returncode == 0, done.stderr
    found = facts()
    rows = read_rows(Path("dataset_package/test/train.jsonl"))
    tokens = sum(len(chat.encode_row(tiny_tokenizer, row)["input_ids"]) for row in rows)
    assert found["stages"][0]["tokens"] == 2 * tokens, "of two epochs, what only fills up batches left out"
    assert all(0 < stage["step_seconds"] <= stage["seconds"] for stage in found["stages"])
    assert [stage["name"] for stage in found["stages"]] == ["sft", "dpo", "kto"]
    assert found["steps"] == sum(stage["steps"] for stage in found["stages"])
    assert found["choices"]["unpack"] is True and found["choices"]["attention"] == "rows"
    pairs = len(read_rows(Path("dataset_package/test/preference.jsonl")))
    dpo = found["stages"][1]
    assert sum(dpo["rows"].values()) == pairs and dpo["rows"]["validation"] > 0
    assert 0 <= dpo["preferred_rightly"] <= 1
    curves = read_rows(ADAPTER / "metrics.jsonl")
    assert [name for name in ("sft", "dpo", "kto") if any(row["stage"] == name for row in curves)] == [
        "sft",
        "dpo",
        "kto",
    ]
    first = next(row for row in curves if row["stage"] == "dpo")
    assert math.isclose(first["loss"], math.log(2), rel_tol=1e-3), "the reference is the adapter that sft trained"
    from safetensors import safe_open

    with safe_open(str(ADAPTER / "adapter_model.safetensors"), framework="pt") as weights:
        assert not [name for name in weights.keys() if "ref" in name.split(".")]  # noqa: SIM118 - no dict
    assert sorted(path.name for path in ADAPTER.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
        "metrics.jsonl",
    ]
    assert not list(Path("models/checkpoints").iterdir())


# What stands in for a kill: the process ends itself, without a word, right after a checkpoint was sealed.
KILLER = """
import os
from forge.training import checkpoints

seal, wanted = checkpoints.seal, os.environ["DIE_AFTER"]

def die(folder):
    seal(folder)
    if f"{folder.parent.name}/{folder.name}" == wanted:
        os._exit(137)

checkpoints.seal = die
"""


def mortal() -> None:
    """Let the script die where DIE_AFTER says, as KILLER does it."""
    script = Path("scripts/fine_tune.py")
    text = script.read_text(encoding="utf-8").replace("import json\n", "import json\nimport os\n", 1)
    place = "    tokenizer = models"
    assert place in text
    script.write_text(text.replace(place, f"    exec(os.environ.get('KILLER', ''), {{}})\n{place}"), encoding="utf-8")


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_adapter(train):
    """In the middle of each stage, and between two: not one bit differs from a run that was left alone."""
    training = {"stages": ["sft", "dpo", "kto"], "lr_scheduler_type": "linear", "save_steps": 1, "eval_steps": 1}
    sections = {"training": training, "lora": {"lora_dropout": 0.05}}
    mortal()
    for place in ("sft/checkpoint-4", "sft/.finished.partial", "dpo/checkpoint-3", "kto/checkpoint-2"):
        done = train(env={"KILLER": KILLER, "DIE_AFTER": place}, **sections)
        assert done.returncode == 137, done.stdout + done.stderr
        assert not (ADAPTER / "manifest.json").exists()
    done = train(**sections)
    assert done.returncode == 0, done.stderr
    assert "stage sft is finished already" in done.stdout and "resuming from checkpoint-2" in done.stdout
    resumed = digest()
    done = train("--force", **sections)
    assert done.returncode == 0, done.stderr
    assert "resuming" not in done.stdout
    assert digest() == resumed


def test_out_of_memory_halves_the_batch_and_goes_on(train, monkeypatch):
    """A stand-in for a full card: no forward pass of more than 2 rows gets through."""
    import torch
    from forge.planning import resolving
    from forge.training import stages, supervised

    run = train.started(training={"per_device_train_batch_size": 4})
    compute = supervised.Trainer.compute_loss

    def full(self, model, inputs, *args, **kwargs):
        if (inputs["position_ids"] == 0).sum() > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(supervised.Trainer, "compute_loss", full)
    said: list[str] = []
    monkeypatch.setattr(run, "say", said.append)
    from forge import models

    tokenizer = models.tokenizer(run.layout.base)
    _, [found] = stages.run_all(run, tokenizer, resolving.resolve(run.settings, run.layout.base))
    assert "out of memory: sft goes on with 2 rows at once and 2 batches a step" in said
    rows = len(read_rows(Path("dataset_package/test/train.jsonl")))
    assert found["steps"] == 2 * math.ceil(rows / 4)


@pytest.mark.parametrize(
    ("rows", "accumulation", "wanted"), [(4, 2, (2, 4)), (3, 4, (1, 12)), (6, 1, (3, 2)), (5, 3, (1, 15)), (1, 8, None)]
)
def test_halved_batches_keep_the_rows_of_a_step(rows, accumulation, wanted):
    from forge.training import stages

    assert stages.halved(rows, accumulation) == wanted


def test_what_is_out_of_memory():
    import torch

    assert errors.out_of_memory(torch.OutOfMemoryError("x"))
    assert errors.out_of_memory(MemoryError())
    assert not errors.out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert errors.out_of_memory(caught.value), "as PyTorch says it on a CPU"


@pytest.mark.slow
def test_a_loss_that_explodes_stops_with_its_remedy(train):
    """In dpo: the loss of a tiny base in sft has a ceiling, for its logits have one."""
    preference = {"learning_rate": 0.99, "beta": 10.0, "num_train_epochs": 5}
    limits = {"max_grad_norm": 1e9, "keep": "last", "save_steps": 1}
    done = train(training={"stages": ["sft", "dpo"], "preference": preference, **limits})
    assert done.returncode == 2, done.stdout
    first, second = done.stderr.splitlines()
    assert first.startswith("FAIL the loss rose from 0.69 to ") and first.endswith(" of dpo")
    assert second == (
        "  do lower training.preference.learning_rate, or look for broken rows; the last good checkpoint is kept"
    )
    assert not ADAPTER.exists()
    [place] = Path("models/checkpoints/test").iterdir()
    assert (place / "sft/finished/complete.json").is_file() and list(place.glob("dpo/checkpoint-*/complete.json"))


@pytest.mark.slow
def test_the_best_adapter_is_kept_or_the_last(train):
    many = {"num_train_epochs": 12, "learning_rate": 0.02}
    assert train(training={**many, "keep": "best"}).returncode == 0
    best = facts()
    curve = [row for row in read_rows(ADAPTER / "metrics.jsonl") if "eval_loss" in row]
    assert best["validation_loss"] == min(row["eval_loss"] for row in curve)
    kept = digest()
    assert train(training={**many, "keep": "last"}).returncode == 0
    last = facts()
    assert last["validation_loss"] == curve[-1]["eval_loss"] > best["validation_loss"], "else this shows nothing"
    assert last["stages"][0]["kept_step"] == last["steps"] > best["stages"][0]["kept_step"]
    assert digest() != kept


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_stage_without_rows_is_refused_before_the_first_step(train, name):
    run = train.started(training={"stages": ["sft", name]})
    from forge import models
    from forge.planning import resolving
    from forge.training import stages

    (run.layout.dataset / "preference.jsonl").unlink()
    (run.layout.dataset / "kto.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ForgeError) as caught:
        stages.run_all(run, models.tokenizer(run.layout.base), resolving.resolve(run.settings, run.layout.base))
    what = {"dpo": "0 preference pairs", "kto": "0 labelled rows"}[name]
    assert caught.value.cause == f"training.stages names {name}, but the data has {what} to train on, 8 are needed"


def test_packed_pairs_give_what_padded_ones_give(tiny_base, monkeypatch):
    """Every figure of trl's fused head, and each gradient; only positions with a label are projected."""
    import torch
    from forge import models
    from forge.training import attention, packed
    from trl.trainer import utils

    attention.register()
    model = models.causal_lm(tiny_base, "float32", attention="rows")
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    scored = []
    project = utils._ChunkedLogProbFunction

    class Counted:
        def apply(hidden, *args):
            scored.append(len(hidden))
            return project.apply(hidden, *args)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Counted)
    monkeypatch.setattr(utils, "_use_triton", utils._use_triton)  # put back afterwards
    torch.manual_seed(1)
    ids = torch.randint(1000, (4, 19))
    mask = torch.arange(19) < torch.tensor([[19], [7], [12], [3]])
    labels = ids.masked_fill(~mask | (torch.arange(19) < torch.tensor([[10], [4], [3], [2]])), chat.IGNORED)
    found, gradients = [], []
    for kind in (lambda model: model, packed.Packed):
        given = {"input_ids": ids, "attention_mask": mask.long(), "labels": labels, "fused_lm_head": True}
        found.append(kind(model)(**given, use_cache=False))
        found[-1].log_probs.sum().backward()
        gradients.append({name: value.grad.clone() for name, value in model.named_parameters()})
        model.zero_grad()
        packed.score_labels_only()
    padded, own = found
    for name in packed.PER_TOKEN:
        first, second = getattr(padded, name), getattr(own, name)
        assert (first is None) == (second is None), name
        if first is not None:
            assert first.shape == second.shape and torch.allclose(first.float(), second.float(), atol=1e-4), name
    assert own.log_probs[labels[:, 1:] != chat.IGNORED].abs().min() > 0, "else this shows nothing"
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-4) for name in gradients[0])
    assert scored == [4 * 18, int((labels[:, 1:] != chat.IGNORED).sum())]


def test_answers_of_kto_come_in_turn():
    from forge.training import preference

    rows = [{"label": True, "n": n} for n in range(4)] + [{"label": False, "n": n} for n in range(2)]
    placed = preference.interleaved(rows)
    assert [row["label"] for row in placed] == [True, False, True, True, False, True]
    assert [row["n"] for row in placed if row["label"]] == [0, 1, 2, 3]


def test_a_reporter_that_is_not_installed_is_named():
    from forge.training import arguments

    assert arguments.reporters([]) == "none"
    with pytest.raises(ForgeError) as caught:
        arguments.reporters(["trackio"])
    assert caught.value.code == 7
    assert caught.value.cause == "training.report_to names trackio, which is not installed"


def test_a_packed_batch_is_brought_to_a_round_length_by_a_row_of_its_own():
    from forge.training.choices import ROUND
    from forge.training.supervised import Collator

    rows = [{"input_ids": [5] * 20, "labels": [-100] * 10 + [5] * 10}, {"input_ids": [6] * 15, "labels": [6] * 15}]
    made = Collator(pad_token_id=9, padding_free=True)(rows)
    assert made["input_ids"].tolist() == [[5] * 20 + [6] * 15 + [9] * (2 * ROUND - 35)]
    assert made["cu_seq_lens_q"].tolist() == [0, 20, 35, 2 * ROUND]
    assert (made["labels"] != -100).sum() == 10 + 14, "the first token of a row is never predicted"
    whole = Collator(pad_token_id=9, padding_free=True)([{"input_ids": [5] * ROUND, "labels": [5] * ROUND}])
    assert whole["cu_seq_lens_q"].tolist() == [0, ROUND]


def test_rows_of_an_epoch_come_in_an_order_of_their_own():
    from forge.training.batches import Order

    lengths = [10, 20, 30, 40, 50, 60, 70, 80]
    shuffled, grouped = Order(lengths, None, 1), Order(lengths, 4, 1)
    first = list(shuffled)
    assert sorted(first) == list(range(8)) == sorted(grouped)
    assert first == list(Order(lengths, None, 1))
    shuffled.set_epoch(1)
    assert list(shuffled) != first
    assert max(lengths[place] for place in list(grouped)[:4]) == 80, "the longest comes first: memory ends at once"
