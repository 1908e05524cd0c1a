"""The audit trail: every edit, gap and move in it is found, a crash is only noted, and it tells what made a model."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from forge import audit, files, graph, manifest
from forge.errors import ForgeError

PARALLEL = """
import sys
sys.path.insert(0, "scripts")
from forge import audit
for number in range(20):
    audit.append("event", who=sys.argv[1], number=number)
"""


@pytest.fixture
def log(checkout) -> Path:
    for number in range(5):
        audit.append("event", number=number)
    return audit.LOG


def refused(what: str) -> None:
    with pytest.raises(ForgeError) as caught:
        audit.entries()
    assert caught.value.code == 6
    assert what in caught.value.cause, caught.value.cause


def lines(log: Path) -> list[bytes]:
    return log.read_bytes().splitlines(keepends=True)


def test_entries_hold_the_hash_of_the_one_before(log):
    found, notes = audit.entries()
    assert notes == []
    assert [entry["entry"] for entry in found] == [1, 2, 3, 4, 5]
    assert [entry["previous"] for entry in found] == [audit.GENESIS, *(entry["sha256"] for entry in found[:-1])]
    first = json.loads(lines(log)[0])
    claimed = first.pop("sha256")
    assert hashlib.sha256(json.dumps(first, sort_keys=True, separators=(",", ":")).encode()).hexdigest() == claimed


@pytest.mark.parametrize("place", [0, 2, 4])
def test_an_edit_is_found(log, place):
    kept = lines(log)
    kept[place] = kept[place].replace(b'"number": ', b'"number": 1')
    log.write_bytes(b"".join(kept))
    refused(f":{place + 1} was edited")


def test_an_edit_with_a_new_hash_is_found_by_the_next_line(log):
    kept = lines(log)
    entry = json.loads(kept[1])
    entry["number"] = 99
    del entry["sha256"]
    entry["sha256"] = files.sha256_json(entry)
    kept[1] = files.json_line(entry).encode()
    log.write_bytes(b"".join(kept))
    refused(":3 does not follow the line before")


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: [kept[1], kept[0], *kept[2:]],
        lambda kept: [*kept[:2], *kept[3:]],
        lambda kept: [*kept[:2], kept[1], *kept[2:]],
        lambda kept: kept[1:],
    ],
    ids=["swapped", "taken out", "twice", "beginning cut"],
)
def test_a_reordering_and_a_gap_are_found(log, change):
    log.write_bytes(b"".join(change(lines(log))))
    refused("does not follow the line before")


@pytest.mark.parametrize("text", [b"{}\n", b"nonsense\n", b'{"entry": 1, "entry": 2}\n'])
def test_a_line_that_is_no_entry_is_found(log, text):
    kept = lines(log)
    log.write_bytes(b"".join([*kept[:3], text, *kept[3:]]))
    with pytest.raises(ForgeError) as caught:
        audit.entries()
    assert caught.value.code == 6 and ":4 " in caught.value.cause


def test_a_line_that_lacks_its_end_alone_is_whole(log):
    log.write_bytes(log.read_bytes()[:-1])
    audit.append("event", number=6)
    found, notes = audit.entries()
    assert ([entry["entry"] for entry in found], notes) == ([1, 2, 3, 4, 5, 6], [])


@pytest.mark.parametrize("cut", [2, 30, 150])
def test_a_torn_last_line_is_noted_only(log, cut):
    log.write_bytes(log.read_bytes()[:-cut])
    found, notes = audit.entries()
    assert len(found) == 4 and notes == ["line 5 is unfinished: the last writer crashed"]
    audit.append("event", number=6)
    found, notes = audit.entries()
    assert [entry["event"] for entry in found] == ["event"] * 4 + ["torn", "event"]
    assert notes == ["line 5 was left unfinished by a crash, as entry 5 notes"]
    kept = lines(log)
    log.write_bytes(b"".join([*kept[:4], b"another" + kept[4], *kept[5:]]))
    refused("is no entry, and none notes a crash there")


def test_several_writers_make_one_chain(checkout):
    running = [subprocess.Popen([sys.executable, "-c", PARALLEL, str(number)]) for number in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    found, _ = audit.entries()
    assert len(found) == 80
    for who in "0123":
        assert [entry["number"] for entry in found if entry["who"] == who] == list(range(20))


def test_a_long_entry_is_followed(checkout):
    audit.append("event", text="x" * 300_000)
    audit.append("event", text="y")
    assert [entry["entry"] for entry in audit.entries()[0]] == [1, 2]


def test_secrets_are_not_written(checkout):
    token = "hf_" + "qRzTvKpWmXyLsBnGdHjFcQwErTyUiOpAsD"
    audit.append("start", config={"project": {"description": f"token {token}"}})
    assert token not in audit.LOG.read_text(encoding="utf-8")
    assert "redacted" in audit.entries()[0][0]["config"]["project"]["description"]


def test_digests_are_kept_and_keys_in_the_config_are_not(log):
    names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(300)]
    subject = [{"name": "tokenizer.json", "token": "the secret key", "sha256": name} for name in names]
    key = hashlib.sha1(b"a key").hexdigest()
    audit.append("done", subject=subject, git_commit=key, config={"api_key": key})
    [*_, entry] = audit.entries()[0]
    assert [item["sha256"] for item in entry["subject"]] == names
    assert (entry["git_commit"], "redacted" in entry["config"]["api_key"]) == (key, True)


# -- with phases -------------------------------------------------------------------------------------------------


@pytest.fixture
def made(checkout, write_config, run_script):
    """Stand-in phases up to the GGUF; `made(...)` runs the audit's script."""
    write_config(checkout, base="org/tiny")
    standin = Path(__file__).with_name("standin_phase.py").read_text(encoding="utf-8")
    for row in graph.PHASES:
        (checkout / "scripts" / row.script).write_text(standin, encoding="utf-8")
        run_script(row.script, "--config", "config/test.yaml", check=True)
    return lambda *arguments: run_script("audit_trail.py", "--config", "config/test.yaml", *arguments)


