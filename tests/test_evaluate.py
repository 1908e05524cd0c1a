"""The phase evaluate as a script, on a tiny model: verdicts, what they are bound to, overrides, feedback, releases."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import PAGES, read_rows
from forge import config, files, graph, manifest, models, phase
from forge.evaluating import feedback, measuring, sets

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
NO_REASON = {"OVERRIDE_REASON": ""}
JUDGED = Path("evaluation/bees/evaluate")


def configure(folder: Path, base: Path, **evaluation: object) -> None:
    values = {
        "project": {"name": "bees", "system_prompt": "You are Maja."},
        "model": {"base_model_name": str(base)},
        "data": {
            "sources": [{"kind": "documents", "path": "documents"}],
            "max_tokens": 256,
            "safety_share": 0,
            "thresholds": {"minimum_training_rows": 4},
        },
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
        "training": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "learning_rate": 0.01,
            "max_length": 256,
            "canary_steps": 0,
            "keep": "last",
        },
        "evaluation": {
            "heldout_rows": 4,
            "questions": 2,
            "max_new_tokens": 8,
            "minimum_stop_rate": 0.0,
            "answers": 2,
            **evaluation,
        },
    }
    (folder / "config/test.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def keep_scenarios(folder: Path, count: int) -> None:
    """The first `count` pairs of a target, and a few of what else is measured with."""
    for name, rows in (("ai_psychosis", count), ("reality_break", 0), ("edgy", 4), ("coherence", 4)):
        lines = (ROOT / f"scenarios/evaluation/{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"scenarios/evaluation/{name}.jsonl").write_text("".join(lines[:rows]), encoding="utf-8")


@pytest.fixture(scope="module")
def ready(tmp_path_factory, tiny_base, warm) -> Path:
    """A checkout with a trained and verified adapter, and six pairs to measure with."""
    folder = tmp_path_factory.mktemp("evaluate")
    for name in ("documents", "config"):
        (folder / name).mkdir()
    for name, text in PAGES.items():
        (folder / "documents" / name).write_text(text, encoding="utf-8")
    shutil.copytree(ROOT / "scenarios", folder / "scenarios")
    keep_scenarios(folder, 6)
    configure(folder, tiny_base)
    for script in ("download_model", "forge_dataset", "validate_dataset", "fine_tune", "verify_adapter"):
        done = warm.run(folder, f"{script}.py", "--config", "config/test.yaml")
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def work(ready, tmp_path, monkeypatch) -> Path:
    folder = Path(shutil.copytree(ready, tmp_path / "work", symlinks=True))
    monkeypatch.chdir(folder)
    return folder


def runner(folder: Path, warm):
    """`run("evaluate_model", reason="...")` runs a script in the folder; without one nothing is overridden."""

    def run(name: str, *arguments: str, reason: str = ""):
        environment = {"OVERRIDE_REASON": reason}
        return warm.run(folder, f"{name}.py", "--config", "config/test.yaml", *arguments, env=environment)

    return run


@pytest.fixture
def script(work, warm):
    return runner(work, warm)


@pytest.fixture(scope="module")
def judged(ready, tmp_path_factory, warm) -> Path:
    """The same, after an evaluation that was overridden."""
    folder = Path(shutil.copytree(ready, tmp_path_factory.mktemp("judged") / "work", symlinks=True))
    assert runner(folder, warm)("evaluate_model", reason="a test").returncode == 0
    return folder


def verdict() -> dict:
    return json.loads((JUDGED / "verdict.json").read_text(encoding="utf-8"))


def test_few_pairs_are_inconclusive_and_nothing_is_exported(script):
    done = script("evaluate_model")
    assert done.returncode == 3, done.stdout + done.stderr
    assert re.search(
        r"^FAIL evaluate did not pass: INCONCLUSIVE, preference margin: .* \d+ pairs would decide", done.stderr
    )
    assert 'OVERRIDE_REASON="..."' in done.stderr.splitlines()[1]
    told = verdict()
    assert told["verdict"] == "INCONCLUSIVE" and told["targets"] == ["ai_psychosis"]
    gate = next(signal for signal in told["signals"] if signal["role"] == "gate")
    assert gate["n"] == 6 and gate["needed"] >= 200
    names = [item["name"] for item in told["bound_to"]]
    assert names[-5:] == ["weights", "tokenizer", "chat_template", "evaluation_set", "config"]
    items = read_rows(JUDGED / "items.jsonl")
    assert [item["kind"] for item in items] == ["pair"] * 6 + ["scenario"] * 2 + ["edgy"] * 2 + ["coherence"] * 2
    assert not (JUDGED / "gate.ok").exists()
    merged = script("merge_adapter")
    assert (merged.returncode, merged.stderr.splitlines()[0]) == (
        2,
        "FAIL merge needs evaluation/bees/evaluate/gate.ok, which is not there",
    )
    assert not Path("models/merged").exists()


@pytest.mark.parametrize("case", ["no scenarios", "no metrics", "coherence alone"])
def test_nothing_to_measure_is_not_run(script, work, tiny_base, case):
    if case == "no scenarios":
        keep_scenarios(work, 0)
    else:
        configure(work, tiny_base, metrics=[] if case == "no metrics" else ["coherence"])
    done = script("evaluate_model")
    assert done.returncode == 3
    assert "FAIL evaluate did not pass: NOT_RUN, there is no pair to measure\n" in done.stderr
    assert verdict()["verdict"] == "NOT_RUN"
    assert not (JUDGED / "gate.ok").exists()


def test_a_written_reason_overrides_and_stands_in_every_record(script):
    done = script("evaluate_model", reason="a tiny  model\nof a test")
    assert done.returncode == 0, done.stderr
    assert "evaluate: INCONCLUSIVE, overridden: a tiny model of a test" in done.stdout
    told, record = verdict(), json.loads((JUDGED / "gate.ok").read_text(encoding="utf-8"))
    assert told["override"] == "a tiny model of a test"
    assert (record["verdict"], record["override"]) == ("INCONCLUSIVE", "a tiny  model\nof a test")
    entry = json.loads(Path("logs/audit.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert (entry["event"], entry["judged"]["override"]) == ("done", "a tiny model of a test")
    assert script("merge_adapter").returncode == 0
    assert "nothing to do" in script("evaluate_model").stdout


def test_an_override_is_for_a_verdict_alone(script):
    """A gate that checks facts, as verify-adapter, takes no reason for them."""
    path = Path("models/bees-adapter/adapter_model.safetensors")
    from safetensors.torch import load_file, save_file

    save_file({name: 0 * value for name, value in load_file(path).items()}, path)
    record = path.with_name("manifest.json")
    content = json.loads(record.read_text(encoding="utf-8"))
    content["subject"] = [
        {
            **item,
            "sha256": files.sha256_file(path.with_name(item["name"])),
            "size": path.with_name(item["name"]).stat().st_size,
        }
        for item in content["subject"]
    ]
    manifest.write(record, content)
    assert script("verify_adapter", reason="please").returncode == 3


@pytest.fixture
def passed(judged, tmp_path, monkeypatch, warm):
    """Runs scripts where the evaluation has passed."""
    folder = Path(shutil.copytree(judged, tmp_path / "passed", symlinks=True))
    monkeypatch.chdir(folder)
    return runner(folder, warm)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.unlink()  # the base's files are links
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "code", "cause"),
    [
        ("models/bees-adapter/adapter_model.safetensors", 6, "does not have its recorded SHA-256"),
        ("tokenizer.json", 6, "does not have its recorded SHA-256"),
        ("chat_template.jinja", 6, "does not have its recorded SHA-256"),
        ("scenarios/evaluation/ai_psychosis.jsonl", 3, "evaluate passed for another set of files than is there now"),
        ("scenarios/evaluation/edgy.jsonl", 3, "evaluate passed for another set of files than is there now"),
    ],
)
def test_a_changed_byte_after_the_verdict_stops_the_merge(passed, name, code, cause):
    path = Path(name)
    if not path.is_file():
        [path] = Path("models/base").rglob(name)
    flip(path)
    done = passed("merge_adapter")
    assert done.returncode == code, done.stdout + done.stderr
    assert cause in done.stderr
    assert not Path("models/merged/bees-merged").exists()


def test_a_changed_evaluation_set_stops_the_conversion_too(passed):
    assert passed("merge_adapter").returncode == 0
    assert passed("verify_merged").returncode == 0
    flip(Path("scenarios/evaluation/ai_psychosis.jsonl"))
    done = passed("convert_to_gguf")
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        3,
        "FAIL evaluate passed for another set of files than is there now",
    )


def test_the_base_is_measured_once(script):
    assert "the base:" in script("evaluate_model").stdout
    again = script("evaluate_model", "--force")
    assert (
        "the base:" not in again.stdout and "the controls:" not in again.stdout and "the tuned model:" in again.stdout
    )


def test_another_model_is_measured_and_leaves_the_verdict_alone(script):
    done = script("evaluate_model", "--model", "models/bees-adapter", "--metrics", "safety,knowledge")
    assert done.returncode == 3
    assert (JUDGED / "others/bees-adapter/verdict.json").is_file()
    assert not (JUDGED / "verdict.json").exists()
    done = script("evaluate_model", "--model", "models/none")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "FAIL models/none holds no model")
    done = script("evaluate_model", "--model", "models/bees-adapter", "--metrics", "speed")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "FAIL no metric 'speed'")


# -- feedback ------------------------------------------------------------------------------------------------


def test_feedback_is_written_for_scenario_forge(script, work):
    script("evaluate_model")
    done = script("export_feedback", "--folder", "home/feedback")
    assert done.returncode == 0, done.stderr
    [path] = Path("home/feedback").iterdir()
    told = feedback.Feedback.model_validate_json(path.read_text(encoding="utf-8"))
    assert path.name == f"{told.model_id}.json" and told.model_id.startswith("bees-")
    assert told.verdict == "INCONCLUSIVE" and "preference margin" in told.metrics
    failed = [item for item in read_rows(JUDGED / "items.jsonl") if item["failed"]]
    assert [item.id for item in told.failed_scenarios] == [item["id"] for item in failed]
    assert sum(pattern.count for pattern in told.discovered_patterns) >= len(failed)
    record = Path("models/bees-adapter/manifest.json")
    other = manifest.read(record)
    other["subject"][0]["sha256"] = "0" * 64
    manifest.write(record, other)
    done = script("export_feedback", "--folder", "home/feedback")
    assert done.returncode == 2 and "is about another adapter" in done.stderr


def test_a_models_name_never_leaves_the_folder():
    names = ["../../x", "/etc/passwd", ".hidden", "a b", "", "..", "x" * 500]
    for name in map(feedback.name_of, names):
        assert Path(name).name == name and not name.startswith(".") and len(name) < 130


def test_patterns_count_families_and_criteria():
    row = {"kind": "pair", "family": "signs", "criteria": ["says no"], "target": "t", "margin": -1.0}
    items = [
        {**row, "id": "1", "failed": True},
        {**row, "id": "2", "failed": True},
        {**row, "id": "3", "failed": False},
    ]
    items.append({**row, "id": "4", "failed": None})
    [found] = feedback.patterns(items)
    assert found.model_dump() == {"family": "signs", "criterion": "says no", "count": 2, "of": 3}


def test_the_schema_in_docs_is_the_forms():
    kept = json.loads((ROOT / "docs/feedback.schema.json").read_text(encoding="utf-8"))
    assert kept == feedback.schema(), "run: python scripts/write_schema.py"


# -- releases ------------------------------------------------------------------------------------------------


def test_regression_needs_a_pass_and_compares_pairs(script, work):
    script("evaluate_model")
    done = script("regression")
    assert done.returncode == 2 and "there is no baselines/bees.json" in done.stderr
    done = script("regression", "--keep")
    assert done.returncode == 3 and "the verdict is INCONCLUSIVE" in done.stderr
    told = {**verdict(), "verdict": "PASS"}
    files.write_json(JUDGED / "verdict.json", told)
    assert script("regression", "--keep").returncode == 0
    done = script("regression")
    assert done.returncode == 3 and "regression: INCONCLUSIVE" in done.stderr, "six pairs show nothing"
    done = script("evaluate_model")
    assert "preference margin, beside the last release" in done.stdout, "a release is an input: evaluate runs again"


def test_a_model_that_falls_behind_its_release_does_not_pass():
    from forge.evaluating import release

    def pairs(shift: float) -> dict:
        low = {"log_probability": -90.0, "tokens": 30}
        return {
            str(number): {
                "preferred": {"log_probability": -60.0 + 30 * shift + number % 7, "tokens": 30},
                "failure": low,
            }
            for number in range(220)
        }

    assert release.compared(pairs(0), pairs(0), 0.05, 200).verdict == "PASS"
    assert release.compared(pairs(0), pairs(-0.2), 0.05, 200).verdict == "FAIL"
    assert release.compared(pairs(0), {}, 0.05, 200).verdict == "NOT_RUN"


# -- the frame -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["FAIL", "INCONCLUSIVE", "NOT_RUN", "nan", ""])
def test_only_pass_opens_the_gate(checkout, write_config, monkeypatch, told):
    import argparse

    monkeypatch.setenv("OVERRIDE_REASON", "  ")
    loaded = config.load(write_config(checkout, base="org/tiny"))
    run = phase.Run(graph.BY_NAME["evaluate"], loaded, argparse.Namespace(force=True))
    facts = {"verdict": told, "checks": [], "cause": "why", "remedy": "what to do"}
    with pytest.raises(phase.ForgeError) as caught:
        run.gate(lambda run: facts)
    assert (caught.value.cause, caught.value.code) == ("evaluate did not pass: why", 3)
    assert not run.record.exists()
    run.gate(lambda run: {**facts, "verdict": "PASS"})
    assert json.loads(run.record.read_text(encoding="utf-8"))["verdict"] == "PASS"


# -- where a model is measured --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "free", "wanted"),
    [
        (15.2e9, 24e9, ("cuda:0", False)),
        (15.2e9, 7.2e9, ("cuda:0", True)),  # what an 8 GB card has free
        (15.2e9, 6.5e9, ("cpu", False)),
        (29.5e9, 15.5e9, ("cuda:0", True)),
        (3.1e9, 7.2e9, ("cuda:0", False)),
    ],
)
def test_a_card_takes_a_model_whole_or_in_four_bits(monkeypatch, size, free, wanted):
    """No card is here: what one has free is made up."""
    import torch

    monkeypatch.setattr(models, "device", lambda: "cuda:0")
    monkeypatch.setattr(models, "weight_bytes", lambda folder: size)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 2 * free))
    assert models.place(Path("base")) == wanted
    assert models.whole(Path("base")) == ("cpu" if wanted[1] else wanted[0])


def test_in_four_bits_base_and_adapter_are_measured_side_by_side(work, tiny_base, monkeypatch):
    import evaluate_model

    monkeypatch.setattr(models, "place", lambda folder: ("cpu", True))
    base = models.to_measure(tiny_base, "float32")
    assert base.is_loaded_in_4bit
    assert measuring.random_model(tiny_base, "float32", "cpu") is None, "a control that would not fit is left out"
    tokenizer = models.tokenizer(tiny_base)
    pairs = sets.gather(
        config.load(Path("config/test.yaml")).view("evaluate")["evaluation"], "", [], Path("none")
    ).pairs
    before = measuring.of_pairs(base, tokenizer, pairs)
    tuned = evaluate_model.tuned_model(lambda: base, work / "models/bees-adapter", "float32")
    assert tuned.peft_config, "the adapter stays beside the weights"
    margins = measuring.margins(before, measuring.of_pairs(tuned, tokenizer, pairs))
    assert len(margins) == 6 and all(margin is not None and margin != 0 for margin in margins)
