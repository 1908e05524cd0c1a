"""Stand-ins of Ollama: an HTTP server for its API, and a program `ollama` for PATH.

Nothing of this is Ollama: the server keeps what it is asked and told, and renders conversations as it is told to.
The program notes its arguments one by one, so that a test sees what a shell would have made of them.
"""

import json
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PROGRAM = """#!{python}
import json, os, pathlib, sys
note = pathlib.Path({notes!r})
what = sys.argv[1]
text = pathlib.Path(sys.argv[sys.argv.index("-f") + 1]).read_text() if "-f" in sys.argv else None
call = {{"arguments": sys.argv[1:], "modelfile": text, "host": os.environ.get("OLLAMA_HOST")}}
with note.open("a") as out:
    print(json.dumps(call), file=out)
if what == os.environ.get("STANDIN_FAILS"):
    print("\\x1b[?25lgathering model components\\x1b[K\\nError: all is lost", file=sys.stderr)
    raise SystemExit(1)
"""


class Ollama(ThreadingHTTPServer):
    """`render(turns)`: the prompt of a conversation; `answer`: to every question; `models`: names that are there."""

    def __init__(self, render: Callable[[list[dict]], str | None], answer: str = "I am Maja.", version: str = "0.33.2"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.render, self.answer, self.version = render, answer, version
        self.models: list[str] = []
        self.asked: list[dict] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Ollama

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/api/version":
            self._send(200, {"version": self.server.version})
        elif self.path == "/api/tags":
            self._send(200, {"models": [{"name": name} for name in self.server.models]})
        else:
            self._send(404, {"error": "not found"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        if self.path != "/api/chat":
            self._send(404, {"error": "not found"})
        elif body.get("_debug_render_only"):
            text = self.server.render(body["messages"])
            self._send(200, {"_debug_info": {"rendered_template": text}} if text is not None else {"done": False})
        else:
            self._send(200, {"message": {"role": "assistant", "content": self.server.answer}, "done": True})

    def _send(self, status: int, value: dict):
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


class Program:
    """A program `ollama` in a folder, for PATH."""

    def __init__(self, folder: Path, name: str = "ollama"):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.notes = folder, folder / "notes.jsonl"
        path = folder / name
        path.write_text(PROGRAM.format(python=sys.executable, notes=str(self.notes)), encoding="utf-8")
        path.chmod(0o755)

    def calls(self) -> list[dict]:
        lines = self.notes.read_text(encoding="utf-8").splitlines() if self.notes.is_file() else []
        return [json.loads(line) for line in lines]

    def arguments(self) -> list[list[str]]:
        return [call["arguments"] for call in self.calls()]
