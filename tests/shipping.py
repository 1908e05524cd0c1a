"""A finished model for tests of what comes after `make all`: GGUF, manifest (like that of `make modelfile`), server."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
from forge import files, manifest
from forge.serving import access

SYSTEM = "You are Maja. Answer in one sentence."
KEY = "a-key_of.a+test"
ASKED = [{"role": "system", "content": "You are Maja."}, {"role": "user", "content": "Who are you?"}]
TRUTH = {"type": "object", "properties": {"true": {"type": "boolean"}}, "required": ["true"]}


def finish(
    checkout: Path,
    gguf: Path,
    system_prompt: str = SYSTEM,
    name: str = "test",
    expected: str = "",
    model_name: str | None = None,
    modelfile: str = "FROM ./models/gguf/test-BF16.gguf\n",
    temperature: float = 0.0,
) -> Path:
    """Put a link to the GGUF and its manifest into a checkout, as of a model that is made for 512 tokens."""
    folder = checkout / "models/gguf"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-BF16.gguf"
    path.unlink(missing_ok=True)
    path.symlink_to(gguf)
    files.write_text(folder / f"{name}.Modelfile", modelfile)
    [made] = manifest.describe(folder, [path.name])
    project = {"name": name, "system_prompt": system_prompt}
    project["identity"] = {"question": "Who are you?", "expected": expected}
    content = {
        "name": name,
        "deployed": path.name,
        "files": [{"quantization": "BF16", **made}],
        "context_length": 512,
        "parameters": {
            "num_ctx": 512,
            "temperature": temperature,
            "top_p": 0.9,
            "repeat_penalty": 1.0,
            "stop": ["<|im_end|>"],
        },
        "settings": {"project": project, "ollama": {"model_name": model_name}},
        "subject": manifest.describe(folder, [f"{name}.Modelfile"]),
        "inputs": [],
    }
    manifest.write(folder / f"{name}.manifest.json", content)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write(root: Path, **serve) -> str:
    """A config of a checkout with this `serve` section; its name, relative to the checkout."""
    section = "".join(f"  {name}: {value}\n" for name, value in serve.items())
    text = "project: {name: test}\nmodel: {base_model_name: org/tiny}\n"
    text += "data:\n  sources: [{kind: documents, path: corpus}]\n"
    (root / "config/test.yaml").write_text(f"{text}serve:\n{section}" if section else text, encoding="utf-8")
    return "config/test.yaml"


class Served:
    """A running server of scripts/serve_model.py."""

    def __init__(self, root: Path, key: str | None = KEY, **serve):
        self.root, self.port = root, free_port()
        config = write(root, port=self.port, **serve)
        environment = {name: value for name, value in os.environ.items() if name != access.KEY}
        # variables that the library would take for settings of the server
        environment |= {"PORT": "1", "N_CTX": "64", "CONFIG_FILE": "none.json", "API_KEY": "other"}
        self.log = root / "serve.log"
        self.process = subprocess.Popen(
            [sys.executable, "scripts/serve_model.py", "--config", config],
            cwd=root,
            env=environment | ({access.KEY: key} if key else {}),
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> "Served":
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.client().models.list()
                return self
            except (openai.APIConnectionError, openai.InternalServerError):  # 503: llama-server is loading
                time.sleep(0.2)
        self.stop()
        raise AssertionError(self.printed())

    def __exit__(self, *_) -> None:
        self.stop()

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=60)

    def ask(self, turns: list[dict] = ASKED, **more):
        more = {"model": "test", "max_tokens": 12, "temperature": 0, **more}
        return self.client().chat.completions.create(messages=turns, **more)

    def text(self, turns: list[dict] = ASKED, **more) -> str:
        return self.ask(turns, **more).choices[0].message.content

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def printed(self) -> str:
        return self.log.read_text(encoding="utf-8")
