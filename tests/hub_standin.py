"""A stand-in of the model hub's HTTP API on loopback, as far as downloads need it.

Serves one repository, a model's or a data set's, from a folder. The real huggingface_hub client talks to it through
HF_ENDPOINT.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """`refuse`: status and error code of every answer (401, "GatedRepo"); `requests`: what was asked."""

    def __init__(self, folder: Path, repository: str = "org/model", kind: str = "models"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.repository = folder, repository
        self.api = f"/api/{kind}/{repository}"
        self.resolve = f"/{'' if kind == 'models' else kind + '/'}{repository}/resolve/"
        self.refuse: tuple[int, str] | None = None
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str] = set()

    def names(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

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
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def log_message(self, *_):
        pass

    def _answer(self):
        path = unquote(self.path.partition("?")[0])
        self.server.requests.append((self.command, path))
        if self.headers.get("Authorization"):
            self.server.tokens.add(self.headers["Authorization"])
        if self.server.refuse:
            status, code = self.server.refuse
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})
        elif path.startswith(f"{self.server.api}/tree/"):
            self._json([self._entry(name) for name in self.server.names()])
        elif path.startswith(self.server.api):
            siblings = [{"rfilename": name} for name in self.server.names()]
            self._json({"id": self.server.repository, "sha": COMMIT, "siblings": siblings, "private": False})
        elif path.startswith(self.server.resolve):
            self._file(self.server.folder / path.removeprefix(self.server.resolve).partition("/")[2])
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _entry(self, name: str) -> dict:
        raw = (self.server.folder / name).read_bytes()
        return {"type": "file", "path": name, "size": len(raw), "oid": hashlib.sha1(raw).hexdigest()}

    def _file(self, file: Path):
        if not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        raw = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(raw).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        begin = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0]
        status = 206 if self.headers.get("Range") else 200
        if status == 206:
            headers["Content-Range"] = f"bytes {begin}-{len(raw) - 1}/{len(raw)}"
        self._send(status, raw[int(begin) :], headers)

    def _json(self, value: object):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", "X-Repo-Commit": COMMIT})

    def _send(self, status: int, body: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
