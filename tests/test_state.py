"""Where a project stands, and how make status tells it."""

import os
from pathlib import Path

import pytest
import status
from finished import Finished
from forge import files, graph
from forge.errors import ForgeError
from forge.training import checkpoints


@pytest.fixture
def project(checkout, write_config) -> Finished:
    return Finished(write_config(checkout, base="org/tiny").relative_to(checkout))


def names(project: Finished) -> dict[str, str]:
    return {name: found.name for name, found in project.states().items()}


def test_all_done(project):
    assert set(names(project).values()) == {"done"}


def test_a_changed_setting_makes_what_is_after_it_wait(project, write_config, checkout):
    write_config(checkout, base="org/tiny", training={"learning_rate": 0.001})
    project.reload()
    found = project.states()
    assert (found["train"].name, found["train"].note) == ("stale", "training.learning_rate 0.005 -> 0.001")
    assert found["validate"].name == "done"
    assert {found[name].note for name in ("verify-adapter", "merge", "modelfile")} == {"for train"}


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE", "NOT_RUN"])
def test_a_gate_that_did_not_pass_has_failed(project, verdict):
    project.write("evaluate", verdict=verdict)
    found = project.states()["evaluate"]
    assert (found.name, found.note) == ("failed", f"{verdict}, see evaluation/test/evaluate/verdict.json")
    assert not found.settled and found.record is None


def test_a_verdict_about_another_adapter_is_none_about_this_one(project):
    project.write("evaluate", verdict="FAIL")
    project.contents["train"]["adapter_config.json"] = '{"r": 1}'
    project.write("train")
    assert names(project)["evaluate"] == "missing"


def test_a_gate_that_was_interrupted_has_not_passed(project):
    graph.BY_NAME["evaluate"].record(project.layout).unlink()
    assert names(project)["evaluate"] == "missing"


def test_a_deleted_merged_model_is_settled(project):
    files.remove(project.layout.merged)
    found = project.states()
    assert (found["merge"].name, found["merge"].settled) == ("deleted", True)
    assert found["modelfile"].name == "done"


def test_a_damaged_verdict_is_named(project):
    project.write("evaluate", verdict="FAIL")
    (project.layout.gate("evaluate") / "verdict.json").write_text("{", encoding="utf-8")
    with pytest.raises(ForgeError) as caught:
        project.states()
    assert caught.value.code == 6
    assert caught.value.cause.startswith("evaluation/test/evaluate/verdict.json is damaged: ")


def test_status_has_a_size_and_a_date_for_all_that_was_made(project, run_script):
    made = Path("models/gguf/test.Modelfile")
    os.utime(made, (1_800_000_000, 1_800_000_000))
    project.write("verify-gguf", verdict="FAIL")
    done = run_script("status.py", "--config", project.path, check=True, env={"TZ": "UTC"})
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines()[3:]}
    assert list(lines) == [row.name for row in graph.PHASES]
    assert lines["train"][1:8] == ["done", "1.0", "kB", "2026-01-02", "03:04", "12", "s"]
    assert lines["verify-gguf"][1:] == ["failed", "FAIL,", "see", "evaluation/test/verify-gguf/verdict.json"]
    assert lines["modelfile"][1:6] == ["stale", "6", "B", "2027-01-15", "08:00"]
    assert "\x1b" not in done.stdout


def test_status_tells_of_a_training_that_has_not_ended(project, run_script):
    assert "not ended" not in run_script("status.py", "--config", project.path, check=True).stdout
    place = project.layout.checkpoints / "0123456789abcdef/sft"
    for step, moment in ((8, 1_800_000_000), (16, 1_800_000_060)):
        folder = place / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"0" * 499)
        checkpoints.seal(folder)
        os.utime(folder, (moment, moment))
    (place / "checkpoint-24").mkdir()  # not sealed: it was being written
    told = run_script("status.py", "--config", project.path, check=True).stdout.splitlines()[-2]
    assert told.startswith("a training that has not ended: 0123456789abcdef/sft/checkpoint-16, 1.")
    assert told.endswith(" kB in models/checkpoints/test")


@pytest.mark.parametrize(("bytes_of", "told"), [(7, "7 B"), (99_949, "99.9 kB"), (105_454_752, "105.5 MB")])
def test_size(bytes_of, told):
    assert status.size({"subject": [{"size": bytes_of}]}) == told
    assert status.size(None) == ""
