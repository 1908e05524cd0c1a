"""A python that has imported the large libraries already: it forks, and the fork runs the script from the top.

A phase of a tiny model takes 3 to 8 seconds, most of it imports; a chain of nine phases for each family would take
minutes. `Warm.python` stands where a python would (venv/bin/python of a checkout, too): what is no script's file goes
to the true one. The package `forge` is this checkout's, and libraries keep what they read from the environment when
they were imported: a test of either, of signals or of limits runs the true python.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER = """
import ctypes, json, os, runpy, signal, socket, sys, traceback

sys.path.insert(0, "scripts")
from forge import models

models.prepare()  # as every script does, before torch is there
import bitsandbytes, datasets, peft, torch, transformers, trl
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from forge.training import choices, stages


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def run(job, descriptors):
    die_with_parent()
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = job["command"]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()


die_with_parent()
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks that answer
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    if os.fork():
        connection.close()
        continue
    die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    listener.close()
    text, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    child = os.fork()
    if child == 0:
        connection.close()
        os._exit(run(json.loads(text), descriptors))
    connection.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
    os._exit(0)
"""
CLIENT = """\
#!{python} -IS
import json, os, socket, sys

if not sys.argv[1:] or os.path.basename(os.path.dirname(sys.argv[1])) != "scripts":
    os.execv("{python}", ["{python}", *sys.argv[1:]])
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
    connection.connect("{address}")
    job = {{"folder": os.getcwd(), "environment": dict(os.environ), "command": sys.argv[1:]}}
    socket.send_fds(connection, [json.dumps(job).encode()], [0, 1, 2])
    code = int(connection.recv(100) or 1)
sys.exit(code if code >= 0 else 128 - code)
"""


class Warm:
    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="warm-")  # a socket's path has at most 107 bytes
        address, self.python = (Path(self.folder.name) / name for name in ("socket", "python"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(address)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        )
        assert self.process.stdout.readline() == "ready\n"
        self.python.write_text(CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
        self.python.chmod(0o755)

    def run(self, folder: Path, name: str, *arguments: str | Path, env: dict | None = None):
        """A script of scripts/ with `folder` as its current folder: a subprocess.CompletedProcess."""
        return subprocess.run(
            [self.python, ROOT / "scripts" / name, *map(str, arguments)],
            cwd=folder,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=500,
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()
