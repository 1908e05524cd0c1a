"""download_model.py against a stand-in of the hub, with the real huggingface_hub client."""

import json
import shutil

import pytest
from hub_standin import COMMIT, Hub

TOKEN = "hf_" + "a1B2c3D4" * 4


@pytest.fixture
def hub(tiny_base):
    with Hub(tiny_base) as server:
        yield server


@pytest.fixture
def download(checkout, write_config, run_script, hub, tmp_path):
    """Run download_model.py for org/model at the stand-in, with a cache of its own."""
    config = write_config(checkout, base="org/model")

    def run(**environment):
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        return run_script("download_model.py", "--config", config, env={**settings, **environment})

    return run


def test_a_hub_model_is_linked_and_its_commit_recorded(download, checkout, hub):
    done = download()
    assert done.returncode == 0, done.stderr
    folder = checkout / "models/base/org/model"
    record = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert record["facts"]["revision"] == COMMIT
    assert {item["name"] for item in record["subject"]} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert (folder / "model.safetensors").is_symlink()


def test_weights_that_stand_there_twice_are_loaded_once(download, checkout, hub, tiny_base, tmp_path):
    """Mistral's repositories hold consolidated.safetensors beside the shards."""
    hub.folder = tmp_path / "twice"
    shutil.copytree(tiny_base, hub.folder)
    shutil.copy(tiny_base / "model.safetensors", hub.folder / "consolidated.safetensors")
    done = download()
    assert done.returncode == 0, done.stderr
    assert not [path for _, path in hub.requests if path.endswith("consolidated.safetensors")]
    assert not (checkout / "models/base/org/model/consolidated.safetensors").exists()


def test_what_is_in_the_cache_is_not_loaded_again(download, checkout, hub):
    download()
    (checkout / "models/base/org/model/manifest.json").unlink()
    hub.requests.clear()
    done = download()
    assert done.returncode == 0, done.stderr
    assert not [path for method, path in hub.requests if method == "GET" and path.endswith(".safetensors")]


def test_the_token_goes_into_the_request_and_nowhere_else(download, checkout, hub):
    (checkout / ".env").write_text(f"HUGGING_FACE_TOKEN={TOKEN}\n", encoding="utf-8")
    done = download()
    assert done.returncode == 0, done.stderr
    assert hub.tokens == {f"Bearer {TOKEN}"}
    written = [path for path in checkout.rglob("*") if path.is_file() and path.name != ".env"]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("refusal", "code", "cause", "remedy"),
    [
        ((403, "GatedRepo"), 7, "org/model is gated", "accept its terms on huggingface.co/org/model"),
        ((401, "RepoNotFound"), 2, "the Hub has no org/model for you", "a private model needs HF_TOKEN in .env"),
        ((404, "RevisionNotFound"), 2, "the Hub has no org/model for you", "check model.base_model_name"),
    ],
)
def test_refusals_are_explained(download, hub, refusal, code, cause, remedy):
    hub.refuse = refusal
    done = download()
    assert done.returncode == code, done.stdout + done.stderr
    assert cause in done.stderr
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr


def test_no_hub_at_all(download):
    done = download(HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 7, done.stdout + done.stderr
    assert "the Hub cannot be reached or refused" in done.stderr
    assert "it resumes" in done.stderr
