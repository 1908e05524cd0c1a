"""serve.engine: llama-server. The real one where it is slow, else what is run, and how its compilation fails."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest
from conftest import new_checkout
from forge.errors import ENVIRONMENT, ForgeError
from forge.llamacpp import compiling, llama
from forge.serving import finished, native_server
from shipping import ASKED, KEY, TRUTH, Served, finish


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(
    not compiling.path_of(native_server.SERVER).is_file() and "COMPILE" not in os.environ,
    reason="llama-server is not compiled (4 minutes on 2 cores): COMPILE=1 does it",
)
def test_llama_server_answers_several_at_once_and_by_schemas(tmp_path, tiny_gguf):
    """The real one, compiled when it is not there yet. One test: it is started once."""
    root = new_checkout(tmp_path)
    finish(root, tiny_gguf)
    compiling.ready(native_server.SERVER, print)
    with Served(root, engine="llama-server", parallel=3) as served:
        assert [model.id for model in served.client().models.list()] == ["test"]
        whole = served.text()
        assert whole == "".join(part.choices[0].delta.content or "" for part in served.ask(stream=True))
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: served.ask(), range(8)))
        assert all(answer.choices[0].finish_reason in ("stop", "length") for answer in answers)
        assert all(answer.choices[0].message.content for answer in answers)
        form = {"type": "json_schema", "json_schema": {"name": "truth", "schema": TRUTH, "strict": True}}
        told = json.loads(served.text(max_tokens=64, response_format=form))
        assert list(told) == ["true"] and isinstance(told["true"], bool)
        with pytest.raises(openai.BadRequestError, match="context"):
            served.ask([{"role": "user", "content": "too long " * 600}])
        with pytest.raises(openai.AuthenticationError):
            served.client("wrong").chat.completions.create(model="test", messages=ASKED)
        assert served.text()
        process = psutil.Process(served.process.pid)
        assert Path(process.cmdline()[0]).name.startswith("llama-server") and KEY not in " ".join(process.cmdline())
        listening = [at.laddr.ip for at in process.net_connections("inet") if at.status == "LISTEN"]
        assert listening == ["127.0.0.1"]
        assert served.stop() == 0
    assert KEY not in served.printed()


def test_the_command_of_llama_server(monkeypatch):
    """A context for each request; the key in the environment alone; no variable that changes a setting."""
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "1")
    monkeypatch.setenv("LLAMA_API_KEY", "other")
    parameters = {"num_ctx": 512, "temperature": 0.3, "top_p": 0.9, "repeat_penalty": 1.05, "stop": []}
    content = {"parameters": parameters, "settings": {"project": {"name": "test"}}}
    model = finished.Finished(Path("models/gguf/a.gguf"), content)
    command = native_server.command(
        Path("/x/llama-server"), model, 512, {"host": "127.0.0.1", "port": 1, "parallel": 4}
    )
    assert command[:3] == ["/x/llama-server", "--model", "models/gguf/a.gguf"]
    told = dict(zip(command[1::2], command[2::2], strict=False))
    assert told["--ctx-size"] == "2048" and told["--parallel"] == "4" and told["--temp"] == "0.3"
    assert (told["--host"], told["--cors-origins"]) == ("127.0.0.1", "localhost")
    environment = native_server.environment(KEY)
    assert {name: value for name, value in environment.items() if name.startswith("LLAMA_")} == {"LLAMA_API_KEY": KEY}
    assert not any(name.startswith("LLAMA_") for name in native_server.environment(None))


def test_compiling_fails_kindly_and_leaves_nothing(tmp_path, monkeypatch):
    """With a stand-in of a compiler that fails at the third file."""
    source = tmp_path / "a llama.cpp"
    source.mkdir()
    for path in llama.source().resolve().iterdir():
        if path.name != "build-model-forge":
            (source / path.name).symlink_to(path)
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *server-http.cpp*) echo "x.cpp:1: fatal error: all is lost" >&2; exit 1;; esac\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("LLAMA_CPP", str(source))
    monkeypatch.setenv("CXX", str(compiler))
    said = []
    with pytest.raises(ForgeError) as caught:
        compiling.ready(native_server.SERVER, said.append)
    assert caught.value.code == ENVIRONMENT
    assert caught.value.cause == "llama-server could not be compiled: x.cpp:1: fatal error: all is lost"
    assert said[0] == "compiling llama.cpp's llama-server, once (about 4 minutes on 2 cores)"
    assert [path.name for path in (source / "build-model-forge").iterdir()] == ["lock"]
    shutil.rmtree(source)
