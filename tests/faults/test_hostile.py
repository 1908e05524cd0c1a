"""Models that mean harm: refused, and nothing of theirs is run."""

import json
import pickle
import shutil
import time
from pathlib import Path

import harm
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def hostile(checkout, write_config, run_script, tiny_base, tmp_path):
    """`hostile(change)` copies the tiny base, lets `change(folder, canary)` spoil it, and runs model and validate."""
    canary = tmp_path / "canary"

    def run(change) -> None:
        folder = tmp_path / "hostile"
        shutil.copytree(tiny_base, folder)
        change(folder, canary)
        path, fault = write_config(checkout, base=folder), harm.fault("hostile model", change.__name__)
        for script in ("download_model.py", "forge_dataset.py", "validate_dataset.py"):
            began = time.monotonic()
            done = run_script(script, "--config", path)
            if done.returncode:
                harm.refused_kindly(done, 2, 3, 4, 6)
                waited = round(time.monotonic() - began, 1)
                break
        else:
            raise AssertionError("nobody refused it")
        assert not canary.exists()
        harm.harmless(fault, by=script, waited=waited)

    return run


def test_weights_that_are_a_pickle(hostile):
    def pickles_only(folder: Path, canary: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Creates(canary)))

    hostile(pickles_only)


class Creates:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_that_comes_with_the_model(hostile):
    def auto_map(folder: Path, canary: Path) -> None:
        (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n", encoding="utf-8")
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings |= {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
        (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")

    hostile(auto_map)


TEMPLATES = {
    "escape": "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "endless loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "endless text": "{% for i in range(99999) %}{{ 'a' * 999999 }}{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_that_means_harm(hostile, name):
    def template(folder: Path, canary: Path) -> None:
        text = TEMPLATES[name].replace("CANARY", str(canary))
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")

    hostile(template)
