"""What validate finds out before hours of training: each thing that would fail at the end fails here, in one line."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import validate_dataset
from conftest import CHATML
from forge import disk, models, phase, preflight
from forge.llamacpp import llama

TOKENS = 151936  # of Qwen2's vocabulary, and of the tiny model's embedding
NEWER = "a newer llama.cpp may do (LLAMA_CPP=)"
HEALTHY = [
    "end token of the chat template: <|im_end|>, wanted a special token",
    "kinds of conversation that the chat template does not render: none, wanted none (n=3)",
    "token to pad rows with: <|endoftext|>, wanted any",
    f"rows of the embedding: {TOKENS}, wanted {TOKENS} as in config.json",
    f"largest token id: {TOKENS - 1}, wanted < {TOKENS}",
    "vocabulary converted and loaded by llama.cpp: yes, wanted yes",
    f"tokens of the GGUF: {TOKENS}, wanted {TOKENS} as in the embedding",
    "metadata that differs from the model's: none, wanted none",
    "conversations that the file's template writes otherwise: none, wanted none (n=17)",
    "conversations that are split into other tokens: none, wanted none (n=17)",
    "hard texts that are split into other tokens: none, wanted none (n=21)",
    "rare texts that are split into other tokens: accents apart from their letters, an end token of other models, "
    "wanted any (n=3)",
]


@pytest.fixture
def base(tiny_base, tmp_path) -> Path:
    """A copy of the tiny model to spoil; the weights are a link until a test replaces it."""
    folder = tmp_path / "bases/spoiled"
    folder.mkdir(parents=True)
    for path in tiny_base.iterdir():
        if path.suffix == ".safetensors":
            (folder / path.name).symlink_to(path)
        else:
            shutil.copy(path, folder)
    return folder


def edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def template(base: Path, text: str) -> None:
    (base / "chat_template.jinja").write_text(text, encoding="utf-8")


def examine(base: Path, system_prompt: str = "You are Maja.") -> tuple[list[dict], list[str]]:
    return preflight.examine(base, models.tokenizer(base), system_prompt)


def failed(found: list[dict]) -> list[tuple[str, str]]:
    """Line and remedy of the checks that did not pass."""
    return [(phase.describe_check(item), item["remedy"]) for item in found if not item["passed"]]


# -- the base -----------------------------------------------------------------------------------------------------


def test_a_healthy_base(base):
    found, missing = examine(base)
    assert [phase.describe_check(item) for item in found] == HEALTHY
    assert all(item["passed"] and "remedy" not in item for item in found)
    assert missing == []


def test_a_foreign_pre_tokenizer(base):
    """GPT-2's pattern instead of Qwen2's, in a Llama: for Qwen2 transformers has a pattern of its own, whatever the
    file says."""
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    *_, bytes_of = tokenizer["pre_tokenizer"]["pretokenizers"]
    edit(base / "tokenizer.json", pre_tokenizer={**bytes_of, "use_regex": True})
    edit(base / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    edit(base / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    found, missing = examine(base)
    assert failed(found) == [
        (
            "vocabulary converted and loaded by llama.cpp: NotImplementedError: BPE pre-tokenizer was not recognized - "
            "update get_vocab_base_pre(), wanted yes",
            "take the base's tokenizer files as its makers published them, or another base; a newer llama.cpp may know "
            "it (LLAMA_CPP=)",
        )
    ]
    assert missing == []


def test_an_architecture_that_the_converter_does_not_know(base):
    edit(base / "config.json", architectures=["BioGptForCausalLM"])
    assert failed(examine(base)[0]) == [
        (
            "vocabulary converted and loaded by llama.cpp: Model BioGptForCausalLM is not supported, wanted yes",
            "choose a base whose architecture llama.cpp supports; a newer one may do (LLAMA_CPP=)",
        )
    ]


def test_what_the_converter_says_holds_no_path_of_this_run(base):
    (base / "tokenizer.model").write_bytes(b"no vocabulary")
    edit(base / "config.json", architectures=["Gemma2ForCausalLM"])
    [(line, remedy)] = failed(examine(base)[0])
    assert "model-forge-" not in line
    assert remedy == f"get the model again, or choose another base; {NEWER}"


def test_an_embedding_smaller_than_the_vocabulary(base):
    import torch
    from safetensors.torch import save_file

    (base / "model.safetensors").unlink()
    save_file({"model.embed_tokens.weight": torch.zeros(1000, 4)}, base / "model.safetensors")
    remedy = "get the model again, or choose a base whose tokenizer belongs to it"
    assert failed(examine(base)[0]) == [
        (f"rows of the embedding: 1000, wanted {TOKENS} as in config.json", remedy),
        (f"largest token id: {TOKENS - 1}, wanted < 1000", remedy),
    ]


def test_an_output_of_another_size_than_the_embedding(base):
    import torch
    from safetensors.torch import save_file

    (base / "model.safetensors").unlink()
    rows = {"model.embed_tokens": TOKENS, "lm_head": TOKENS - 1, "model.layers.0.mlp.up_proj": 8}
    save_file({f"{name}.weight": torch.zeros(n, 1) for name, n in rows.items()}, base / "model.safetensors")
    assert [line for line, _ in failed(examine(base)[0])] == [
        f"rows of the embedding: {TOKENS - 1}, {TOKENS}, wanted {TOKENS} as in config.json",
        f"largest token id: {TOKENS - 1}, wanted < {TOKENS - 1}",
    ]


def test_an_added_token_without_a_row(base):
    tokenizer = models.tokenizer(base)
    tokenizer.add_tokens(["<|more|>"], special_tokens=True)
    found, _ = preflight.examine(base, tokenizer, "")
    assert [line for line, _ in failed(found)] == [f"largest token id: {TOKENS}, wanted < {TOKENS}"]


def test_an_embedding_of_another_name_is_not_checked(base, monkeypatch):
    monkeypatch.setattr(models, "tensor_shapes", lambda folder: {"encoder.table": (7, 7)})
    monkeypatch.setattr(preflight, "check_vocabulary", lambda base, tokenizer, rows: [{"passed": True, "rows": rows}])
    found, missing = examine(base)
    assert missing == [f"rows of the embedding: no weight in {base} has a name known for it"]
    assert [phase.describe_check(item) for item in found[:-1]] == [HEALTHY[index] for index in (0, 1, 2, 4)]
    assert found[-1]["rows"] == TOKENS


def test_a_gguf_of_another_length_than_the_embedding(base, tiny_tokenizer):
    found = preflight.check_vocabulary(base, tiny_tokenizer, rows=1000)
    assert [line for line, _ in failed(found)] == [f"tokens of the GGUF: {TOKENS}, wanted 1000 as in the embedding"]


# -- the chat template --------------------------------------------------------------------------------------------

TEMPLATE_REMEDY = "choose another base, or for one without a template of its own another in model.chat_template"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            CHATML.replace("<|im_end|>", ""),
            [
                "end token of the chat template: the chat template writes no end token after an answer: the model "
                "would never stop, wanted a special token"
            ],
        ),
        (
            "{% if messages | selectattr('role', 'equalto', 'user') | list | length > 1 %}"
            "{{ raise_exception('one turn') }}{% endif %}" + CHATML,
            [
                "kinds of conversation that the chat template does not render: several turns: the chat template cannot "
                "render a conversation: one turn, wanted none (n=3)"
            ],
        ),
        (
            CHATML.replace("in messages %}", "in messages if message['role'] != 'system' %}"),
            [
                "kinds of conversation that the chat template does not render: system prompt and question: what system "
                "says is not in the text, wanted none (n=3)"
            ],
        ),
        (
            CHATML.replace("'<|im_end|>'", "('<|im_end|>' if messages | length < 3 else '')"),
            [
                "kinds of conversation that the chat template does not render: several turns: the end token carries no "
                "loss, wanted none (n=3)"
            ],
        ),
    ],
    ids=["no-end", "one-turn", "no-system", "end-lost"],
)
def test_a_template_that_does_not_do(base, text, lines):
    template(base, text)
    assert failed(examine(base)[0]) == [(line, TEMPLATE_REMEDY) for line in lines]


def test_without_a_system_prompt_the_template_need_not_know_one(tiny_tokenizer):
    found = preflight.check_template(tiny_tokenizer, "")
    assert [phase.describe_check(item) for item in found][1].endswith("none, wanted none (n=2)")


def test_an_end_token_that_llama_cpp_would_not_stop_at(base):
    template(base, CHATML.replace("<|im_end|>", "<|im_start|>"))
    assert failed(examine(base)[0]) == [
        (
            "metadata that differs from the model's: end token, wanted none",
            "choose another base, or a newer llama.cpp (LLAMA_CPP=)",
        )
    ]


def test_an_end_token_that_llama_cpp_knows_by_its_text(base):
    """Gemma's eos_token is <eos>, its answers end with <end_of_turn>: no key of the file names that."""
    edit(base / "tokenizer_config.json", eos_token="<|endoftext|>")
    edit(base / "config.json", eos_token_id=151643)
    found, _ = examine(base)
    assert failed(found) == []


