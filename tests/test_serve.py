"""make serve: the real server on a tiny model, asked by the real client of OpenAI."""

import json
import socket
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest
from conftest import new_checkout
from forge.errors import BAD_INPUT, ENVIRONMENT, INTEGRITY, ForgeError
from forge.serving import access, finished
from shipping import ASKED, KEY, TRUTH, Served, finish, write


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_gguf) -> Path:
    made = new_checkout(tmp_path_factory.mktemp("serve"))
    finish(made, tiny_gguf)
    return made


@pytest.fixture(scope="module")
def served(root):
    with Served(root) as running:
        yield running


# -- llama-cpp-python's server ----------------------------------------------------------------------------------


def test_the_model_has_the_projects_name(served):
    assert [model.id for model in served.client().models.list()] == ["test"]


def test_a_chat(served):
    answer = served.ask()
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens <= 12


def test_the_prompt_is_the_files_own_template(served, tiny_tokenizer):
    """The tokens that the server counts are those that the template of the training writes."""
    wanted = tiny_tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, tokenize=False)
    ids = tiny_tokenizer(wanted, add_special_tokens=False)["input_ids"]
    assert served.ask(max_tokens=1).usage.prompt_tokens == len(ids)


def test_streaming_gives_the_same_answer_in_pieces(served):
    whole = served.text()
    pieces = [part.choices[0].delta.content or "" for part in served.ask(stream=True)]
    assert "".join(pieces) == whole
    assert sum(1 for piece in pieces if piece) > 3


def test_json_mode(served):
    assert served.text(response_format={"type": "json_object"}).lstrip().startswith("{")
    told = json.loads(served.text(max_tokens=64, response_format={"type": "json_object", "schema": TRUTH}))
    assert list(told) == ["true"] and isinstance(told["true"], bool)


def test_a_stop_text_ends_the_answer_before_it(served):
    whole = served.text()
    stop = whole[len(whole) // 2 :][:4]
    answer = served.ask(stop=[stop]).choices[0]
    assert (answer.message.content, answer.finish_reason) == (whole[: whole.index(stop)], "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_eight_clients_at_once_are_all_answered_whole(served, stream):
    """With interrupt_requests on, its default, the next request cuts the answer that is being streamed."""
    questions = [[*ASKED[:1], {"role": "user", "content": f"Question {number}?"}] for number in range(8)]
    alone = [served.text(turns) for turns in questions]

    def ask(turns: list[dict]) -> str:
        if not stream:
            return served.text(turns)
        return "".join(part.choices[0].delta.content or "" for part in served.ask(turns, stream=True))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, questions)) == alone
    assert len(set(alone)) > 1


def test_a_request_larger_than_the_context_is_told_and_the_server_lives_on(served):
    turns = [{"role": "user", "content": "too long " * 600}]
    with pytest.raises(openai.BadRequestError) as caught:
        served.ask(turns)
    assert caught.value.code == "context_length_exceeded"
    assert "maximum context length is 512 tokens" in caught.value.message
    with pytest.raises(openai.APIError, match="maximum context length is 512 tokens"):
        list(served.ask(turns, stream=True))
    assert served.text()


def test_a_wrong_key_is_refused(served):
    for key in ("wrong", "other"):
        with pytest.raises(openai.AuthenticationError) as caught:
            served.client(key).chat.completions.create(model="test", messages=ASKED)
        assert caught.value.status_code == 401


