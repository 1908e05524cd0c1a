"""The frame around every phase: lock, signals, currentness, integrity, exit codes; run as real processes."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# A phase's script whose work the test chooses: PHASE is its name, WORK what it does.
SCRIPT = '''
"""Does what WORK says."""

import errno
import os
import time

from forge import phase


def work(run):
    wanted = os.environ.get("WORK", "write")
    if run.phase.gate:
        passed = wanted != "fail"
        check = {"name": "a figure", "value": 0.125, "limit": ">= 0.5", "n": 8, "passed": passed}
        if wanted == "own remedy":
            check |= {"passed": False, "remedy": "turn the screw"}
        good = {"name": "another", "value": 3, "limit": "3", "n": None, "passed": True}
        return {"checks": [good, check], "remedy": "raise the figure"}
    (run.staging / "data.bin").write_text(os.environ.get("TEXT", "new"), encoding="utf-8")
    match wanted:
        case "sleep":
            print("working", flush=True)
            time.sleep(100)
        case "raise":
            raise ZeroDivisionError("something\\n  went wrong")
        case "memory":
            raise MemoryError
        case "disk":
            with open("/dev/full", "w") as full:
                full.write("x" * 100_000)
        case "large":
            (run.staging / "large.bin").write_bytes(bytes(8_000_000))
        case "library":
            import numpy
            from safetensors.numpy import save_file

            save_file({"a": numpy.zeros(1_000_000)}, run.staging / "model.safetensors")
        case "permission":
            raise PermissionError(errno.EACCES, "Permission denied", "some/file")
        case "module":
            import a_module_that_is_not_there
    return {"rows": 3}


if __name__ == "__main__":
    phase.start(__doc__, os.environ["PHASE"], work)
'''
RECORD = Path("models/base/org/tiny/manifest.json")
DATA = Path("models/base/org/tiny/data.bin")


class Project:
    """A checkout with the script above; `run("dataset", work="raise")` runs it as that phase."""

    def __init__(self, root: Path):
        self.root = root

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "scripts/work.py", "--config", "config/test.yaml", *arguments]

    def environment(self, phase: str, work: str, text: str) -> dict:
        return {**os.environ, "PHASE": phase, "WORK": work, "TEXT": text}

    def run(
        self, phase: str = "model", *arguments: str, work: str = "write", text: str = "new"
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*arguments),
            env=self.environment(phase, work, text),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def done(self, *phases: str) -> None:
        for phase in phases:
            made = self.run(phase)
            assert made.returncode == 0, made.stderr

    @contextlib.contextmanager
    def working(self):
        """The process of a phase that is in the middle of its work."""
        process = subprocess.Popen(
            self.command("--force"),
            env=self.environment("model", "sleep", "newer"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            while (line := process.stdout.readline()) and line != "working\n":
                pass
            assert line == "working\n"
            yield process
        finally:
            process.kill()
            process.communicate()


@pytest.fixture
def project(checkout, write_config) -> Project:
    write_config(checkout, base="org/tiny")
    (checkout / "scripts/work.py").write_text(SCRIPT, encoding="utf-8")
    return Project(checkout)


def litter() -> list[str]:
    return [str(path) for path in Path().rglob(".*") if path.name.endswith((".partial", ".old"))]


def tail(done: subprocess.CompletedProcess) -> tuple[int, str]:
    return done.returncode, done.stderr


# -- a run --------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_does_and_leaves_a_record(project):
    done = project.run()
    assert tail(done) == (0, "")
    assert re.fullmatch(
        r"== model: get the base model \(it was not done yet\)\nmodel: wrote models/base/org/tiny in \d+ s\n",
        done.stdout,
    )
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert [item["name"] for item in record["subject"]] == ["data.bin"]
    assert (record["phase"], record["inputs"], record["facts"]) == ("model", [], {"rows": 3})
    assert record["settings"]["model"]["base_model_name"] == "org/tiny"
    assert {"config", "versions", "git_commit", "started", "seconds", "peak_mb"} < set(record)
    assert Path("logs/model.log").read_text(encoding="utf-8") == done.stdout
    assert litter() == []


def test_what_is_current_is_not_done_again(project):
    project.done("model")
    os.utime(RECORD, (1000, 1000))
    done = project.run(text="another")
    assert tail(done) == (0, "")
    assert done.stdout == f"model: same inputs and settings as before, nothing to do ({RECORD})\n"
    assert DATA.read_text(encoding="utf-8") == "new"
    assert RECORD.stat().st_mtime > 1_000_000_000  # make need not ask again


def test_force_works_anyhow(project):
    project.done("model")
    done = project.run("model", "--force", text="another")
    assert done.stdout.startswith("== model: get the base model (--force)\n")
    assert DATA.read_text(encoding="utf-8") == "another"
    assert litter() == []


def test_a_changed_setting_is_named(project, write_config, checkout):
    project.done("model")
    write_config(checkout, base="org/tiny", model={"base_model_name": "org/tiny", "dtype": "float16"})
    done = project.run()
    assert re.match(
        r'== model: get the base model \(model.dtype "bfloat16" -> "float16"; last time it took \d+ s\)\n', done.stdout
    )


def test_a_truncated_output_is_made_again(project):
    project.done("model")
    DATA.write_text("", encoding="utf-8")
    done = project.run()
    assert "(data.bin has 0 bytes instead of 3; " in done.stdout
    assert DATA.read_text(encoding="utf-8") == "new"


# -- the lock ------------------------------------------------------------------------------------------------


def test_a_locked_project_ends_with_5_and_names_the_process(project):
    with project.working() as holder:
        done = project.run("dataset")
        assert tail(done) == (
            5,
            f"FAIL test is locked by model, process {holder.pid}\n  do wait until it ends, or stop it\n",
        )
        assert done.stdout == ""
    assert project.run().returncode == 0


def test_a_lock_whose_holder_was_killed_is_free(project):
    with project.working() as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert Path("build/test/lock").read_text(encoding="utf-8") == f"model, process {holder.pid}"
    assert tail(project.run()) == (0, "")
    assert litter() == []


def test_another_project_is_not_locked(project, checkout, write_config):
    with project.working():
        text = Path("config/test.yaml").read_text(encoding="utf-8")
        Path("config/other.yaml").write_text(text.replace("name: test", "name: other", 1), encoding="utf-8")
        done = subprocess.run(
            [*project.command(), "--config", "config/other.yaml"],
            env=project.environment("model", "write", "new"),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert tail(done) == (0, "")


# -- ends that are no end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("old", [True, False])
def test_an_interrupted_phase_ends_with_75_and_keeps_the_old_output(project, kind, old):
    if old:
        project.done("model")
    with project.working() as process:
        process.send_signal(kind)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors == "FAIL interrupted\n  do run the same command again: it goes on\n"
    assert DATA.exists() == old
    assert tail(project.run()) == (0, "")
    assert DATA.read_text(encoding="utf-8") == "new"
    assert litter() == []


def test_a_killed_phase_keeps_the_old_output(project):
    project.done("model")
    with project.working() as process:
        process.kill()
        process.wait()
    assert DATA.read_text(encoding="utf-8") == "new"
    done = project.run()
    assert "nothing to do" in done.stdout
    assert litter() == []


@pytest.mark.parametrize(
    ("work", "code", "errors"),
    [
        (
            "raise",
            1,
            "FAIL ZeroDivisionError: something went wrong\n"
            "  do this is not expected: run again with --debug and report what it prints\n",
        ),
        ("memory", 7, "FAIL out of memory\n  do close other programs or add swap space\n"),
        ("disk", 7, "FAIL the disk is full:\n  do free some space and run the same command again\n"),
        (
            "permission",
            7,
            "FAIL some/file: Permission denied\n  do check the owner and the permissions of that path\n",
        ),
        ("module", 7, "FAIL No module named 'a_module_that_is_not_there'\n  do run make setup\n"),
    ],
)
def test_failures_end_with_their_code_and_keep_the_old_output(project, work, code, errors):
    project.done("model")
    done = project.run("model", "--force", work=work, text="half")
    assert tail(done) == (code, errors)
    assert DATA.read_text(encoding="utf-8") == "new"
    assert "Traceback" in project.run("model", "--force", "--debug", work=work).stderr
    assert "nothing to do" in project.run().stdout
    assert litter() == []


def small_disk(*command: str) -> list[str]:
    """The command with a disk of 1 MB in place of models/; only it and its children see that disk."""
    return ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs models && exec "$@"', "-", *command]


@pytest.mark.parametrize("work", ["large", "library"])
def test_a_disk_that_is_really_full(project, work):
    """The file system says so to Python's own files and, in words of its own, through a library."""
    Path("models").mkdir()
    if not shutil.which("unshare") or subprocess.run(small_disk("true"), capture_output=True).returncode:
        pytest.skip("this machine does not let a test mount a small disk")
    done = subprocess.run(
        small_disk(*project.command()),
        env=project.environment("model", work, "new"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 7, done.stderr
    assert re.fullmatch(r"FAIL [^\n]*(?i:disk is full|no space left)[^\n]*\n  do free some space[^\n]*\n", done.stderr)


def test_a_reader_that_leaves_does_not_make_half_work_a_success(project):
    """`make train | head -1`: when the phase did not finish, its code says so."""
    process = subprocess.Popen(
        project.command(),
        env=project.environment("model", "write", "new"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60) == 0) == RECORD.is_file()


def test_a_closed_reader_is_no_error_of_a_list(project):
    done = subprocess.run(
        f"'{sys.executable}' scripts/status.py --config config/test.yaml | head -n 1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("test (config/test.yaml)\n0\n", "")


# -- inputs ------------------------------------------------------------------------------------------------


def test_a_missing_input_names_the_target_that_makes_it(project):
    assert tail(project.run("dataset")) == (
        2,
        f"FAIL dataset needs {RECORD}, which is not there\n  do run make model CONFIG=config/test.yaml\n",
    )
    assert not Path("dataset_package").exists()


def test_a_flipped_byte_of_an_input_ends_with_6(project):
    project.done("model", "dataset")
    path = Path("dataset_package/test/data.bin")
    path.write_text("nev", encoding="utf-8")
    assert tail(project.run("validate")) == (
        6,
        "FAIL dataset_package/test: data.bin does not have its recorded SHA-256\n"
        "  do delete dataset_package/test/manifest.json and run make again: it is made anew\n",
    )


def test_a_truncated_input_ends_with_6(project):
    project.done("model", "dataset")
    Path("dataset_package/test/data.bin").write_text("", encoding="utf-8")
    done = project.run("validate")
    assert done.returncode == 6
    assert done.stderr.startswith("FAIL dataset_package/test: data.bin has 0 bytes instead of 3\n")


def test_a_changed_input_makes_stale(project):
    project.done("model", "dataset", "validate", "train")
    assert project.run("model", "--force", text="another").returncode == 0
    done = project.run("dataset")
    assert "(changed: model; " in done.stdout


def test_an_adapter_that_is_replaced_is_archived(project):
    project.done("model", "dataset", "validate", "train")
    assert project.run("train", "--force", text="another").returncode == 0
    kept = list(Path("models/archive").iterdir())
    assert [path.name.rpartition("-")[0] for path in kept] == ["test-adapter"]
    assert (kept[0] / "data.bin").read_text(encoding="utf-8") == "new"
    assert Path("models/test-adapter/data.bin").read_text(encoding="utf-8") == "another"
    assert litter() == []


# -- gates -------------------------------------------------------------------------------------------------


def test_a_gate_that_passes(project):
    project.done("model", "dataset")
    done = project.run("validate")
    assert tail(done) == (0, "")
    assert done.stdout.splitlines()[1:3] == [
        "  ok   another: 3, wanted 3",
        "  ok   a figure: 0.125, wanted >= 0.5 (n=8)",
    ]
    folder = Path("evaluation/test/validate")
    assert sorted(path.name for path in folder.iterdir()) == ["gate.ok", "verdict.json"]
    verdict = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    record = json.loads((folder / "gate.ok").read_text(encoding="utf-8"))
    assert (verdict["verdict"], record["verdict"]) == ("PASS", "PASS")
    assert verdict["bound_to"] == record["inputs"]
    assert "nothing to do" in project.run("validate").stdout


def test_a_gate_that_does_not_pass_ends_with_3_and_keeps_the_verdict(project):
    project.done("model", "dataset", "validate")
    done = project.run("validate", "--force", work="fail")
    assert tail(done) == (
        3,
        "FAIL validate did not pass: a figure: 0.125, wanted >= 0.5 (n=8)\n  do raise the figure\n",
    )
    assert "  FAIL a figure: 0.125, wanted >= 0.5 (n=8)\n" in done.stdout
    folder = Path("evaluation/test/validate")
    assert [path.name for path in folder.iterdir()] == ["verdict.json"]
    assert json.loads((folder / "verdict.json").read_text(encoding="utf-8"))["verdict"] == "FAIL"
    assert tail(project.run("train")) == (
        2,
        "FAIL train needs evaluation/test/validate/gate.ok, which is not there\n"
        "  do run make validate CONFIG=config/test.yaml\n",
    )


def test_a_check_may_have_a_remedy_of_its_own(project):
    project.done("model", "dataset")
    done = project.run("validate", work="own remedy")
    assert tail(done) == (
        3,
        "FAIL validate did not pass: a figure: 0.125, wanted >= 0.5 (n=8)\n  do turn the screw\n",
    )


def test_a_gate_that_passed_for_another_dataset_ends_with_3(project):
    project.done("model", "dataset", "validate")
    assert project.run("dataset", "--force", text="another").returncode == 0
    assert tail(project.run("train")) == (
        3,
        "FAIL validate passed for another dataset than is there now\n  do run make validate CONFIG=config/test.yaml\n",
    )


def test_an_interrupted_gate_has_no_record(project):
    """The old pass is gone as soon as the gate is asked again: nothing may rely on it meanwhile."""
    project.done("model", "dataset", "validate")
    Path("evaluation/test/validate/verdict.json").unlink()
    Path("evaluation/test/validate/verdict.json").mkdir()  # so that the new verdict cannot be written
    assert project.run("validate", "--force").returncode != 0
    assert not Path("evaluation/test/validate/gate.ok").exists()


# -- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--forc"], ["--config"], ["more"]])
def test_unknown_arguments_end_with_2(project, arguments):
    done = project.run("model", *arguments)
    assert done.returncode == 2
    assert "work.py: error: " in done.stderr
    assert not Path("models").exists()


@pytest.mark.parametrize(("patience", "lines"), [(0, ["  1 of 3 weights", "  2 of 3 weights"]), (1000, [])])
def test_progress_is_told_where_it_takes_long(monkeypatch, patience, lines):
    from types import SimpleNamespace

    from forge import phase

    said = []
    monkeypatch.setattr(phase, "PATIENCE", patience)
    told = phase.Run.progress(SimpleNamespace(say=said.append), "weights")
    for done in (1, 2, 3):
        told(done, 3)
    assert said == lines