# -- padding ------------------------------------------------------------------------------------------------------


def test_padding_with_the_end_token_passes_and_is_named(tiny_base):
    tokenizer = models.tokenizer(tiny_base)
    tokenizer.pad_token = "<|im_end|>"
    assert phase.describe_check(preflight.check_padding(tokenizer)) == "token to pad rows with: <|im_end|>, wanted any"


def test_a_tokenizer_with_nothing_to_pad_with(tiny_base):
    tokenizer = models.tokenizer(tiny_base)
    tokenizer.pad_token = tokenizer.eos_token = None
    assert failed([preflight.check_padding(tokenizer)]) == [
        (
            "token to pad rows with: none, wanted any",
            "choose a base whose tokenizer names a pad_token or an eos_token",
        )
    ]


def test_padding_with_the_end_token_takes_no_loss_from_it(tiny_tokenizer):
    """trl masks by place: the end token of the shorter row keeps its loss, the same id behind it has none."""
    from forge import chat
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    end = chat.end_token(tiny_tokenizer)
    question = {"role": "user", "content": "Hello"}
    rows = [
        chat.encode(tiny_tokenizer, [question, {"role": "assistant", "content": text}])
        for text in ("Good day", "Good day to you and to your bees")
    ]
    batch = DataCollatorForLanguageModeling(pad_token_id=end)(rows)
    short = len(rows[0]["input_ids"])
    assert batch["input_ids"][0, short:].unique().tolist() == [end]
    assert batch["labels"][0].tolist() == rows[0]["labels"] + [chat.IGNORED] * (len(rows[1]["labels"]) - short)
    assert end in batch["labels"][0].tolist()


