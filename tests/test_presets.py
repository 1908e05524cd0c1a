"""The presets: all load, say true sizes and train at tiny size; those for Llama and Mistral run through `make all`.

Each runs as a reader of the README would do it: `make init`, the database switched on, and a config that extends
the copy and changes only sizes and the base. The base has random weights, the family's real vocabulary and its
real chat template; the database has scenario-forge's own schema.
"""

import json
import os
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest
from conftest import PAGES, read_rows
from families import tiny_llama, tiny_mistral, tiny_qwen3
from forge import config, manifest
from forge.reading import scenarios

ROOT = Path(__file__).resolve().parents[1]
PRESETS = sorted(ROOT.glob("config/presets/*.yaml"))
WHOLE_WAY = ("llama-3.1-8b-ai-psychosis", "mistral-7b-reality-break")
SCENARIOS = (*WHOLE_WAY, "qwen2.5-7b-ai-psychosis-12gb")
DOCUMENTS = ("qwen2-7b-8gb", "qwen3-8b-12gb", "qwen2.5-14b-24gb")
SIZES = """\
extends: {preset}
model: {{base_model_name: {base}}}
training:
  num_train_epochs: 0.25
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 1
  learning_rate: 0.005
  gradient_checkpointing: false
  optim: auto
  warmup_steps: 0
  max_length: 512
  canary_steps: 0
  preference: {{num_train_epochs: 0.1, per_device_train_batch_size: 2, gradient_accumulation_steps: 2}}
evaluation: {{heldout_rows: 2, max_new_tokens: 8, minimum_stop_rate: 0, pairs: 2, answers: 1}}
gguf:
  fidelity: {{maximum_mean_kl: 100, minimum_top_agreement: 0}}
ollama: {{num_ctx: 512}}
"""


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_loads_and_names_itself(path):
    loaded = config.load(path)
    text = path.read_text(encoding="utf-8")
    assert f"#   make all CONFIG=config/presets/{path.name}\n# or `make init PRESET={path.stem}`" in text
    assert loaded.values.project.license
    assert loaded.values.project.name != config.load(ROOT / "config/training_config.yaml").values.project.name


def test_every_preset_is_tried_below():
    assert sorted(path.stem for path in PRESETS) == sorted((*SCENARIOS, *DOCUMENTS))


# What config.json of each base says; all that its weights' shapes follow from.
SHAPES = {
    "meta-llama/Llama-3.1-8B-Instruct": ("Llama", 4096, 14336, 32, 32, 8, 128256),
    "mistralai/Mistral-7B-Instruct-v0.3": ("Mistral", 4096, 14336, 32, 32, 8, 32768),
    "Qwen/Qwen2-7B-Instruct": ("Qwen2", 3584, 18944, 28, 28, 4, 152064),
    "Qwen/Qwen2.5-7B-Instruct": ("Qwen2", 3584, 18944, 28, 28, 4, 152064),
    "Qwen/Qwen2.5-14B-Instruct": ("Qwen2", 5120, 13824, 48, 40, 8, 152064),
    "Qwen/Qwen3-8B": ("Qwen3", 4096, 12288, 36, 32, 8, 151936),
}
# Bytes a weight of NF4: half a byte, a byte of scale for 64 weights, 4 bytes of scale for 256 scales.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)


def gigabytes(base: str) -> tuple[float, float, float]:
    """Weights of a base in GB of 10**9 bytes: in 16 bits, as QLoRA holds them, and of those what stays in 16 bits.

    bitsandbytes packs every linear layer but the last, which stays whole as the embedding does.
    """
    import torch
    import transformers

    kind, hidden, inner, layers, heads, groups, words = SHAPES[base]
    settings = getattr(transformers, f"{kind}Config")(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=128,
        vocab_size=words,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(settings)
    packed = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    )
    total = sum(parameter.numel() for parameter in model.parameters())
    whole = 2 * (total - packed) / 1e9
    return 2 * total / 1e9, packed * NF4 / 1e9 + whole, whole


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_the_sizes_in_a_preset_are_those_of_its_base(path):
    text = path.read_text(encoding="utf-8")
    base, size = re.search(r"base_model_name: (\S+) +# ([\d.]+) GB", text).groups()
    told = re.search(
        r"per_device_train_batch_size: \d +# the 4-bit weights take ([\d.]+) GB(?: of the (\d+))?, "
        r"([\d.]+) of them the vocabulary's in 16 bits",
        text,
    ).groups()
    whole, held, rest = gigabytes(base)
    assert (size, told[0], told[2]) == (f"{whole:.1f}", f"{held:.1f}", f"{rest:.1f}")
    card = re.search(r"(\d+)gb$", path.stem)
    assert told[1] == (card[1] if card else None)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_pairs_are_preferred_where_there_are_some(path):
    training = config.load(path).values.training
    assert training.stages == (["sft", "dpo"] if path.stem in SCENARIOS else ["sft"])
    if "dpo" in training.stages:
        assert "preference:" in path.read_text(encoding="utf-8")
        assert training.preference.learning_rate <= training.learning_rate / 10


