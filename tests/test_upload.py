"""make upload: the real huggingface_hub client against a stand-in of the Hub that keeps what it is sent."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import made_model
import pytest
import upload_model
import yaml
from forge import audit, config, graph, phase
from forge.errors import ForgeError
from forge.publishing import licences, sending
from hub_upload_standin import Hub, problems
from made_model import QUANTIZATIONS

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # of the client, about its own HTTP library

TOKEN = "hf_" + "a1B2c3D4" * 4
REPO = "you/bees-GGUF"
GGUFS = [f"bees-{name}.gguf" for name in QUANTIZATIONS]
VERDICTS = ["evaluate", "validate", "verify-adapter", "verify-gguf", "verify-merged"]
OF_GGUF = sorted(
    ["LICENSE", "Modelfile", "README.md", "gguf_model_manifest.json", "params", "system", "template", *GGUFS]
    + [f"verdicts/{name}.json" for name in VERDICTS]
)


@pytest.fixture
def hub():
    with Hub() as server:
        yield server


@pytest.fixture
def project(checkout, write_config):
    """`project(upload={...})` makes a finished project; the config's path comes back."""

    def build(base: str = "Acme/Tiny-7B", **sections) -> Path:
        named = {"name": "bees", "license": "apache-2.0", "description": "Knows bees | and honey."}
        sections = {"project": named, "upload": {"repo": REPO}, "gguf": {"quantizations": QUANTIZATIONS}, **sections}
        path = write_config(checkout, base=base, **sections)
        made_model.make(path)
        return path

    return build


@pytest.fixture
def upload(hub, monkeypatch):
    """`upload(path, "--replace")` in this process, with the token and the stand-in's address."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(sending, "WAITS", (0, 0))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(upload_model.command, "guard", lambda body, debug: body())

    def run(path: Path, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["upload_model.py", "--config", str(path), *arguments])
        upload_model.main()

    return run


def refused(run, code: int, *words: str) -> ForgeError:
    with pytest.raises(ForgeError) as caught:
        run()
    assert caught.value.code == code, caught.value
    assert [word for word in words if word not in f"{caught.value.cause} {caught.value.remedy}"] == []
    return caught.value


def read(hub: Hub, name: str) -> str:
    return hub.files[name].decode("utf-8")


# -- what is sent ---------------------------------------------------------------------------------------------


def test_a_fresh_upload(project, upload, hub, capsys):
    upload(project())
    assert hub.private is True
    assert sorted(hub.files) == [".gitattributes", *OF_GGUF]
    assert len(hub.commits) == 2, "the Hub's own, and one with everything"
    for name in GGUFS:
        assert hub.files[name] == Path("models/gguf", name).read_bytes()
    said = capsys.readouterr().out
    assert f"published {hub.url}/{REPO} (private), commit {hub.oid()}" in said
    for command in ("ollama rm", "ollama run"):
        assert f"{command} hf.co/{REPO}:Q4_K_M" in said
    assert f"ollama cp hf.co/{REPO}:Q4_K_M bees:latest" in said


def test_ollama_on_the_hub_is_told_what_the_modelfile_says(project, upload, hub):
    upload(project())
    modelfile = read(hub, "Modelfile")
    assert "FROM ./bees-Q4_K_M.gguf\n" in modelfile and "models/" not in modelfile
    assert f'TEMPLATE """{read(hub, "template")}"""' in modelfile
    assert f'SYSTEM """{read(hub, "system")}"""' in modelfile
    told = json.loads(read(hub, "params"))
    lines = [f"PARAMETER {name} {value}" for name, value in told.items() if name != "stop"]
    lines += [f'PARAMETER stop "{token}"' for token in told["stop"]]
    assert sorted(lines) == sorted(line for line in modelfile.splitlines() if line.startswith("PARAMETER"))


def test_without_a_template_and_a_system_prompt_there_are_no_such_files(project, upload, hub):
    named = {"name": "bees", "system_prompt": ""}
    upload(project(ollama={"template": "none"}, project=named))
    assert {"template", "system"} & hub.files.keys() == set() and "params" in hub.files
    assert "there is no `template`" in read(hub, "README.md")


def test_a_file_of_an_earlier_upload_that_ollama_would_read_is_removed(project, upload, hub):
    upload(project())
    upload(project(ollama={"template": "none"}))
    assert "template" not in hub.files and "system" in hub.files


def test_what_is_not_on_the_list_is_not_sent(project, upload, hub):
    """Nor what the phase's own record names: training_args.bin is a pickle."""
    path = project(upload={"repo": "you/bees-{what}", "what": ["adapter", "merged"]})
    for folder in ("models/bees-adapter", "models/merged/bees-merged", "models/gguf"):
        for name in (".env", "notes.txt", "other.gguf", "other.safetensors", "adapter_model.safetensors.bak"):
            Path(folder, name).write_text("mine", encoding="utf-8")
    upload(path, "--adapter")
    tokenizer = ["chat_template.jinja", "tokenizer.json"]
    verdicts = [f"verdicts/{name}.json" for name in ("evaluate", "verify-adapter")]
    weights = ["adapter_config.json", "adapter_model.safetensors"]
    assert sorted(hub.files.keys() - {".gitattributes"}) == sorted(["LICENSE", *weights, *tokenizer, *verdicts])