# -- an environment that lacks something --------------------------------------------------------------------------


def test_without_a_converter_it_says_not_checked(base, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "none"))
    found, missing = examine(base)
    assert [phase.describe_check(item) for item in found] == HEALTHY[:5]
    assert missing == [
        f"conversion to GGUF: no llama.cpp source with its converter in {tmp_path}/none "
        "(name a complete checkout with LLAMA_CPP=, or unset it and run make setup)"
    ]


def test_without_llama_cpps_library_it_says_not_checked(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    found, missing = examine(base)
    assert [phase.describe_check(item) for item in found] == HEALTHY[:5]
    assert len(missing) == 1
    assert missing[0].startswith("conversion to GGUF: llama-cpp-python does not load: ")


def test_a_converter_that_lacks_a_library_says_not_checked(base, tmp_path, monkeypatch):
    source = tmp_path / "llama.cpp"
    for name in ("conversion", "gguf-py/gguf"):
        (source / name).mkdir(parents=True)
    (source / "convert_hf_to_gguf.py").write_text("import nothing_like_it\n", encoding="utf-8")
    monkeypatch.setenv("LLAMA_CPP", str(source))
    assert examine(base)[1] == [
        "conversion to GGUF: llama.cpp's converter does not run: ModuleNotFoundError: No module named "
        "'nothing_like_it' (run make setup)"
    ]


@pytest.mark.parametrize(
    ("code", "problem"),
    [("import os; os.kill(os.getpid(), 9)", "it ended with -9"), ("raise SystemExit(3)", "it ended with 3")],
)
def test_a_converter_that_says_nothing(base, tmp_path, monkeypatch, code, problem):
    (tmp_path / "convert_hf_to_gguf.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(llama, "source", lambda: tmp_path)
    [(line, _)] = failed(examine(base)[0])
    assert line == f"vocabulary converted and loaded by llama.cpp: {problem}, wanted yes"


# -- in the gate --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, tiny_base, tiny_tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "prepare", lambda: None)
    monkeypatch.setattr(models, "tokenizer", lambda base: tiny_tokenizer)
    monkeypatch.setattr(disk, "require", lambda run: None)
    said: list[str] = []
    return SimpleNamespace(
        inputs={"dataset": {"settings": {"project": {"system_prompt": "You are Maja."}}}},
        layout=SimpleNamespace(base=tiny_base, dataset=tmp_path / "dataset"),
        say=said.append,
        said=said,
    )


def test_rows_are_not_read_when_the_base_does_not_do(run, monkeypatch):
    bad = {"name": "a", "value": 0, "limit": "1", "n": None, "passed": False, "remedy": "r"}
    asked = []
    monkeypatch.setattr(preflight, "examine", lambda *given: asked.append(given) or ([bad], []))
    assert validate_dataset.work(run)["checks"] == [bad]
    assert asked == [(run.layout.base, models.tokenizer(run.layout.base), "You are Maja.")]
    assert run.said == []


def test_what_was_not_checked_stands_in_the_verdict_and_is_no_check(run, monkeypatch):
    monkeypatch.setattr(preflight, "examine", lambda *given: ([], ["conversion to GGUF: no converter"]))
    monkeypatch.setattr(validate_dataset, "read", lambda *given: {})
    monkeypatch.setattr(validate_dataset, "checks", lambda *given: [])
    facts = validate_dataset.work(run)
    assert facts == {
        "remedy": validate_dataset.REMEDY,
        "not_checked": ["conversion to GGUF: no converter"],
        "checks": [],
    }
    assert run.said == ["  skip NOT checked: conversion to GGUF: no converter"]


@pytest.fixture
def prepared(checkout, write_config, run_warm, base):
    """A checkout with base and dataset; `prepared(base)` after a change of the base's files."""

    def prepare() -> Path:
        write_config(checkout, base=base)
        for name in ("download_model.py", "forge_dataset.py"):
            run_warm(name, "--config", "config/test.yaml", check=True)
        return checkout

    return prepare


@pytest.mark.slow
def test_validate_prints_it_and_its_verdict_is_the_same_each_time(prepared, run_warm):
    root = prepared()
    done = run_warm("validate_dataset.py", "--config", "config/test.yaml", check=True)
    verdict = (root / "evaluation/test/validate/verdict.json").read_bytes()
    assert [line for line in done.stdout.splitlines() if line.removeprefix("  ok   ") in HEALTHY] == [
        f"  ok   {line}" for line in HEALTHY
    ]
    run_warm("validate_dataset.py", "--config", "config/test.yaml", "--force", check=True)
    assert (root / "evaluation/test/validate/verdict.json").read_bytes() == verdict
    assert "not_checked" not in json.loads(verdict)


@pytest.mark.slow
def test_validate_ends_with_cause_and_remedy_of_a_base_that_cannot_be_converted(prepared, run_warm, base):
    edit(base / "config.json", architectures=["BioGptForCausalLM"])
    prepared()
    done = run_warm("validate_dataset.py", "--config", "config/test.yaml")
    assert (done.returncode, done.stderr) == (
        3,
        "FAIL validate did not pass: vocabulary converted and loaded by llama.cpp: Model BioGptForCausalLM is not "
        "supported, wanted yes\n"
        "  do choose a base whose architecture llama.cpp supports; a newer one may do (LLAMA_CPP=)\n",
    )
    assert not Path("evaluation/test/validate/gate.ok").exists()
