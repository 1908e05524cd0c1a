"""scripts/setup_environment.sh up to the point where something is downloaded: what it refuses, and why."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

NEEDED = ("bash", "sed", "grep", "tar", "cat", "rm", "touch", "mkdir", "ln", "ls", "dirname", "env", "uname", "id")
REAL = sys.executable


@pytest.fixture
def bin(tmp_path) -> Path:
    """A folder that alone is PATH: the tools that the script needs, no Python and no compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NEEDED:
        (folder / name).symlink_to(shutil.which(name))
    return folder


@pytest.fixture
def setup(checkout, bin, tmp_path):
    """`setup("light", PYTHON3=...)` runs the script with PATH and an empty home of its own."""

    def run(step: str, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["scripts/setup_environment.sh", step],
            env={"PATH": str(bin), "HOME": str(tmp_path / "home"), **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def real_python(path: Path) -> Path:
    """The tests' Python under another name."""
    return executable(path, f'exec "{REAL}" "$@"')


def python_3_10(path: Path) -> Path:
    return executable(path, 'case "$1" in -V) echo "Python 3.10.12" ;; *) exit 1 ;; esac')


def python_that_fills(path: Path) -> Path:
    """A Python whose venv module writes one file: what a set-up that goes too far would do."""
    return executable(path, f'[ "$2" = venv ] || exec "{REAL}" "$@"\ntouch "$3/pyvenv.cfg"; exit 1')


def shim(path: Path) -> Path:
    """What a version manager leaves on PATH for a Python that is not installed."""
    return executable(path, 'echo "pyenv: $0: command not found" >&2; exit 127')


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def failed(done: subprocess.CompletedProcess) -> tuple[int, str, str]:
    """Code, cause and remedy: the last two lines."""
    *_, cause, remedy = done.stderr.splitlines()
    assert cause.startswith("FAIL ")
    assert remedy.startswith("  do ")
    return done.returncode, cause.removeprefix("FAIL "), remedy.removeprefix("  do ")


# -- which Python ---------------------------------------------------------------------------------------------

NONE_FOUND = (
    "sudo add-apt-repository ppa:deadsnakes/ppa && sudo apt install python3.11 python3.11-venv (Ubuntu 22.04), or "
    "name one: make setup PYTHON3=/path/to/python3.11"
)


def test_a_shim_and_an_old_python_are_not_taken(setup, bin):
    shim(bin / "python3.11")
    shim(bin / "python3.12")
    python_3_10(bin / "python3")
    done = setup("light")
    assert failed(done) == (7, "no Python 3.11 to 3.13 found (python3 is Python 3.10.12)", NONE_FOUND)
    assert not Path(".venv").exists()


def test_no_python_at_all(setup):
    assert failed(setup("light")) == (7, "no Python 3.11 to 3.13 found (python3 is missing)", NONE_FOUND)
    assert not Path(".venv").exists()


@pytest.mark.parametrize("make", [python_3_10, shim, None])
def test_a_named_python_that_does_not_do(setup, bin, tmp_path, make):
    real_python(bin / "python3")  # it is not taken instead
    named = tmp_path / "my python" / "python"
    if make:
        make(named)
    assert failed(setup("light", PYTHON3=str(named))) == (
        7,
        f"PYTHON3={named} is no Python 3.11 to 3.13",
        "name another one",
    )
    assert not Path(".venv").exists()


def test_a_python_that_makes_no_environment(setup, bin):
    """Debian's python3 without python3-venv. What is half made counts as ours: the next run goes on."""
    broken = f'[ "$2" = venv ] && exit 1; exec "{REAL}" "$@"'
    executable(bin / "python3.11", broken)
    assert failed(setup("light")) == (
        7,
        "python3.11 cannot make a virtual environment",
        "install its venv module, for example: sudo apt install python3-venv",
    )
    assert not Path(".venv/light.ok").exists()
    assert Path(".venv/model-forge.created").is_file()


@pytest.mark.parametrize("name", ["python3.11", "python3.13", "python3"])
def test_a_python_that_runs_is_found_behind_shims(setup, bin, name):
    for other in ("python3.11", "python3.12"):
        shim(bin / other)
    (bin / name).unlink(missing_ok=True)
    # It makes the environment, in which pip then fails: nothing is downloaded in this test.
    executable(
        bin / name,
        f'[ "$2" = venv ] || exec "{REAL}" "$@"\nmkdir -p "$3/bin"; ln -s "$(type -P false)" "$3/bin/python"',
    )
    (bin / "false").symlink_to(shutil.which("false"))
    done = setup("light")
    assert done.stdout.startswith("set-up: Python 3.1")
    assert failed(done) == (7, "pip could not install PyYAML and pydantic", "check the network")
    assert not Path(".venv/light.ok").exists()


# -- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["", "nonsense", "fail"])
def test_an_unknown_step(setup, step):
    assert failed(setup(step)) == (2, f"unknown step '{step}'", "scripts/setup_environment.sh light|full|dev")


@pytest.mark.parametrize("name", ["cuda", "CPU", "cu999"])
def test_an_unknown_torch(setup, name):
    Path(".venv/bin").mkdir(parents=True)
    Path(".venv/model-forge.created").touch()
    assert failed(setup("full", TORCH=name)) == (
        2,
        f"TORCH={name} is unknown",
        "TORCH=cpu, cu126 or cu130, or leave it out",
    )
    assert not Path(".venv/ready.ok").exists()


# -- somebody's own environment -------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A virtual environment that a person made, with nothing in it."""
    folder = tmp_path / "my env"
    subprocess.run([REAL, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    return folder


def test_nothing_is_installed_into_a_foreign_environment(setup, foreign):
    before = tree(foreign)
    assert failed(setup("light", VENV=str(foreign))) == (
        7,
        f"{foreign} was not made by this set-up and lacks PyYAML or pydantic",
        "install them there yourself, or leave VENV out",
    )
    code, cause, remedy = failed(setup("full", VENV=str(foreign)))
    assert code == 7
    assert cause.startswith(f"{foreign} lacks torch transformers ")
    assert cause.endswith("and nothing is installed into an environment that is not ours")
    assert remedy == "install them there yourself, or leave VENV out"
    assert tree(foreign) == before


def test_tests_tools_are_not_installed_into_a_foreign_environment(setup, foreign):
    before = tree(foreign)
    setup("dev", VENV=str(foreign))
    assert set(tree(foreign)) - set(before) <= {"dev.ok"}


def test_a_conda_environment_is_foreign(setup, bin, tmp_path):
    """It has no pyvenv.cfg, and is somebody's nevertheless."""
    python_that_fills(bin / "python3.11")
    folder = tmp_path / "miniconda3"
    (folder / "conda-meta").mkdir(parents=True)
    shim(folder / "bin/python")
    before = tree(folder)
    done = setup("light", VENV=str(folder))
    assert tree(folder) == before
    assert failed(done)[0] == 7


def test_a_folder_of_something_else_is_not_filled(setup, bin, tmp_path):
    python_that_fills(bin / "python3.11")
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "letter.txt").write_text("Dear", encoding="utf-8")
    before = tree(folder)
    done = setup("light", VENV=str(folder))
    assert tree(folder) == before
    assert failed(done)[0] == 7


def test_a_whole_foreign_environment_is_taken_as_it_is(setup, foreign):
    """One that finds all that is needed, here by a path to the packages of these tests, gets three stamps."""
    packages = next(foreign.glob("lib/python3*/site-packages"))
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    before = tree(foreign)
    for step in ("light", "full", "dev"):
        done = setup(step, VENV=str(foreign), LLAMA_CPP="somewhere")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert set(tree(foreign)) - set(before) == {"light.ok", "ready.ok", "dev.ok"}
    assert not Path(".llama.cpp").exists()


# -- the compiler ------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(checkout) -> Path:
    """An environment of ours with the packages and llama.cpp's source, before the build. Its pip does nothing."""
    venv = checkout / ".venv"
    executable(venv / "bin/python", "exit 0")
    (venv / "model-forge.created").touch()
    pins = Path("requirements-finetuning.txt").read_text(encoding="utf-8")
    version = next(line for line in pins.splitlines() if line.startswith("llama-cpp-python==")).partition("==")[2]
    (venv / "src").mkdir()
    (venv / f"src/{version}.complete").touch()
    return venv


def test_no_compiler(setup, installed):
    assert failed(setup("full")) == (7, "no C++ compiler", "sudo apt install build-essential")
    assert not (installed / "ready.ok").exists()


@pytest.mark.parametrize("name", ["c++", "g++", "clang++"])
def test_any_compiler_will_do(setup, installed, bin, name):
    executable(bin / name, "exit 0")
    done = setup("full")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "set-up: building llama.cpp (some minutes)\nset-up: done\n"
    assert (installed / "ready.ok").is_file()
    assert (installed / "llama.cpp").readlink() == Path("src/vendor/llama.cpp")


@pytest.mark.parametrize(("knows", "given"), [("exit 0", True), ('[[ "$*" != *-mno-amx* ]]', False)])
def test_llama_is_built_without_amx_where_the_compiler_knows_it(setup, installed, bin, knows, given):
    executable(bin / "g++", knows)
    executable(installed / "bin/python", 'echo "$@" >>pip.log')
    assert setup("full").returncode == 0
    built = Path("pip.log").read_text(encoding="utf-8").splitlines()[-1]
    assert built.endswith(" .venv/src")
    flags = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    assert (f"CMAKE_CXX_FLAGS={flags}" in built, f"CMAKE_C_FLAGS={flags}" in built) == (given, given)


def test_what_is_built_is_not_built_again(setup, installed, bin):
    executable(bin / "g++", "exit 0")
    setup("full")
    assert setup("full").stdout == "set-up: done\n"
    executable(bin / "nvcc", "exit 0")
    assert "building" in setup("full", LLAMA_CUDA="1").stdout  # for the GPU it is another build


def test_cuda_without_its_compiler(setup, installed, bin):
    executable(bin / "g++", "exit 0")
    assert failed(setup("full", LLAMA_CUDA="1")) == (
        7,
        "LLAMA_CUDA=1 needs nvcc",
        "install the CUDA toolkit of your driver, or leave it out",
    )


def test_a_gpu_without_the_build_for_it_is_named(setup, installed, bin):
    executable(bin / "g++", "exit 0")
    executable(bin / "nvidia-smi", "exit 0")
    assert setup("full").stdout.startswith(
        "note: llama.cpp is built for the CPU; make setup LLAMA_CUDA=1 builds it for your GPU\n"
    )


@pytest.mark.parametrize(
    ("fails", "cause"),
    [
        ("requirements.partial", "pip could not install requirements-finetuning.txt"),
        (".venv/src", "llama-cpp-python could not be built"),
    ],
)
def test_a_failed_installation_leaves_no_stamp(setup, installed, bin, fails, cause):
    executable(bin / "g++", "exit 0")
    executable(installed / "bin/python", f'case "${{@: -1}}" in *{fails}) exit 1 ;; esac')
    code, found, remedy = failed(setup("full"))
    assert (code, found) == (7, cause)
    assert remedy
    assert not (installed / "ready.ok").exists()
    assert not (installed / "llama.built").exists()


def test_the_named_torch_is_the_pinned_one(setup, installed, bin):
    executable(bin / "g++", "exit 0")
    executable(installed / "bin/python", 'echo "$@" >>pip.log')
    assert setup("full", TORCH="cpu").returncode == 0
    pins = Path("requirements-finetuning.txt").read_text(encoding="utf-8")
    torch = next(line for line in pins.splitlines() if line.startswith("torch=="))
    first = Path("pip.log").read_text(encoding="utf-8").splitlines()[0]
    assert f" {torch}+cpu --extra-index-url https://download.pytorch.org/whl/cpu" in first


def test_the_name_of_an_environment_is_never_run(setup):
    assert setup("full", VENV="$(touch hacked) `touch hacked`").returncode != 0
    assert not Path("hacked").exists()