def test_a_run_leaves_its_start_and_its_end(made):
    found, _ = audit.entries()
    assert [(entry["event"], entry["phase"]) for entry in found] == [
        (event, row.name) for row in graph.PHASES for event in ("start", "done")
    ]
    start = found[0]
    assert start["config"]["training"]["learning_rate"] == 0.005 and start["config_file"] == "config/test.yaml"
    record = json.loads(graph.BY_NAME["train"].record(graph.Layout("test", Path("x"))).read_text(encoding="utf-8"))
    head = record["audit"]
    assert found[head["entry"] - 1]["sha256"] == head["sha256"] and found[head["entry"] - 1]["phase"] == "train"
    gate = next(entry for entry in found if entry["phase"] == "evaluate" and entry["event"] == "done")
    assert gate["judged"]["verdict"] == gate["verdict"] == "PASS"


def test_a_failure_and_an_interruption_are_told(made, run_script, monkeypatch):
    monkeypatch.setenv("STANDIN_FAIL", "validate")
    assert run_script("validate_dataset.py", "--config", "config/test.yaml", "--force").returncode == 3
    last = audit.entries()[0][-1]
    assert (last["event"], last["code"], last["judged"]["verdict"]) == ("failed", 3, "FAIL")
    assert last["cause"].startswith("validate did not pass")


def test_the_audit_tells_what_made_the_gguf(made):
    done = made()
    assert done.returncode == 0, done.stderr
    assert "file       test-Q4_K_M.gguf  sha256 " in done.stdout
    assert "evaluation PASS" in done.stdout
    for row in graph.PHASES:
        assert f"{row.name:15} entry " in done.stdout


def test_a_whole_trail_verifies_and_prints_its_head(made):
    done = made("--verify")
    assert done.returncode == 0, done.stderr
    found, _ = audit.entries()
    assert (
        done.stdout.splitlines()[-1]
        == f"ok   logs/audit.jsonl: {len(found)} entries, head {len(found)} {found[-1]['sha256']}"
    )


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("models/test-adapter/data.bin", "models/test-adapter/data.bin has other bytes than when train made it"),
        ("models/gguf/test-Q4_K_M.gguf", "models/gguf/test-Q4_K_M.gguf has other bytes than when gguf made it"),
        ("evaluation/test/evaluate/verdict.json", "verdict.json has other bytes than when evaluate made it"),
    ],
)
def test_other_bytes_are_found(made, path, cause):
    raw = bytearray(Path(path).read_bytes())
    raw[-2] ^= 1
    Path(path).write_bytes(raw)
    done = made("--verify")
    assert done.returncode == 6
    assert cause in done.stderr


def test_a_record_that_was_written_anew_is_found(made):
    path = Path("models/test-adapter/data.bin")
    path.write_text("other weights", encoding="utf-8")
    record = path.with_name("manifest.json")
    content = json.loads(record.read_text(encoding="utf-8"))
    content["subject"] = [{"name": "data.bin", "sha256": files.sha256_file(path), "size": path.stat().st_size}]
    manifest.write(record, content)
    done = made("--verify")
    assert done.returncode == 6
    assert "models/test-adapter/manifest.json is not as logs/audit.jsonl says it was written" in done.stderr


@pytest.mark.parametrize("kept", [0, 5])
def test_a_tail_that_was_cut_off_is_found(made, kept):
    found = lines(audit.LOG)
    audit.LOG.write_bytes(b"".join(found[:kept]))
    done = made("--verify")
    assert done.returncode == 6
    assert "of the audit trail, which logs/audit.jsonl does not hold" in done.stdout + done.stderr


def test_a_deleted_merged_model_is_noted_only(made):
    Path("models/merged/test-merged/data.bin").unlink()
    done = made("--verify")
    assert done.returncode == 0, done.stderr
    assert "note models/merged/test-merged/data.bin is gone" in done.stdout
