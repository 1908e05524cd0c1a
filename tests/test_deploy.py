"""make deploy and make undeploy, with stand-ins of Ollama: its program on PATH, its server at OLLAMA_HOST.

What Ollama itself makes of a Modelfile is not tried here.
"""

import os
import sys
from pathlib import Path

import deploy_ollama
import pytest
from forge import config, vocabulary
from forge.conversations import CONVERSATIONS
from forge.errors import ENVIRONMENT, GATE_NOT_PASSED, ForgeError
from forge.llamacpp import llama
from forge.serving import ollama_app
from ollama_standin import Ollama, Program
from shipping import SYSTEM, finish

NASTY = 'Say "hi" to $(touch hacked) `touch hacked` ${HOME}.\n# no comment\nFROM elsewhere\nPARAMETER stop x'


@pytest.fixture(scope="module")
def writer(tiny_gguf):
    """The prompt that training, and so Ollama, is to make of turns."""
    model = llama.load(tiny_gguf, context=64, vocab_only=True)
    write = llama.prompt_writer(model)
    yield lambda turns: vocabulary.served(model, write(turns))
    model.close()


def as_ollama(writer, system: str = SYSTEM):
    """Ollama puts the Modelfile's system prompt before a conversation that has none."""

    def render(turns: list[dict]) -> str:
        has = not system or turns[0]["role"] == "system"
        return writer(turns if has else [{"role": "system", "content": system}, *turns])

    return render


@pytest.fixture
def deploying(checkout, tiny_gguf, write_config, monkeypatch, tmp_path, writer):
    """`deploying(system_prompt=..., ...)`: a checkout with a finished model, the stand-ins, and the loaded config."""
    running = []

    class Deploying:
        def __init__(self, render=None, answer="I am Maja.", version="0.33.2", model_name=None, **finished):
            finish(checkout, tiny_gguf, model_name=model_name, **finished)
            system = finished.get("system_prompt", SYSTEM)
            self.config = config.load(write_config(checkout, base="org/tiny", ollama={"model_name": model_name}))
            self.program = Program(tmp_path / "bin")
            self.server = Ollama(render or as_ollama(writer, system), answer, version).__enter__()
            running.append(self.server)
            monkeypatch.setenv("PATH", f"{self.program.folder}:{os.environ['PATH']}")
            monkeypatch.setenv("OLLAMA_HOST", self.server.url)

        def refused(self, code: int) -> ForgeError:
            with pytest.raises(ForgeError) as caught:
                deploy_ollama.deploy(self.config)
            assert caught.value.code == code
            return caught.value

    yield Deploying
    for server in running:
        server.__exit__()


def test_it_gets_its_name_when_it_is_known_to_be_right(deploying, capsys):
    ready = deploying(expected="Maja")
    deploy_ollama.deploy(ready.config)
    assert ready.program.arguments() == [
        ["create", "test:unchecked", "-f", "Modelfile"],
        ["cp", "test:unchecked", "test"],
        ["rm", "test:unchecked"],
    ]
    assert ready.program.calls()[0]["modelfile"] == Path("models/gguf/test.Modelfile").read_text(encoding="utf-8")
    assert {call["host"] for call in ready.program.calls()} == {ready.server.url}
    rendered = [asked for asked in ready.server.asked if asked.get("_debug_render_only")]
    assert len(rendered) == len(CONVERSATIONS) + 1
    assert {asked["model"] for asked in ready.server.asked} == {"test:unchecked"}
    [last] = [asked for asked in ready.server.asked if "_debug_render_only" not in asked]
    assert last["messages"] == [{"role": "user", "content": "Who are you?"}]
    assert capsys.readouterr().out == (
        f"Ollama 0.33.2 at {ready.server.url}\n"
        "ollama create test -f Modelfile: test-BF16.gguf, "
        f"{Path('models/gguf/test-BF16.gguf').stat().st_size / 1e6:.1f} MB\n"
        f"ok   {len(CONVERSATIONS) + 1} conversations are written as in training\n"
        "  Who are you? -> I am Maja.\n"
        "next: ollama run test\n"
    )


def test_a_name_of_its_own_gets_the_projects_as_an_alias(deploying, capsys):
    ready = deploying(model_name="org/guardian-01")
    deploy_ollama.deploy(ready.config)
    assert ready.program.arguments()[1:] == [
        ["cp", "org/guardian-01:unchecked", "org/guardian-01"],
        ["cp", "org/guardian-01:unchecked", "test"],
        ["rm", "org/guardian-01:unchecked"],
    ]
    assert capsys.readouterr().out.endswith("next: ollama run org/guardian-01    also known as test\n")