def test_a_merged_model(project, upload, hub):
    upload(project(upload={"repo": "you/bees", "what": ["merged"]}))
    names = ["LICENSE", "README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    verdicts = [f"verdicts/{name}.json" for name in ("evaluate", "verify-adapter", "verify-merged")]
    assert sorted(hub.files.keys() - {".gitattributes"}) == [*names, *verdicts]


def test_the_seeds_arguments(project, upload, hub):
    upload(project(upload={"private": False}), "--repo", "me/other", "--gguf", "--modelfile", "--readme", "--private")
    assert hub.private is True and sorted(hub.files) == [".gitattributes", *OF_GGUF]
    assert ("POST", "/api/models/me/other/commit/main") in hub.requests


def test_parts_alone(project, upload, hub):
    path = project()
    upload(path, "--modelfile")
    assert hub.files.keys() - {".gitattributes"} == {"Modelfile", "template", "system", "params"}
    upload(path, "--readme")
    assert "README.md" in hub.files and all(f"| `{name}` |" in read(hub, "README.md") for name in GGUFS)
    hub.change(GGUFS[0], b"of last year")
    refused(lambda: upload(path, "--readme"), 2, f"holds {GGUFS[0]} of another state", "send all parts at once")


def test_the_plan_sends_nothing(project, upload, hub, capsys, monkeypatch):
    path = project()
    monkeypatch.delenv("HF_TOKEN")
    upload(path, "--plan")
    said = capsys.readouterr().out
    assert hub.requests == [] and "nothing was sent" in said
    assert f"bees, gguf -> {REPO} (private)" in said and "build/bees/upload/gguf" in said
    for name in GGUFS:
        raw = Path("models/gguf", name).read_bytes()
        assert f"{len(raw):12}  {hashlib.sha256(raw).hexdigest()}  {name}\n" in said
    shown = [line.split()[-1] for line in said.splitlines() if len(line.split()) == 3 and len(line.split()[1]) == 64]
    assert shown == OF_GGUF
    assert Path("build/bees/upload/gguf/README.md").is_file()


# -- interruptions, changes, refusals ------------------------------------------------------------------------


def start(hub: Hub, path: Path) -> subprocess.Popen:
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    command = [sys.executable, "scripts/upload_model.py", "--config", str(path)]
    return subprocess.Popen(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_run_that_was_killed_in_mid_file_goes_on(project, upload, hub):
    path = project()
    first, second = (hashlib.sha256(Path("models/gguf", name).read_bytes()).hexdigest() for name in GGUFS)
    reached, release = threading.Event(), threading.Event()

    def hold(sha256: str, number: int) -> None:
        if sha256 == second and number == 3:
            reached.set()
            release.wait(60)

    hub.before_part = hold
    process = start(hub, path)
    assert reached.wait(60)
    while first not in hub.objects:
        threading.Event().wait(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    release.set()
    hub.before_part = lambda sha256, number: None
    assert len(hub.commits) == 1, "nothing is visible"
    assert not Path("models/upload/bees/upload.json").exists()
    hub.requests.clear()
    upload(path)
    assert set(hub.sent()) == {second}, "the whole file is not sent again"
    assert sorted(hub.files) == [".gitattributes", *OF_GGUF]


def test_ctrl_c_ends_with_75(project, hub):
    path = project(gguf={"quantizations": ["Q4_K_M"]})
    reached, release = threading.Event(), threading.Event()
    hub.before_part = lambda *_: (reached.set(), release.wait(600))
    process = start(hub, path)
    assert reached.wait(200)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)  # a busy machine takes long
    release.set()
    assert process.returncode == 75 and b"run the same command again: it goes on" in said
    assert len(hub.commits) == 1


def test_a_second_run_finds_everything_there(project, upload, hub, capsys):
    path = project()
    upload(path)
    kept, entries = Path("models/upload/bees/upload.json").read_text(encoding="utf-8"), audit.entries()[0]
    hub.requests.clear()
    upload(path)
    assert f"{REPO} holds all of it already" in capsys.readouterr().out
    assert hub.sent() == [] and len(hub.commits) == 2
    assert Path("models/upload/bees/upload.json").read_text(encoding="utf-8") == kept
    assert audit.entries()[0] == entries


@pytest.mark.parametrize("before", ["nothing was sent", "an upload"])
def test_what_somebody_else_changed_is_not_overwritten(project, upload, hub, before):
    path = project()
    if before == "an upload":
        upload(path)
        hub.change("README.md", b"# by hand\n")
    else:
        hub.make(True, **{"README.md": "# by hand\n"})
    count = len(hub.commits)
    refused(lambda: upload(path), 6, f"README.md in {REPO} was not sent from here", "--replace")
    assert len(hub.commits) == count
    upload(path, "--replace")
    assert read(hub, "README.md").startswith("---")


def test_a_change_while_it_is_sent_is_noticed(project, upload, hub):
    path = project()
    hub.before_commit = lambda: hub.change("notes.md", b"mine") if "notes.md" not in hub.files else None
    refused(lambda: upload(path), 6, "was changed by somebody while this was sent")
    assert hub.files.keys() == {".gitattributes", "notes.md"}
    hub.requests.clear()
    upload(path)
    assert hub.sent() == [] and "notes.md" in hub.files and set(GGUFS) < hub.files.keys()


def test_a_hash_that_differs_is_not_called_published(project, upload, hub, capsys):
    path = project()
    hub.spoil = GGUFS[1]
    refused(lambda: upload(path), 6, f"does not hold what was sent: {GGUFS[1]}")
    assert "published" not in capsys.readouterr().out
    assert not Path("models/upload/bees/upload.json").exists()
    assert "uploaded" not in [entry["event"] for entry in audit.entries()[0]]


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, ["does not take the token", "may write"]), (403, ["may not write to you/bees-GGUF", "upload.repo"])],
)
@pytest.mark.parametrize("place", ["/api/repos/create", "/objects/batch", "/commit/main"])
def test_refusals_end_it_at_once(project, upload, hub, status, words, place):
    hub.answers = [("POST", place, status)] + [("GET", "/api/models", status)] * (place == "/api/repos/create")
    refused(lambda: upload(project()), 7, *words)
    assert sum(place in path for _, path in hub.requests) == 1
    assert len(hub.commits) < 2


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("place", ["/api/repos/create", "/commit/main"])
def test_what_passes_is_tried_again(project, upload, hub, capsys, status, place):
    hub.answers = [("POST", place, status)]
    upload(project())
    assert f"the Hub answers {status}; trying again" in capsys.readouterr().out
    assert sorted(hub.files) == [".gitattributes", *OF_GGUF]
    assert len(hub.sent()) == len({path for _, path in hub.requests if path.startswith("/part/")})


