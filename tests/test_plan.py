"""make plan: what is counted is exact, what cannot fit is refused with a value that fits, WSL2's cap is named."""

from dataclasses import replace

import pytest
from forge import capacity, chat, config, files, graph, manifest, models
from forge.planning import estimate, remedy, rows, source
from forge.planning.phases import Planner
from forge.training.choices import Choices, fitting
from forge.weights import hollow


@pytest.fixture
def planned(checkout, tiny_base, write_config):
    """`planned(free, training={...})` is the plan on a machine with so much free memory."""

    def plan(free: int, **sections):
        configuration = config.load(write_config(checkout, **sections))
        base = source.find(configuration)
        values = configuration.values
        limit = min(values.data.max_tokens, values.training.max_length)
        estimator = estimate.Estimator(base.folder, base.tokenizer, None, limit)
        there = replace(capacity.look(), memory=free, card=None)
        return Planner(configuration, base, estimator, there).plan()

    return plan


def test_seconds_on_record_are_told_of_the_same_base_alone(planned, checkout, write_config):
    """A 7B's training was once announced with the starter's twelve seconds."""
    layout = config.load(write_config(checkout)).layout

    def write(phase: str, seconds: float, inputs: list[dict]) -> str:
        record = graph.BY_NAME[phase].record(layout)
        files.write_text(record.parent / "a.bin", phase)
        content = {"subject": manifest.describe(record.parent, ["a.bin"]), "inputs": inputs, "seconds": seconds}
        manifest.write(record, content)
        return manifest.digest(content)

    base = write("model", 3.0, [])
    write("train", 12.0, [{"name": "model", "sha256": base}])
    write("merge", 4.0, [{"name": "model", "sha256": "0" * 64}])
    told = {row.phase: (row.seconds, row.recorded) for row in planned(64 << 30).rows}
    assert told["model"] == (3.0, True)
    assert told["train"] == (12.0, True)
    assert told["merge"][1] is False and told["merge"][0] > 0


def test_what_runs_on_the_cpu_is_timed_by_the_cpu(planned, monkeypatch):
    """A card's rate would announce the checks of a GGUF file, which no card does, in seconds."""
    rates = {"cuda": capacity.Rates(1e13, 1e9), "cpu": capacity.Rates(1e10, 1e9)}
    monkeypatch.setattr(capacity, "rates", lambda device, dtype, cache: rates[device])
    monkeypatch.setattr("forge.planning.phases.fitting", on_a_card)
    slow = {row.phase: row.seconds for row in planned(64 << 30).rows}
    rates["cpu"] = capacity.Rates(1e12, 1e9)
    fast = {row.phase: row.seconds for row in planned(64 << 30).rows}
    assert [name for name in slow if slow[name] != fast[name]] == ["verify-merged", "verify-gguf"]
    assert slow["verify-gguf"] > fast["verify-gguf"]


def on_a_card(settings: dict, estimator, free: int) -> Choices:
    return replace(fitting(settings, estimator, free), device="cuda", optimizer="adamw_8bit")


def test_the_tokens_of_a_stage(tmp_path, tiny_base):
    """Of three hundred rows some are counted; both answers of a pair are."""
    tokenizer = models.tokenizer(tiny_base)
    turns = [{"role": "user", "content": "Who are you?"}], [{"role": "assistant", "content": "Maja, a bee."}]
    pair = {"prompt": turns[0], "chosen": turns[1], "rejected": turns[1]}
    files.write_text(tmp_path / "train.jsonl", files.json_line({"messages": [*turns[0], *turns[1]]}) * 300)
    files.write_text(tmp_path / "preference.jsonl", files.json_line(pair) * 5)
    one = len(chat.encode_row(tokenizer, {"prompt": turns[0], "completion": turns[1]})["input_ids"])
    assert rows.tokens(tmp_path, "sft", tokenizer) == 300 * one
    assert rows.tokens(tmp_path, "dpo", tokenizer) == 10 * one
    assert rows.tokens(tmp_path, "kto", tokenizer) is None


def test_weights_are_counted_exactly(tiny_base):
    counted = hollow.count(hollow.causal_lm(hollow.config_of(tiny_base), "bfloat16"))
    model = models.causal_lm(tiny_base, "bfloat16")
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    linear = [
        module for name, module in model.named_modules() if type(module).__name__ == "Linear" and name != "lm_head"
    ]
    assert counted.packed_layers == len(linear) == 14
    assert counted.packed == sum(module.weight.numel() for module in linear)


@pytest.mark.parametrize("lora", [{}, {"target_modules": ["q_proj", "v_proj"], "r": 4}, {"use_dora": True}])
def test_the_adapter_is_counted_as_peft_makes_it(tiny_base, checkout, write_config, lora):
    from forge.training import base

    settings = config.load(write_config(checkout, lora=lora)).view("train")["lora"]
    model = base.new_adapter(models.causal_lm(tiny_base, "bfloat16"), settings, 1)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert estimate.Estimator.of(tiny_base, None, 256).adapter(settings) == trained


def test_what_fits_fits(planned):
    plan = planned(64 << 30)
    assert plan.failures == []
    assert [row.phase for row in plan.rows][:2] == ["model", "dataset"]
    assert plan.choices.unpack and not plan.choices.gradient_checkpointing


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_a_value_that_fits(planned):
    large = {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 1}
    needed = next(row.need.peak for row in planned(64 << 30, training=large).rows if row.phase == "train")
    free = needed - (100 << 20)
    failure = next(item for item in planned(free, training=large).failures if item.cause.startswith("training needs"))
    assert failure.code == 7
    assert failure.remedy.startswith("set training.")
    change = dict(part.split(" to ") for part in failure.remedy.removeprefix("set ").split(" (")[0].split(" and "))
    fitting = {key.removeprefix("training."): {"true": True}.get(value, value) for key, value in change.items()}
    fitting = {key: int(value) if str(value).isdigit() else value for key, value in fitting.items()}
    again = planned(free, training={**large, **fitting})
    assert not [item for item in again.failures if item.cause.startswith("training needs")]


def test_rows_at_once_are_halved_and_the_step_stays():
    training = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "stages": ["sft"]}
    found = list(remedy.fewer_rows({"training": training}))
    keys = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")
    assert [tuple(change[key] for key in keys) for change in found] == [(2, 4), (1, 8)]


@pytest.mark.parametrize(
    ("version", "wsl"),
    [("Linux version 5.15.167.4-microsoft-standard-WSL2", True), ("Linux version 6.1.0-18-amd64", False)],
)
def test_wsl_is_known_by_its_kernel(tmp_path, version, wsl):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/version").write_text(version + "\n", encoding="utf-8")
    assert capacity.in_wsl(tmp_path) is wsl
    assert (capacity.free_memory(tmp_path)[1] == capacity.WSL) is wsl


def test_the_script_plans_a_base_in_a_folder(checkout, write_config, run_script):
    done = run_script("plan.py", "--config", write_config(checkout))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("test (")
    assert done.stdout.splitlines()[-1] == "fits"
    for name in ("train", "merge", "gguf"):
        assert f"\n{name} " in done.stdout
