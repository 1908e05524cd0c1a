"""Records: what counts as the same, why something is stale, and that no changed byte goes unseen."""

import json
import os
from pathlib import Path

import pytest
from forge import config, files, graph, manifest
from forge.errors import ForgeError

TRAIN, VALIDATE = graph.BY_NAME["train"], graph.BY_NAME["validate"]


def content_of(folder: Path, **more) -> dict:
    return {"subject": manifest.describe(folder), "inputs": [], **more}


@pytest.fixture
def made(tmp_path) -> Path:
    """A folder with files, hidden ones and a folder in it."""
    folder = tmp_path / "made"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "deep/x.txt").write_text("x", encoding="utf-8")
    (folder / ".hidden").write_text("h", encoding="utf-8")
    return folder


@pytest.fixture
def project(checkout, write_config):
    """A config, and a record for every phase as if all were done."""
    loaded = config.load(write_config(checkout, base="org/tiny"))
    for row in graph.PHASES:
        record = row.record(loaded.layout)
        record.parent.mkdir(parents=True, exist_ok=True)
        (record.parent / f"{row.name}.bin").write_text(row.name, encoding="utf-8")
        content = {
            "subject": manifest.describe(record.parent, [f"{row.name}.bin"]),
            "inputs": manifest.input_digests(row, loaded.layout, None),
            "config": loaded.digest(row.name),
            "settings": loaded.view(row.name),
            **({"verdict": "PASS"} if row.gate else {}),
        }
        manifest.write(record, content)
    return loaded


def reasons(loaded: config.Config) -> dict[str, str]:
    found = {row.name: manifest.why_stale(row, loaded, None) for row in graph.PHASES}
    return {name: reason for name, reason in found.items() if reason is not None}


# -- the digest ----------------------------------------------------------------------------------------------


def test_describe_lists_files_by_name_without_hidden_ones(made):
    found = manifest.describe(made)
    assert [(item["name"], item["size"]) for item in found] == [
        ("config.json", 2),
        ("deep/x.txt", 1),
        ("model.safetensors", 7),
    ]
    assert found[0]["sha256"] == files.sha256_file(made / "config.json")


@pytest.mark.parametrize("name", manifest.BYSTANDERS)
def test_the_digest_ignores_bystanders(made, name):
    before = manifest.digest(content_of(made))
    (made / name).write_text("curves", encoding="utf-8")
    assert manifest.digest(content_of(made)) == before
    assert name in [item["name"] for item in manifest.describe(made)]  # yet they are checked


def test_the_digest_is_of_names_and_bytes(made):
    before = manifest.digest(content_of(made))
    os.utime(made / "config.json", (1, 1))
    assert manifest.digest(content_of(made, started="later", seconds=3, versions={})) == before
    (made / "config.json").rename(made / "renamed.json")
    assert manifest.digest(content_of(made)) != before
    (made / "renamed.json").rename(made / "config.json")
    (made / "config.json").write_text("[]", encoding="utf-8")
    assert manifest.digest(content_of(made)) != before


def test_a_gates_digest_is_of_what_it_judged(made):
    def judged(verdict: str, sha256: str) -> str:
        inputs = [{"name": "train", "sha256": sha256}]
        return manifest.digest({"subject": [], "inputs": inputs, "verdict": verdict})

    assert len({judged("PASS", "1"), judged("PASS", "2"), judged("FAIL", "1")}) == 3


# -- why something is stale ---------------------------------------------------------------------------------


def test_nothing_is_stale_after_all_is_done(project):
    assert reasons(project) == {}


def test_what_was_never_done(project):
    TRAIN.record(project.layout).unlink()
    assert reasons(project) == {
        "train": "it was not done yet",
        "verify-adapter": "changed: train",
        "evaluate": "changed: train",
        "merge": "changed: train",
        "verify-merged": "changed: train",
        "gguf": "changed: train",
        "verify-gguf": "changed: train",
        "modelfile": "changed: train",
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"learning_rate": 0.001}, "training.learning_rate 0.005 -> 0.001"),
        ({"optim": "x" * 60}, 'training.optim "auto" -> "' + "x" * 36 + "..."),
        (
            {"learning_rate": 0.001, "weight_decay": 0.1, "eval_steps": 9, "save_steps": 9, "logging_steps": 9},
            "training.learning_rate 0.005 -> 0.001, training.weight_decay 0.0 -> 0.1, "
            "training.logging_steps 1 -> 9 and 2 more",
        ),
    ],
)
def test_changed_settings_are_named(project, write_config, checkout, changes, reason):
    whole = {**project.values.training.model_dump(), **changes}
    changed = config.load(write_config(checkout, base="org/tiny", training=whole))
    assert reasons(changed) == {"train": reason}


def test_settings_that_are_not_on_record(project):
    record = TRAIN.record(project.layout)
    content = json.loads(record.read_text(encoding="utf-8"))
    manifest.write(record, {**content, "config": "another"})
    assert reasons(project) == {"train": "its settings changed"}