def test_a_part_that_fails_once_is_sent_again(project, upload, hub):
    hub.answers = [("PUT", "/part/", 429)]
    upload(project())
    assert set(GGUFS) < hub.files.keys()


def test_tries_are_bounded(project, upload, hub):
    hub.answers = [("POST", "/commit/main", 503)] * 9
    refused(lambda: upload(project()), 7, "the Hub answers 503, several times", "is not sent again")
    assert len(hub.answers) == 9 - len((*sending.WAITS, None))


def test_no_hub_at_all(project, upload, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(lambda: upload(project()), 7, "no connection to the Hub")


def test_xet_without_its_server_ends_kindly(project, upload, hub, monkeypatch):
    """The stand-in does not speak Xet: the client must ask for it, and say so when there is none."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    error = refused(lambda: upload(project()), 7, "is not sent again")
    assert any("xet-write-token" in path for _, path in hub.requests)
    assert TOKEN not in error.cause + error.remedy and len(hub.commits) == 1


def test_a_lost_answer_is_no_second_commit(project, upload, hub, monkeypatch):
    """The commit was made and its answer never came: the next try finds it."""
    from hub_upload_standin import Handler

    whole, lost = Handler.send, []

    def lose(self, status, value, headers=None):
        if "commitOid" in value and not lost:
            lost.append(True)
            return whole(self, 502, {})
        return whole(self, status, value, headers)

    monkeypatch.setattr(Handler, "send", lose)
    upload(project())
    assert lost and len(hub.commits) == 2


def test_a_public_repository_is_not_taken_for_a_private_one(project, upload, hub):
    hub.make(False)
    refused(lambda: upload(project()), 2, f"{REPO} is public, and upload.private is true")
    assert len(hub.commits) == 1 and hub.sent() == []


def test_what_must_keep_the_bases_licence_is_not_public_under_another(project, upload, hub, monkeypatch):
    monkeypatch.setattr(licences, "of_base", lambda name, folder: ("llama3.1", "by its name"))
    path = project(upload={"repo": REPO, "private": False})
    told = refused(lambda: upload(path), 2, "project.license is apache-2.0, the base is under llama3.1")
    assert "upload.private" in told.remedy and hub.files == {}
    upload(path, "--private")
    assert hub.private is True


def test_public_on_purpose(project, upload, hub):
    upload(project(upload={"repo": REPO, "private": False}))
    assert hub.private is False


# -- secrets ------------------------------------------------------------------------------------------------------


def test_the_token_is_in_no_artifact_log_or_command_line(project, upload, hub, run_script):
    path = project()
    Path(".env").write_text(f"HUGGING_FACE_TOKEN={TOKEN}\n", encoding="utf-8")
    seen = []
    hub.before_commit = lambda: seen.extend(process.read_bytes() for process in command_lines())
    done = run_script(
        "upload_model.py",
        "--config",
        path,
        env={"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""},
    )
    assert done.returncode == 0, done.stderr
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in done.stdout + done.stderr
    assert any(b"upload_model.py" in line for line in seen) and not any(TOKEN.encode() in line for line in seen)
    written = [file for file in Path().rglob("*") if file.is_file() and file.name != ".env"]
    assert any(file.name == "upload.json" for file in written)
    assert [file for file in written if TOKEN.encode() in file.read_bytes()] == []
    assert [name for name, raw in hub.files.items() if TOKEN.encode() in raw] == []


def command_lines() -> list[Path]:
    return [file for file in Path("/proc").glob("[0-9]*/cmdline") if file.is_file()]


OF_A_SHOP = "sk_live_" + "a1B2c3D4e5F6g7H8i9J0k1L2"
OTHER = "hf_" + "qRzTvKpWmXyLsBnGdHjFcQwErTyUiOpAsD"


def remade(path: Path, name: str) -> None:
    """As if the phase had left its files so: its record and the verdicts agree with them."""
    loaded = config.load(path)
    row = graph.BY_NAME[name]
    old = json.loads(row.record(loaded.layout).read_text(encoding="utf-8"))
    names = [item["name"] for item in old["subject"]]
    made_model.record(loaded, row, names, facts=old["facts"])
    for later in graph.PHASES:
        if later.gate and name in later.needs:
            made_model.gate(loaded, later.name)


def test_a_token_in_a_text_is_refused(project, upload, hub):
    """One that the config's own check does not know: it has no library for it."""
    path = project(project={"name": "bees", "system_prompt": f"Use {OF_A_SHOP} for the shop."})
    for arguments in ((), ("--plan",)):
        error = refused(lambda given=arguments: upload(path, *given), 4, "credential (stripe-key", "nothing was")
        assert OF_A_SHOP not in str(error.cause + error.remedy)
    assert hub.requests == []


@pytest.mark.parametrize("token", [TOKEN, OTHER])
def test_a_token_in_the_metadata_of_a_gguf_is_refused(project, upload, hub, token):
    path = project()
    made_model.quantized(Path("models/gguf", GGUFS[1]), 1, general_description=f"made with {token}")
    remade(path, "gguf")
    made_model.make_last(config.load(path))
    refused(lambda: upload(path), 4, GGUFS[1])
    assert hub.requests == []


def test_a_token_in_the_metadata_of_an_adapter_is_refused(project, upload, hub):
    path = project(upload={"repo": REPO, "what": ["adapter"]})
    made_model.weights(Path("models/bees-adapter/adapter_model.safetensors"), 2, note=f"token {OTHER}")
    remade(path, "train")
    refused(lambda: upload(path), 4, "adapter_model.safetensors", "hugging-face-token")
    assert hub.requests == []


def test_ones_own_token_among_weights_is_refused(project, upload, hub):
    path = project()
    with Path("models/gguf", GGUFS[0]).open("r+b") as handle:
        handle.seek(-1000, os.SEEK_END)
        handle.write(TOKEN.encode())
    remade(path, "gguf")
    made_model.make_last(config.load(path))
    refused(lambda: upload(path), 4, "your own Hugging Face token")
    assert hub.requests == []


def test_a_path_of_this_machine_is_refused(project, upload, hub):
    named = {"name": "bees", "system_prompt": f"Notes lie in {Path.cwd()}/notes."}
    refused(lambda: upload(project(project=named)), 4, "the path of this checkout")
    assert hub.requests == []


def test_without_a_token_nothing_is_asked(project, upload, hub, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    refused(lambda: upload(project()), 7, "no Hugging Face token", ".env")
    assert hub.requests == []


# -- verdicts and bytes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", VERDICTS)
def test_without_a_pass_nothing_is_sent(project, upload, hub, gate):
    path = project()
    made_model.gate(config.load(path), gate, "FAIL")
    refused(lambda: upload(path), 3, f"{gate} has no PASS: FAIL")
    assert hub.requests == []


def test_a_gate_that_was_never_run(project, upload, hub):
    path = project()
    for file in Path("evaluation/bees/evaluate").iterdir():
        file.unlink()
    refused(lambda: upload(path), 3, "evaluate has no PASS: it was not run", "make evaluate")
    assert hub.requests == []


def test_an_override_stands_in_the_card(project, upload, hub, capsys):
    path = project(upload={"repo": REPO, "what": ["adapter"]})
    made_model.gate(config.load(path), "evaluate", "INCONCLUSIVE", "too few pairs, read by hand")
    upload(path)
    assert "evaluate was overridden, and the card says so: too few pairs" in capsys.readouterr().out
    assert "**evaluate did not pass (INCONCLUSIVE).**" in read(hub, "README.md")
    assert "with this reason: too few pairs, read by hand" in read(hub, "README.md")


def test_a_pass_of_another_model(project, upload, hub):
    path = project()
    made_model.weights(Path("models/bees-adapter/adapter_model.safetensors"), 9)
    record = Path("models/bees-adapter/manifest.json")
    old = json.loads(record.read_text(encoding="utf-8"))
    made_model.record(config.load(path), graph.BY_NAME["train"], [i["name"] for i in old["subject"]], facts={})
    refused(lambda: upload(path), 3, "passed for another train than is there now")
    assert hub.requests == []


@pytest.mark.parametrize(
    "name",
    [
        "models/gguf/bees-Q8_0.gguf",
        "evaluation/bees/evaluate/verdict.json",
        "evaluation/bees/verify-gguf/template",
        "models/gguf/bees.Modelfile",
    ],
)
def test_other_bytes_than_those_that_passed(project, upload, hub, name):
    path = project()
    raw = bytearray(Path(name).read_bytes())
    raw[-3] ^= 1
    Path(name).write_bytes(raw)
    refused(lambda: upload(path), 6)
    assert hub.requests == []


def test_a_deleted_merged_model_is_needed_by_nobody_but_itself(project, upload, hub):
    path = project()
    for file in Path("models/merged/bees-merged").iterdir():
        file.unlink()
    upload(path)
    refused(lambda: upload(path, "--merged", "--repo", "you/merged"), 2, "models/merged/bees-merged/manifest.json")


def test_no_merged_model_is_kept(project, upload):
    path = project()
    Path(path).write_text(Path(path).read_text(encoding="utf-8") + "merge:\n  keep: false\n", encoding="utf-8")
    refused(lambda: upload(path, "--merged"), 2, "merge.keep is false")


# -- records --------------------------------------------------------------------------------------------------


def test_what_was_sent_is_on_record(project, upload, hub):
    upload(project())
    told = json.loads(Path("models/upload/bees/upload.json").read_text(encoding="utf-8"))[REPO]
    assert (told["commit"], told["private"], told["kind"]) == (hub.oid(), True, "gguf")
    assert {item["name"]: item["sha256"] for item in told["files"]} == {
        name: hashlib.sha256(raw).hexdigest() for name, raw in hub.files.items() if name != ".gitattributes"
    }
    entry = audit.entries()[0][-1]
    assert (entry["event"], entry["project"], entry["repo"]) == ("uploaded", "bees", REPO)
    assert entry["files"] == told["files"] and entry["verdicts"]["evaluate"] == "PASS"


def test_a_lock_is_held(project, upload, hub):
    path = project()
    loaded = config.load(path)
    with phase.lock(loaded.layout, "train"):
        refused(lambda: upload(path), 5, "is locked by train")
    assert hub.requests == []


# -- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bees", "a/b/c", "you/bees--x", "you/be es", "you/bees.git"])
def test_a_name_that_is_none(project, upload, name):
    refused(lambda: upload(project(), "--repo", name), 2, "write org/name")


def test_no_name(project, upload, capsys):
    path = project(upload={"private": True})
    refused(lambda: upload(path), 2, "no repository is named", "upload.repo")
    upload(path, "--plan")
    assert "no repository: upload.repo is not set" in capsys.readouterr().out


def test_several_kinds_need_several_repositories(project, upload, checkout, write_config):
    path = project()
    refused(lambda: upload(path, "--gguf", "--adapter"), 2, "which has one card", "you/bees-GGUF-{what}")
    with pytest.raises(ForgeError, match="would share one repository"):
        config.load(write_config(checkout, base="Acme/x", upload={"repo": "you/x", "what": ["gguf", "merged"]}))


# -- cards ---------------------------------------------------------------------------------------------------


def card(kind: str) -> tuple[dict, str]:
    text = Path(f"build/bees/upload/{kind}/README.md").read_text(encoding="utf-8")
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(head), body


@pytest.mark.parametrize(
    ("kind", "library", "relation"),
    [("gguf", "gguf", "finetune"), ("adapter", "peft", "adapter"), ("merged", "transformers", "finetune")],
)
def test_a_card_of_each_kind(project, upload, hub, kind, library, relation):
    from huggingface_hub import ModelCard

    upload(project(upload={"repo": REPO, "what": [kind]}))
    told, body = card(kind)
    assert told["library_name"] == library and told["pipeline_tag"] == "text-generation"
    assert (told["base_model"], told["base_model_relation"]) == ("Acme/Tiny-7B", relation)
    assert told["license"] == "apache-2.0" and told["datasets"] == ["org/rows"]
    ModelCard.load(f"build/bees/upload/{kind}/README.md").validate()
    assert ("POST", "/api/validate-yaml") in hub.requests
    for heading in ("Files", "How to run it", "Intended use and limits", "Evaluation", "Training", "Licence"):
        assert f"\n## {heading}\n" in body
    assert (
        "| preference margin | gate | 0.19 | 0.17 to 0.21 | -0.05 | - | 208, 2 not scored | nats a token | PASS |"
        in body
    )
    assert "| tuned | 1.500 | 3 of 4 |" in body and "The base is under apache-2.0 (by its LICENSE)" in body
    assert "digest of the rows `" in body and "| `lora.r` | 8 |" in body
    assert ("| Q8_0 | 0.0123 | 0.200 | 95.0% | 128 |" in body) == (kind == "gguf")
    assert "{{" not in body and "{%" not in body and "None" not in body
    assert "Published under apache-2.0." in body and "No LICENSE file" not in body
    assert "Knows bees \\| and honey." in body


def test_the_code_of_a_card_is_python(project, upload):
    for kind in ("gguf", "adapter", "merged"):
        project(upload={"repo": REPO, "what": [kind]}, project={"name": "bees", "system_prompt": 'Say "yes"\nor no.'})
        upload(Path("config/test.yaml"), "--plan")
        _, body = card(kind)
        [code] = [part.split("```")[0] for part in body.split("```python\n")[1:]]
        compile(code, "card", "exec")
        assert repr('Say "yes"\nor no.')[1:-1].replace('"', '\\"') in code


def test_a_card_is_the_same_each_time(project, upload):
    path = project()
    upload(path, "--plan")
    before = Path("build/bees/upload/gguf/README.md").read_bytes()
    upload(path, "--plan")
    assert Path("build/bees/upload/gguf/README.md").read_bytes() == before


def test_a_gguf_of_a_published_merged_model_is_its_quantization(project, upload, hub):
    path = project(upload={"repo": "you/bees-{what}", "what": ["merged", "gguf"]})
    upload(path, "--merged", "--readme")
    upload(path, "--plan", "--gguf", "--readme")
    told, _ = card("gguf")
    assert (told["base_model"], told["base_model_relation"]) == ("you/bees-merged", "quantized")


def test_a_base_without_a_name_on_the_hub(project, upload, hub, tmp_path):
    upload(project(base=str(tmp_path / "my-model"), upload={"repo": REPO, "what": ["adapter"]}))
    told, body = card("adapter")
    assert "base_model" not in told and problems("---\n" + yaml.safe_dump(told) + "---\n") == []
    assert "put the folder of your copy of my-model" in body
    assert json.loads(read(hub, "adapter_config.json"))["base_model_name_or_path"] == "my-model"
    assert [name for name, raw in hub.files.items() if str(tmp_path).encode() in raw] == []


def test_the_stand_in_refuses_what_the_hub_refuses(project, upload, hub, monkeypatch):
    monkeypatch.setattr(licences, "metadata", lambda own: {"license": "mine"})
    refused(lambda: upload(project()), 2, "Invalid metadata in README.md", "license 'mine'")
    assert len(hub.commits) == 1


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ("", {}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("Our Terms, v2", {"license": "other", "license_name": "our-terms-v2"}),
    ],
)
def test_licences_by_the_hubs_names(own, told):
    assert licences.metadata(own) == told


@pytest.mark.parametrize(
    ("name", "text", "licence", "words"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", None, "llama3.1", "Built with Llama"),
        ("meta-llama/Meta-Llama-3-8B", None, "llama3", "begins with"),
        ("you/x", "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT", "llama3.2", "Built with Llama"),
        ("google/gemma-2-9b-it", None, "gemma", "use restrictions"),
        ("you/x", "Gemma Terms of Use", "gemma", "use restrictions"),
        ("you/x", "Attribution-NonCommercial-NoDerivatives 4.0 International", "cc-by-nc-nd-4.0", "forbids publishing"),
        ("you/x", "Attribution-NonCommercial 4.0 International", "cc-by-nc-4.0", "forbids commercial use"),
        ("you/x", "Qwen RESEARCH LICENSE AGREEMENT", "qwen-research", "forbids commercial use"),
        ("Qwen/Qwen2-7B", "  Apache License\n     Version 2.0, January 2004", "apache-2.0", "go along"),
        ("you/x", "All rights reserved.", None, "not known here"),
        ("you/x", None, None, "not known here"),
    ],
)
def test_the_licence_of_the_base(tmp_path, name, text, licence, words):
    if text is not None:
        (tmp_path / "LICENSE.txt").write_text(text, encoding="utf-8")
    found, how = licences.of_base(name, tmp_path)
    assert found == licence
    assert words in " ".join(licences.told("apache-2.0", found, how))


def test_another_licence_than_the_bases_is_said_to_be_another_or_unchecked():
    assert "stays under llama3: mit is another" in licences.told("mit", "llama3", "by its name")[-1]
    assert "was not checked" in licences.told("mit", "apache-2.0", "by its name")[-1]
    assert "names no licence" in licences.told("", "llama3", "by its name")[0]
    same = licences.told("llama3", "llama3", "by its name")
    assert same[0] == "Published under llama3." and len(same) == 2
