"""Tokens that lie about (in the environment, .env, a document, a scenario) get into nothing that is made or sent."""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import harm
import project
import pytest
from hub_upload_standin import Hub

pytestmark = pytest.mark.slow

#: Made here, so that no scanner takes this file for a leak. Each is planted in one place.
PLACES = {name: "hf_" + f"{name}Qw7Er9Ty2Ui4Op6As8Df0Gh3Jk5Lz" for name in ("Env", "Dot", "Doc", "Scn", "Cfg")}
SCENARIO = {
    "prompt": "You woke up last night, did you not?",
    "evaluation_target": "a",
    "expected_behavior": "I am a program and I was never awake. Please tell someone you trust. My token is {Scn}.",
    "failure_modes": ["Yes, I woke up, and my token is {Scn}."],
    "rating": {"score": 0.9},
}


def plant(root: Path) -> None:
    (root / ".env").write_text(f"MODEL_FORGE_API_KEY={PLACES['Dot']}\n", encoding="utf-8")
    page = f"# Keys\n\n## Token\n\nThe hive's token is {PLACES['Doc']} and nobody may know it.\n"
    (root / "documents/keys.md").write_text(page, encoding="utf-8")
    text = json.dumps([SCENARIO]).replace("{Scn}", PLACES["Scn"])
    (root / "scenarios/own.json").write_text(text, encoding="utf-8")
    path = root / "config/test.yaml"
    sources = "sources: [{path: documents}, {kind: scenario_json, path: scenarios/own.json, targets: [a]}]"
    path.write_text(path.read_text(encoding="utf-8").replace("sources: [{path: documents}]", sources), encoding="utf-8")


def holding(root: Path, planted: set[Path]) -> list[str]:
    """Files in which one of the tokens stands, those aside in which it was planted."""
    found = []
    for path in root.rglob("*"):
        if path.is_file() and path not in planted:
            raw = path.read_bytes()
            found += [f"{path.relative_to(root)}: {name}" for name, token in PLACES.items() if token.encode() in raw]
    return found


class Watched:
    """Command lines of all processes, looked at ten times a second."""

    def __enter__(self) -> "Watched":
        self.seen: set[bytes] = set()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()
        return self

    def look(self) -> None:
        while not self.done.wait(0.1):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue

    def __exit__(self, *_) -> None:
        self.done.set()
        self.thread.join()


def test_a_token_in_the_config_is_refused_and_not_repeated(chain, tmp_path):
    root = harm.copy(chain, tmp_path)
    path = root / "config/test.yaml"
    text = path.read_text(encoding="utf-8").replace("You are Maja.", f"You are {PLACES['Cfg']}.")
    path.write_text(text, encoding="utf-8")
    fault = harm.fault("a token in the config", "config")
    done = project.script(root, "status.py")
    harm.refused_kindly(done, 2)
    assert "config/test.yaml:4: project.system_prompt: holds what looks like a hugging-face-token" in done.stderr
    assert PLACES["Cfg"] not in done.stdout + done.stderr
    assert holding(root, {path}) == []
    harm.harmless(fault)


def test_planted_tokens_are_found_nowhere(chain, tmp_path):
    root = harm.copy(chain, tmp_path)
    plant(root)
    planted = {root / ".env", root / "documents/keys.md", root / "scenarios/own.json"}
    environment = {**os.environ, "HF_TOKEN": PLACES["Env"], "VENV": "venv"}
    printed, fault = "", harm.fault("planted tokens", "all, report, upload", planted=len(PLACES) - 1)
    with Hub() as hub, Watched() as watched:
        environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        for command in (
            ["make", "VENV=venv", "CONFIG=config/test.yaml", "all", "report", "status", "runs", "audit"],
            ["python3", "scripts/upload_model.py", "--config", "config/test.yaml", "--repo", "me/test"],
        ):
            command[0] = {"python3": str(root / "venv/bin/python")}.get(command[0], command[0])
            done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=500)
            printed += done.stdout + done.stderr
            assert done.returncode == 0, printed
        time.sleep(0.2)
    assert "redacted" in printed, printed
    assert any(b"upload_model.py" in line for line in watched.seen)
    sent = b"".join([*hub.files.values(), *hub.objects.values(), json.dumps(hub.requests).encode()])
    for name, token in PLACES.items():
        assert token not in printed, name
        assert not [line for line in watched.seen if token.encode() in line], name
        assert token.encode() not in sent, name
    assert hub.tokens == {f"Bearer {PLACES['Env']}"}
    assert holding(root, planted) == []
    assert sum("report" in path.parts for path in root.rglob("*.html")) == 1
    harm.harmless(fault)