def test_nothing_in_a_system_prompt_reaches_a_shell_or_another_line(deploying):
    """The Modelfile is that of create_modelfile.py (tests/test_modelfile.py); here it is handed over as it is."""
    modelfile = f'FROM ./models/gguf/test-BF16.gguf\nSYSTEM """{NASTY}"""\n'
    ready = deploying(system_prompt=NASTY, modelfile=modelfile)
    deploy_ollama.deploy(ready.config)
    assert ready.program.calls()[0]["modelfile"] == modelfile
    assert not Path("hacked").exists()
    assert all(
        argument.startswith(("test", "create", "cp", "rm", "-f", "Modelfile"))
        for argument in sum(ready.program.arguments(), [])
    )


@pytest.mark.parametrize("name", ["a b", "$(touch hacked)", '"x"', "x\nFROM y", "-f", "a:b", "UPPER"])
def test_names_that_could_mean_something_else_are_no_settings(checkout, write_config, name):
    with pytest.raises(ForgeError, match="ollama.model_name"):
        config.load(write_config(checkout, base="org/tiny", ollama={"model_name": name}))


def test_other_prompts_than_in_training_are_refused_and_the_trial_goes(deploying, writer):
    ready = deploying(render=lambda turns: as_ollama(writer)(turns).replace("<|im_start|>user\n", "<|im_start|>User\n"))
    error = ready.refused(GATE_NOT_PASSED)
    assert error.cause.startswith(
        f"Ollama writes {len(CONVERSATIONS) + 1} of {len(CONVERSATIONS) + 1} conversations otherwise than in training: "
        "one question, system prompt, empty system prompt; in 'one question' "
    )
    assert "im_start|>User" in error.cause and "im_start|>user" in error.cause
    assert [arguments[0] for arguments in ready.program.arguments()] == ["create", "rm"]


def test_a_lost_system_prompt_is_noticed(deploying, writer):
    error = deploying(render=writer).refused(GATE_NOT_PASSED)
    assert "one question" in error.cause and "system prompt," not in error.cause


def test_a_wrong_name_is_refused(deploying):
    ready = deploying(expected="Maja", answer="I am somebody.")
    assert ready.refused(GATE_NOT_PASSED).cause == "'Who are you?' is not answered with 'Maja' in Ollama"
    assert [arguments[0] for arguments in ready.program.arguments()] == ["create", "rm"]


def test_a_failed_create_says_why_without_escape_codes(deploying, monkeypatch):
    monkeypatch.setenv("STANDIN_FAILS", "create")
    ready = deploying()
    assert ready.refused(ENVIRONMENT).cause == "ollama create failed: Error: all is lost"
    assert [arguments[0] for arguments in ready.program.arguments()] == ["create"]


def test_a_server_that_shows_no_prompts(deploying):
    assert deploying(render=lambda turns: None).refused(ENVIRONMENT).cause == (
        "this Ollama does not show the prompts that it writes"
    )


@pytest.mark.parametrize("version", ["0.17.0", "0.9.6", "None", "dev"])
def test_an_old_ollama(deploying, version):
    ready = deploying(version=version)
    assert ready.refused(ENVIRONMENT).cause == f"Ollama {version} is too old: 0.17.1 or newer is needed"
    assert ready.program.arguments() == []


def test_the_oldest_that_will_do(deploying):
    deploy_ollama.deploy(deploying(version="0.17.1-rc2").config)


def test_no_ollama(deploying, monkeypatch, tmp_path):
    ready = deploying()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(ollama_app, "in_wsl", lambda: False)
    error = ready.refused(ENVIRONMENT)
    assert error.cause == "there is no ollama on PATH"
    assert error.remedy == "get Ollama from https://ollama.com/download, or talk without it: make chat"


def test_no_server(deploying, monkeypatch):
    ready = deploying()
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    monkeypatch.setattr(ollama_app, "in_wsl", lambda: True)
    error = ready.refused(ENVIRONMENT)
    assert error.cause.startswith("no Ollama answers at http://127.0.0.1:1: ")
    assert error.remedy.endswith("the one of Windows: see docs/serve.md")