def test_a_changed_input_is_named(project):
    record = graph.BY_NAME["dataset"].record(project.layout)
    content = json.loads(record.read_text(encoding="utf-8"))
    content["subject"][0]["sha256"] = "0"
    manifest.write(record, content)
    readers = {row.name for row in graph.PHASES if "dataset" in row.needs}
    assert readers == {
        "validate",
        "train",
        "verify-adapter",
        "evaluate",
        "merge",
        "verify-merged",
        "gguf",
        "verify-gguf",
        "modelfile",
    }
    assert reasons(project) == dict.fromkeys(readers, "changed: dataset")


def test_changed_documents_are_named(project):
    dataset = graph.BY_NAME["dataset"]
    assert manifest.why_stale(dataset, project, "digest of documents") == "changed: sources"


def test_a_deleted_merged_model_is_no_change(project):
    graph.BY_NAME["merge"].record(project.layout).unlink()
    assert reasons(project) == {"merge": "it was not done yet"}


def test_files_that_are_gone_or_cut(project):
    path = TRAIN.folder(project.layout) / "train.bin"
    path.write_text("trai", encoding="utf-8")
    assert reasons(project) == {"train": "train.bin has 4 bytes instead of 5"}
    path.unlink()
    assert reasons(project) == {"train": "train.bin is missing"}


# -- integrity ----------------------------------------------------------------------------------------------


def refused(folder: Path, content: dict, weights: bool = True) -> ForgeError:
    with pytest.raises(ForgeError) as caught:
        manifest.verify(folder / "manifest.json", content, weights)
    assert caught.value.code == 6
    assert caught.value.remedy == f"delete {folder}/manifest.json and run make again: it is made anew"
    return caught.value


def test_whole_files_pass(made):
    manifest.verify(made / "manifest.json", content_of(made))


@pytest.mark.parametrize("name", ["model.safetensors", "deep/x.txt"])
def test_a_flipped_byte_is_found(made, name):
    content = content_of(made)
    flip(made / name)
    assert refused(made, content).cause == f"{made}: {name} does not have its recorded SHA-256"


def test_a_truncated_file_is_found(made):
    content = content_of(made)
    (made / "model.safetensors").write_bytes(b"weigh")
    for weights in (True, False):
        assert refused(made, content, weights).cause == f"{made}: model.safetensors has 5 bytes instead of 7"


def test_a_missing_file_is_found(made):
    content = content_of(made)
    (made / "config.json").unlink()
    assert refused(made, content).cause == f"{made}: config.json is missing"


def test_without_weights_only_their_size_is_checked(made):
    content = content_of(made)
    flip(made / "model.safetensors")
    manifest.verify(made / "manifest.json", content, weights=False)
    flip(made / "config.json")
    assert refused(made, content, weights=False).cause.endswith("config.json does not have its recorded SHA-256")


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def test_no_record_is_none(tmp_path):
    assert manifest.read(tmp_path / "manifest.json") is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b'{"subject": [',
        b"[]",
        b"null",
        b"{}",
        b'{"subject": [], "inputs": {}}',
        b'{"subject": {}, "inputs": []}',
        b'{"subject": [{"name": "a"}], "inputs": []}',
        b'{"subject": [{"name": "a", "size": 1}], "inputs": []}',
        b'{"subject": ["a"], "inputs": []}',
        b"\xff\xfe",
    ],
    ids=lambda text: text[:40].decode("latin-1"),
)
def test_a_damaged_record_is_refused(tmp_path, text):
    record = tmp_path / "manifest.json"
    record.write_bytes(text)
    with pytest.raises(ForgeError) as caught:
        content = manifest.read(record)
        manifest.broken(record, content)
        manifest.digest(content)
    assert caught.value.code == 6
    assert caught.value.cause.startswith(f"{record} is damaged: ")
    assert caught.value.remedy == f"delete {record} and run make again"


def test_a_changed_byte_of_a_record_is_found(tmp_path):
    record = tmp_path / "manifest.json"
    manifest.write(record, {"subject": [], "inputs": [], "facts": {"dtype": "bfloat16", "rows": (1, 2), 3: None}})
    assert manifest.read(record)["facts"] == {"dtype": "bfloat16", "rows": [1, 2], "3": None}
    raw = record.read_text(encoding="utf-8")
    manifest.write(record, manifest.read(record))
    assert record.read_text(encoding="utf-8") == raw
    record.write_text(raw.replace("bfloat16", "bfloat17"), encoding="utf-8")
    with pytest.raises(ForgeError) as caught:
        manifest.read(record)
    assert (caught.value.code, caught.value.cause) == (6, f"{record} is damaged: it does not have its record_sha256")


def test_a_damaged_record_ends_a_script_with_6(project, run_script):
    record = TRAIN.record(project.layout)
    record.write_text('{"subject": [', encoding="utf-8")
    done = run_script("status.py", "--config", "config/test.yaml")
    assert done.returncode == 6
    assert done.stderr == (
        "FAIL models/test-adapter/manifest.json is damaged: Expecting value: line 1 column 14 (char 13)\n"
        "  do delete models/test-adapter/manifest.json and run make again\n"
    )


def test_refresh_gives_the_present_time(tmp_path):
    record = tmp_path / "manifest.json"
    record.write_text("{}", encoding="utf-8")
    os.utime(record, (1000, 1000))
    manifest.refresh(record)
    assert record.stat().st_mtime > 1_000_000_000
    assert record.read_text(encoding="utf-8") == "{}"
