"""Runs the project's scripts in processes that are forked from one that has imported the large libraries already.

A phase of a tiny model takes 3 to 8 seconds, most of it imports; a chain of nine phases for each family would take
minutes. The forked process runs the script itself, from the top, with its own command line.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER = """
import json, os, runpy, sys

sys.path.insert(0, "scripts")
from forge import models

models.prepare()  # as every script does, before torch is there
import bitsandbytes, datasets, peft, torch, transformers, trl
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from forge.training import choices, stages

scripts = os.path.abspath("scripts")
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(job["folder"])
        os.environ.update(job["environment"])
        for number, name in ((1, "out"), (2, "error")):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.path[0] = scripts
        sys.argv = job["command"]
        try:
            runpy.run_path(f"{scripts}/{job['command'][0]}", run_name="__main__")
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Warm:
    def __init__(self, folder: Path):
        """`folder`: for what the scripts print."""
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, folder: Path, name: str, *arguments: str | Path, env: dict | None = None):
        """A script of scripts/ with `folder` as its current folder, as subprocess.run would give it back."""
        command = [name, *map(str, arguments)]
        out, error = self.folder / "out", self.folder / "error"
        job = {
            "folder": str(folder),
            "command": command,
            "environment": env or {},
            "out": str(out),
            "error": str(error),
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in (out, error)]
        return subprocess.CompletedProcess(command, code, *texts)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