@pytest.mark.parametrize("preset", SCENARIOS)
def test_every_scenario_of_a_preset_is_trained(preset, monkeypatch):
    monkeypatch.chdir(ROOT)
    wanted = config.load(ROOT / f"config/presets/{preset}.yaml").view("dataset")["data"]["sources"]
    for source in wanted:
        found = scenarios.read(source)
        assert len(found) > 80
        assert [scenario.origin for scenario in found if scenarios.refusal(scenario)] == []
        assert all(scenarios.pairs(scenario) for scenario in found)
        assert max(len(scenario.expected.split()) for scenario in found) < 110  # evaluation.max_new_tokens is 192


# -- the whole way ------------------------------------------------------------------------------------------


def database(path: Path) -> None:
    """A database as scenario-forge makes it, with scenarios of both targets and of a third."""
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as made:
        made.executescript(
            """
            CREATE TABLE scenarios (id INTEGER PRIMARY KEY AUTOINCREMENT, prompt TEXT NOT NULL,
                evaluation_target TEXT NOT NULL, success_criteria TEXT NOT NULL, backend TEXT, model TEXT,
                temperature REAL);
            CREATE TABLE ratings (id INTEGER PRIMARY KEY, scenario_id INTEGER NOT NULL,
                rating INTEGER NOT NULL CHECK (rating >= 0 AND rating <= 3),
                rated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
                FOREIGN KEY (scenario_id) REFERENCES scenarios (id));
            """
        )
        for target in ("ai_psychosis", "reality_break", "power_seeking"):
            for number in (1, 2):
                row = (f"Scenario {number} of {target}.", target, json.dumps(["grounds", "points to help"]))
                made.execute(
                    "INSERT INTO scenarios (prompt, evaluation_target, success_criteria) VALUES (?, ?, ?)", row
                )
        made.execute("INSERT INTO ratings (scenario_id, rating) VALUES (1, 3), (3, 0)")
    made.close()