def test_other_machines_and_pages_of_others_cannot_ask(served):
    listening = [at for at in psutil.Process(served.process.pid).net_connections("inet") if at.status == "LISTEN"]
    assert [(at.laddr.ip, at.laddr.port) for at in listening] == [("127.0.0.1", served.port)]

    def headers(**sent: str) -> dict[str, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{served.port}/v1/models")
        for name, value in {"Authorization": f"Bearer {KEY}", **sent}.items():
            request.add_header(name, value)
        with urllib.request.urlopen(request, timeout=30) as reply:
            return {name.lower(): value for name, value in reply.headers.items()}

    assert headers(Origin="http://localhost:3000")["access-control-allow-origin"] == "http://localhost:3000"
    assert "access-control-allow-origin" not in headers(Origin="http://example.org")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        headers(Host="example.org")


def test_the_key_stands_in_no_log_and_no_command_line(served):
    assert KEY not in served.printed() and KEY not in " ".join(psutil.Process(served.process.pid).cmdline())
    assert "the key is that of MODEL_FORGE_API_KEY" in served.printed()
    assert "\x1b" not in served.printed()


def test_sigterm_ends_it_kindly(root):
    with Served(root, key=None) as running:
        assert running.client("anything").models.list().data
        assert running.stop() == 0
    assert "no key is wanted: MODEL_FORGE_API_KEY is not set" in running.printed()
    assert running.printed().endswith("stopped\n")
    assert "Traceback" not in running.printed()


# -- what is refused before the model is loaded -----------------------------------------------------------------


@pytest.fixture
def refused(root, run_script, monkeypatch):
    """`refused(code, key=..., port=...)` is what the script says, in one line of cause and one of remedy."""
    monkeypatch.chdir(root)

    def run(code: int, key: str = "", **serve) -> list[str]:
        done = run_script("serve_model.py", "--config", write(root, **serve), env={access.KEY: key})
        assert done.returncode == code, done.stdout + done.stderr
        said = done.stderr.splitlines()
        assert len(said) == 2 and said[0].startswith("FAIL ") and said[1].startswith("  do ")
        return said

    return run


def test_a_port_in_use(refused):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert refused(ENVIRONMENT, port=port)[0] == f"FAIL port {port} of 127.0.0.1 is in use"


def test_an_address_that_others_reach_needs_a_key(refused):
    said = refused(BAD_INPUT, host="0.0.0.0")
    assert said[0] == "FAIL serve.host 0.0.0.0 can be reached from other machines, and there is no key"


def test_an_address_of_another_machine(refused):
    assert refused(BAD_INPUT, key=KEY, host="192.0.2.1")[0].startswith("FAIL cannot listen on serve.host 192.0.2.1: ")


@pytest.mark.parametrize("key", ["a key", "one,two", "\u00fc", "a\tb"])
def test_a_key_that_no_header_can_carry(refused, key):
    said = refused(BAD_INPUT, key=key)
    assert said[0] == "FAIL MODEL_FORGE_API_KEY holds a space, a comma or a character that is not ASCII"


def test_a_context_that_the_model_does_not_have(refused):
    assert refused(BAD_INPUT, context=1024)[0] == (
        "FAIL serve.context 1024 is more than the 512 tokens that the model was made for"
    )


def test_the_key_may_stand_in_env_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(access.KEY, raising=False)
    assert access.key() is None
    Path(".env").write_text(f"{access.KEY}=from-the-file\n", encoding="utf-8")
    assert access.key() == "from-the-file"
    monkeypatch.setenv(access.KEY, "from-the-environment")
    assert access.key() == "from-the-environment"


def test_a_missing_or_changed_file(checkout, tiny_gguf, write_config):
    from forge import config

    write_config(checkout, base="org/tiny")
    loaded = config.load("config/test.yaml")

    def problem() -> ForgeError:
        with pytest.raises(ForgeError) as caught:
            finished.find(loaded)
        return caught.value

    assert (problem().cause, problem().code) == ("there is no GGUF yet", BAD_INPUT)
    assert problem().remedy == "run make all CONFIG=config/test.yaml"
    path = finish(checkout, tiny_gguf)
    assert finished.find(loaded).path.absolute() == path
    raw = path.read_bytes()
    path.unlink()
    assert (problem().cause, problem().code) == ("models/gguf/test-BF16.gguf is gone", INTEGRITY)
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert problem().cause == "models/gguf/test-BF16.gguf has other bytes than when it was checked"
    assert problem().code == INTEGRITY
    path.write_bytes(raw)
    (path.parent / "test.Modelfile").write_text("FROM elsewhere\n", encoding="utf-8")
    assert problem().code == INTEGRITY


def test_urls_for_clients():
    assert access.url("127.0.0.1", 8000) == access.url("0.0.0.0", 8000) == "http://127.0.0.1:8000/v1"
    assert access.url("::1", 1) == access.url("::", 1) == "http://[::1]:1/v1"
    assert [access.is_loopback(host) for host in ("127.0.0.9", "::1", "localhost", "0.0.0.0", "example.org")] == [
        *[True] * 3,
        *[False] * 2,
    ]
