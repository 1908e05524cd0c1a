"""A stand-in of the Hub's HTTP API on loopback, as far as uploads need it; it keeps what it is sent.

One repository, commit by commit. Large files come by the LFS protocol in parts, as the Hub takes them where Xet is off
(HF_HUB_DISABLE_XET=1). The real huggingface_hub client talks to it through HF_ENDPOINT.
"""

import base64
import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import yaml

LARGE = (".gguf", ".safetensors", "tokenizer.json")
PART = 1 << 16  # bytes: a file of the tests has several parts
LICENCES = {"apache-2.0", "mit", "llama3.1", "gemma", "cc-by-nc-4.0", "other"}  # of the Hub's, those of the tests
RELATIONS = {"adapter", "finetune", "merge", "quantized"}


class Hub(ThreadingHTTPServer):
    """`commits`: one dict of files a commit, name to bytes; `objects`: large files by SHA-256; `private`: None before
    the repository is made. `answers`: (method, a part of the path, status) to give instead, each once. `before_commit`
    is called when a commit comes in; `before_part` with the SHA-256 and the number of a part."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.private: bool | None = None
        self.commits: list[dict[str, bytes]] = []
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str] = set()
        self.answers: list[tuple[str, str, int]] = []
        self.spoil: str | None = None  # name of a file of which another byte is kept than was sent
        self.before_commit = lambda: None
        self.before_part = lambda sha256, number: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1] if self.commits else {}

    def make(self, private: bool, **files: str) -> None:
        """A repository that is there already; the Hub puts a .gitattributes into each."""
        self.private = private
        self.commits = [{".gitattributes": b"*.gguf filter=lfs\n", **{n: t.encode() for n, t in files.items()}}]

    def change(self, name: str, content: bytes) -> None:
        """What somebody else commits."""
        self.commits.append({**self.files, name: content})

    def oid(self, number: int = -1) -> str:
        number = number % len(self.commits)
        state = sorted((name, hashlib.sha256(raw).hexdigest()) for name, raw in self.commits[number].items())
        return hashlib.sha1(json.dumps([number, state]).encode()).hexdigest()

    def sent(self) -> list[str]:
        """SHA-256 of every part that came in, in order."""
        return [path.split("/")[2] for method, path in self.requests if method == "PUT"]

    def handle_error(self, request, client_address):
        """A client that was killed is no error of the stand-in's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def do_PUT(self):
        self.answer()

    def log_message(self, *_):
        pass

    def answer(self):
        path = unquote(self.path.partition("?")[0])
        body = self.body()
        self.server.requests.append((self.command, path))
        if self.headers.get("Authorization"):
            self.server.tokens.add(self.headers["Authorization"])
        for planned in self.server.answers:
            if planned[0] == self.command and planned[1] in path:
                self.server.answers.remove(planned)
                return self.send(planned[2], {"error": "planned by the test"}, {"Retry-After": "0"})
        for method, pattern, way in ROUTES:
            match = re.fullmatch(pattern, path)
            if self.command == method and match:
                return way(self, body, *match.groups())
        return self.send(404, {}, {"X-Error-Code": "RepoNotFound"})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def send(self, status: int, value: object, headers: dict | None = None):
        raw = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    # -- the API ------------------------------------------------------------------------------------------------

    def create(self, body: bytes):
        hub, wanted = self.server, json.loads(body)
        address = {"url": f"{hub.url}/{wanted['organization']}/{wanted['name']}"}
        if hub.private is not None:
            return self.send(409, {**address, "error": "You already created this model repo"})
        hub.make(wanted["visibility"] == "private")
        return self.send(200, address)

    def info(self, body: bytes, name: str):
        hub = self.server
        if hub.private is None:
            return self.send(404, {}, {"X-Error-Code": "RepoNotFound"})
        return self.send(200, {"id": name, "sha": hub.oid(), "private": hub.private, "siblings": []})

    def tree(self, body: bytes, revision: str):
        hub = self.server
        number = next(n for n in range(len(hub.commits)) if hub.oid(n) == revision)
        return self.send(200, [entry(name, raw) for name, raw in sorted(hub.commits[number].items())])

    def validate(self, body: bytes):
        errors = problems(json.loads(body)["content"])
        return self.send(400 if errors else 200, {"errors": [{"message": text} for text in errors], "warnings": []})

    def preupload(self, body: bytes):
        asked = json.loads(body)["files"]
        modes = {item["path"]: "lfs" if item["path"].endswith(LARGE) else "regular" for item in asked}
        return self.send(
            200, {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]}
        )

    def batch(self, body: bytes):
        hub, found = self.server, []
        for item in json.loads(body)["objects"]:
            found.append({"oid": item["oid"], "size": item["size"]})
            if item["oid"] not in hub.objects:
                numbers = range(1, -(-item["size"] // PART) + 1)
                parts = {f"{number:05}": f"{hub.url}/part/{item['oid']}/{number}" for number in numbers}
                whole = {"href": f"{hub.url}/whole/{item['oid']}", "header": {"chunk_size": str(PART), **parts}}
                found[-1]["actions"] = {"upload": whole, "verify": {"href": f"{hub.url}/verify"}}
        return self.send(200, {"transfer": "multipart", "objects": found})

    def part(self, body: bytes, oid: str, number: str):
        self.server.before_part(oid, int(number))
        self.server.parts[oid, int(number)] = body
        return self.send(200, {}, {"ETag": hashlib.md5(body).hexdigest()})

    def whole(self, body: bytes, oid: str):
        listed = json.loads(body)["parts"]
        raw = b"".join(self.server.parts[oid, item["partNumber"]] for item in listed)
        if hashlib.sha256(raw).hexdigest() != oid:
            return self.send(422, {"error": "the parts do not make that object"})
        self.server.objects[oid] = raw
        return self.send(200, {})

    def verify(self, body: bytes):
        return self.send(200 if json.loads(body)["oid"] in self.server.objects else 404, {})

    def commit(self, body: bytes, name: str):
        hub = self.server
        hub.before_commit()
        lines = [json.loads(line) for line in body.splitlines()]
        if lines[0]["value"].get("parentCommit") not in (None, hub.oid()):
            return self.send(412, {"error": "A commit has happened since. Please refresh and try again."})
        state = dict(hub.files)
        for line in lines[1:]:
            path = line["value"]["path"]
            if line["key"] == "file":
                state[path] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                state[path] = hub.objects[line["value"]["oid"]]
            else:
                del state[path]
        if hub.spoil:
            state[hub.spoil] = b"\0" + state[hub.spoil][1:]
        hub.commits.append(state)
        return self.send(200, {"commitUrl": f"{hub.url}/{name}/commit/{hub.oid()}", "commitOid": hub.oid()})


ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("GET", "/api/models/([^/]+/[^/]+)", Handler.info),
    ("GET", "/api/models/[^/]+/[^/]+/tree/(.+)", Handler.tree),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", "/api/models/[^/]+/[^/]+/preupload/main", Handler.preupload),
    ("POST", "/[^/]+/[^/]+.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/part/([0-9a-f]+)/([0-9]+)", Handler.part),
    ("POST", "/whole/([0-9a-f]+)", Handler.whole),
    ("POST", "/verify", Handler.verify),
    ("POST", "/api/models/([^/]+/[^/]+)/commit/main", Handler.commit),
]


def entry(name: str, raw: bytes) -> dict:
    """A file as the Hub lists it: git's SHA-1, of a large one that of its pointer, and its SHA-256."""
    found = {"type": "file", "path": name, "size": len(raw)}
    if name.endswith(LARGE):
        sha256 = hashlib.sha256(raw).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(raw)}\n".encode()
        return {**found, "oid": git(pointer), "lfs": {"oid": sha256, "size": len(raw), "pointerSize": len(pointer)}}
    return {**found, "oid": git(raw)}


def git(raw: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


def problems(card: str) -> list[str]:
    """What the Hub's rules for metadata say of a card, as far as they are known: they are not published as code."""
    match = re.match(r"---\n(.*?)\n---\n", card, flags=re.S)
    if not match:
        return ["no metadata"]
    told = yaml.safe_load(match[1])
    found = []
    if told.get("license", "mit") not in LICENCES:
        found.append(f"license {told['license']!r} is none of the Hub's")
    if told.get("license") == "other" and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", told.get("license_name", "")):
        found.append("license other has no license_name")
    if "base_model" in told and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", told["base_model"]):
        found.append(f"base_model {told['base_model']!r} is no repository")
    if told.get("base_model_relation", "merge") not in RELATIONS:
        found.append(f"base_model_relation {told['base_model_relation']!r}")
    found += [f"datasets: {name!r}" for name in told.get("datasets", []) if not re.fullmatch(r"[\w.-]+/[\w.-]+", name)]
    found += [f"tag {tag!r}" for tag in told.get("tags", []) if not isinstance(tag, str)]
    return found