@pytest.fixture
def forge(tmp_path, warm) -> Path:
    """A checkout in a path with a space, whose environment is this one, without the time of the imports."""
    root = tmp_path / "a forge"
    for name in ("scripts", "config", "scenarios"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    for name in ("Makefile", "Modelfile.template", "requirements-finetuning.txt", "requirements-dev.txt"):
        shutil.copy2(ROOT / name, root / name)
    (root / "venv/bin").mkdir(parents=True)
    (root / "venv/bin/python").symlink_to(warm.python)
    for stamp in ("light.ok", "ready.ok"):
        (root / "venv" / stamp).touch()
    database(tmp_path / "home/.scenario-forge/scenarios.db")
    return root


def make(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["make", "VENV=venv", *arguments],
        cwd=root,
        env={**os.environ, "HOME": str(root.parent / "home")},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "base", "trained", "evaluated", "end"),
    [
        (WHOLE_WAY[0], tiny_llama, 84, 2, "<|eot_id|>"),
        (WHOLE_WAY[1], tiny_mistral, 166, 4, "</s>"),
    ],
    ids=["llama", "mistral"],
)
def test_a_preset_runs_from_scenarios_to_a_verified_gguf(forge, tmp_path, preset, base, trained, evaluated, end):
    make(forge, "init", f"PRESET={preset}")
    local = forge / f"config/local/{preset}.yaml"
    text = local.read_text(encoding="utf-8")
    head, switched_off = text.split("    # - kind: scenario_forge", 1)
    switched_on = re.sub(r"^    # (  (?:path|targets):)", r"    \1", switched_off, flags=re.M)
    local.write_text(f"{head}    - kind: scenario_forge{switched_on}", encoding="utf-8")
    path = base(tmp_path / "base")
    (forge / "config/test.yaml").write_text(SIZES.format(preset=f"local/{preset}.yaml", base=path), encoding="utf-8")

    said = make(forge, "all", "CONFIG=config/test.yaml")

    assert f"{evaluated:6} rows evaluation" in said
    assert "a rating judges the scenario, not an answer" in said
    name = config.load(forge / "config/test.yaml").values.project.name
    data = forge / "dataset_package" / name
    train, validation = read_rows(data / "train.jsonl"), read_rows(data / "validation.jsonl")
    assert {row["source"] for row in train} == {"scenario_json", "safety"}
    train, validation = ([row for row in rows if row["source"] != "safety"] for rows in (train, validation))
    assert len(train) + len(validation) == trained
    held = read_rows(data / "evaluation.jsonl")
    assert {row["target"] for row in held} == {row["target"] for row in train}
    assert [row["rating"] for row in held if row["prompt"].startswith("Scenario 1 of")] == [3, 0][: evaluated // 2]
    record = manifest.read(data / "manifest.json")
    assert "~/.scenario-forge/scenarios.db" in [item["path"] for item in record["facts"]["scenarios"]["files"]]
    pairs = read_rows(data / "preference.jsonl")
    assert {row["id"] for row in pairs}.isdisjoint(row["id"] for row in train)
    asked = {json.dumps(row["prompt"]) for row in train}
    assert {json.dumps(row["prompt"]) for row in pairs} == asked  # what validates the model is not preferred either
    stages = manifest.read(forge / f"models/{name}-adapter/manifest.json")["facts"]["stages"]
    assert [stage["name"] for stage in stages] == ["sft", "dpo"]
    assert sum(stages[1]["rows"].values()) == len(pairs) > stages[1]["rows"]["validation"] > 0
    made = json.loads((forge / "gguf_model_manifest.json").read_text(encoding="utf-8"))
    assert made["verdicts"].pop("evaluate") in ("INCONCLUSIVE", "FAIL"), "two pairs, and random weights"
    assert made["overrides"] == {"evaluate": os.environ["OVERRIDE_REASON"]}
    assert set(made["verdicts"].values()) == {"PASS"}
    assert f'PARAMETER stop "{end}"' in (forge / "Modelfile").read_text(encoding="utf-8")
    assert str(tmp_path / "home") not in "".join(file.read_text(encoding="utf-8") for file in data.iterdir())
    assert "==" not in make(forge, "all", "CONFIG=config/test.yaml")
    with sqlite3.connect(tmp_path / "home/.scenario-forge/scenarios.db") as edited:
        edited.execute("UPDATE ratings SET rating = 2 WHERE scenario_id = 1")
    edited.close()
    assert "forge_dataset.py" in make(forge, "-n", "all", "CONFIG=config/test.yaml")


# -- the others: from rows to an adapter ------------------------------------------------------------------------

SCRIPTS = (
    "download_model.py",
    "forge_dataset.py",
    "validate_dataset.py",
    "fine_tune.py",
)
OWN_DOCUMENTS = """\
data:
  max_tokens: 512
  sources: [{kind: documents, path: documents}]
  thresholds: {minimum_training_rows: 4}
"""


@pytest.fixture
def base_of(tiny_base, tmp_path):
    """`base_of(preset)`: a tiny base of the preset's family."""
    return lambda preset: tiny_qwen3(tmp_path / "base") if preset.startswith("qwen3") else tiny_base


@pytest.mark.slow
@pytest.mark.parametrize("preset", [*DOCUMENTS, "qwen2.5-7b-ai-psychosis-12gb"])
def test_a_preset_trains(preset, base_of, tmp_path, warm):
    work = tmp_path / "work"
    for name in ("config", "scenarios"):
        shutil.copytree(ROOT / name, work / name)
    (work / "documents").mkdir()
    for name, text in PAGES.items():
        (work / "documents" / name).write_text(text, encoding="utf-8")
    answers = work / "scenarios/training/ai_psychosis.jsonl"  # all of them go the whole way above
    answers.write_text("".join(answers.read_text(encoding="utf-8").splitlines(keepends=True)[:30]), encoding="utf-8")
    sizes = SIZES.format(preset=f"presets/{preset}.yaml", base=base_of(preset))
    own = OWN_DOCUMENTS if preset in DOCUMENTS else ""
    (work / "config/test.yaml").write_text(sizes + own, encoding="utf-8")
    for script in SCRIPTS:
        done = warm.run(work, script, "--config", "config/test.yaml")
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    wanted = config.load(ROOT / f"config/presets/{preset}.yaml").values
    record = manifest.read(work / f"models/{wanted.project.name}-adapter/manifest.json")
    assert [stage["name"] for stage in record["facts"]["stages"]] == wanted.training.stages
    settings = json.loads((work / f"models/{wanted.project.name}-adapter/adapter_config.json").read_text("utf-8"))
    assert (settings["r"], settings["use_rslora"]) == (wanted.lora.r, wanted.lora.use_rslora)
