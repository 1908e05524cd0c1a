"""make plan: what is counted is exact, what cannot fit is refused with a value that fits, WSL2's cap is named."""

from dataclasses import replace

import pytest
from forge import config, models
from forge.planning import estimate, machine, remedy, source
from forge.planning.phases import Planner
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
        there = replace(machine.look(), memory=free, card=None)
        return Planner(configuration, base, estimator, there).plan()

    return plan


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
    assert machine.in_wsl(tmp_path) is wsl
    assert (machine.free_memory(tmp_path)[1] == machine.WSL) is wsl


def test_the_script_plans_a_base_in_a_folder(checkout, write_config, run_script):
    done = run_script("plan.py", "--config", write_config(checkout))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("test (")
    assert done.stdout.splitlines()[-1] == "fits"
    for name in ("train", "merge", "gguf"):
        assert f"\n{name} " in done.stdout