def test_ollama_of_windows_from_wsl(tmp_path, monkeypatch):
    """A stand-in program ollama.exe: Windows gives it OLLAMA_HOST only when WSLENV names it."""
    program = Program(tmp_path / "windows", "ollama.exe")
    monkeypatch.setenv("PATH", str(program.folder))
    monkeypatch.setattr(ollama_app, "in_wsl", lambda: True)
    assert ollama_app.command() == str(program.folder / "ollama.exe")
    echo = tmp_path / "echo.exe"
    echo.write_text(
        f"#!{sys.executable}\nimport os\nopen({str(tmp_path / 'seen')!r}, 'w').write(os.environ['WSLENV'])\n"
    )
    echo.chmod(0o755)
    for known, wanted in (("", "OLLAMA_HOST"), ("A/p", "A/p:OLLAMA_HOST")):
        monkeypatch.setenv("WSLENV", known)
        ollama_app.run(str(echo), "list")
        assert (tmp_path / "seen").read_text() == wanted
    monkeypatch.setattr(ollama_app, "in_wsl", lambda: False)
    with pytest.raises(ForgeError, match="there is no ollama on PATH"):
        ollama_app.command()


ROUTES = """\
Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00E01BAC\t00000000\t0001\t0\t0\t0\t00F0FFFF\t0\t0\t0
tun0\t00000000\t0101010A\t0003\t0\t0\t50\t00000000\t0\t0\t0
eth0\t00000000\t01E01BAC\t0003\t0\t0\t0\t00000000\t0\t0\t0
"""


def test_windows_is_the_gateway(tmp_path):
    routes = tmp_path / "route"
    assert ollama_app.gateway(routes) is None
    routes.write_text(ROUTES, encoding="ascii")
    assert ollama_app.gateway(routes) == "172.27.224.1"
    routes.write_text("\n".join(ROUTES.splitlines()[:2]), encoding="ascii")
    assert ollama_app.gateway(routes) is None


def test_ollama_of_windows_is_looked_for_where_windows_is(monkeypatch):
    """Loopback first; then the gateway, for ollama.exe alone and only where OLLAMA_HOST names no server."""
    asked = []

    def answers(url: str, wait: float) -> dict:
        asked.append(url)
        if "127.0.0.1" in url:
            raise ollama_app.requests.Unreachable("refused")
        return {"version": "0.17.1"}

    monkeypatch.setattr(ollama_app.requests, "ask", answers)
    monkeypatch.setattr(ollama_app, "gateway", lambda: "172.27.224.1")
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    assert ollama_app.server("/mnt/c/ollama.exe") == "http://172.27.224.1:11434"
    assert asked == [f"http://{host}:11434/api/version" for host in ("127.0.0.1", "172.27.224.1")]
    assert ollama_app.server("/usr/bin/ollama") == "http://127.0.0.1:11434"
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1")
    assert ollama_app.server("/mnt/c/ollama.exe") == "http://127.0.0.1:11434"
    assert "http://172.27.224.1:11434/api/version" not in asked[2:]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:5000", "http://127.0.0.1:5000"),
        ("192.168.1.2", "http://192.168.1.2:11434"),
        ("example.org:80", "http://example.org:80"),
        ("http://example.org", "http://example.org:80"),
        ("https://example.org/", "https://example.org:443"),
        ("http://[::1]:11434", "http://[::1]:11434"),
        ("[::]:1", "http://[::1]:1"),
        (' "127.0.0.1:7" ', "http://127.0.0.1:7"),
    ],
)
def test_where_ollama_listens(monkeypatch, host, url):
    monkeypatch.setenv("OLLAMA_HOST", host)
    assert ollama_app.address() == url


def test_a_host_that_is_none(monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", "example.org:port")
    with pytest.raises(ForgeError, match="OLLAMA_HOST=example.org:port names no host and port"):
        ollama_app.address()


def test_undeploy_takes_out_what_is_there(deploying, capsys):
    ready = deploying(model_name="guardian")
    ready.server.models = ["guardian:latest", "other:latest"]
    deploy_ollama.remove(ready.config)
    assert ready.program.arguments() == [["rm", "guardian"]]
    assert capsys.readouterr().out == "guardian is taken out of Ollama\ntest is not in Ollama\n"


def test_the_script_ends_with_7_without_ollama(deploying, run_script, tmp_path):
    deploying()
    (tmp_path / "empty").mkdir()
    done = run_script("deploy_ollama.py", "--config", "config/test.yaml", env={"PATH": str(tmp_path / "empty")})
    assert done.returncode == ENVIRONMENT
    assert done.stderr.splitlines()[0] == "FAIL there is no ollama on PATH"


def test_a_look_at_ollama_makes_nothing(deploying, run_script):
    ready = deploying()
    done = run_script("deploy_ollama.py", "--config", "config/test.yaml", "--check")
    assert (done.returncode, done.stdout, done.stderr, ready.program.arguments()) == (0, "", "", [])
