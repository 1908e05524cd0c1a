"""The scripts as a whole: the graph is the Makefile's, --help is quick and plain, a wrong base is refused by name."""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import download_model
import pytest
from conftest import CHATML
from forge import config, files, graph, models, phase, sources
from forge.errors import ForgeError

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in ROOT.glob("scripts/*.py"))
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "llama_cpp", "gguf", "bitsandbytes"}

# -- the graph and the Makefile -------------------------------------------------------------------------------


def variable(phase_name: str) -> str:
    return f"$({phase_name.upper().replace('-', '_')})"


def rules() -> dict[str, tuple[list[str], list[str], str]]:
    """Targets of the Makefile: prerequisites, order-only prerequisites, recipe."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for match in re.finditer(r"^(\$\(\w+\)|[\w-]+):([^=\n]*)\n((?:\t.*\n)*)", text, flags=re.M):
        target, needs, recipe = match.groups()
        before, _, after = needs.partition("##")[0].partition("|")
        if target not in found:
            found[target] = (before.split(), after.split(), recipe)
    return found


@pytest.mark.parametrize("row", graph.PHASES, ids=lambda row: row.name)
def test_a_phases_rule_is_the_graphs(row):
    needs, order_only, recipe = rules()[variable(row.name)]
    phases = {variable(other.name): other.name for other in graph.PHASES}
    assert [phases[need] for need in needs if need in phases] == list(row.needs)
    assert f"$(BUILD)/{row.name}.json" in needs
    assert order_only == ["$(READY)"]
    assert recipe == f'\t@$(RUN){row.script} --config "$(CONFIG)" $(FORCE_{row.name})\n'


@pytest.mark.parametrize("row", graph.PHASES, ids=lambda row: row.name)
def test_every_phase_has_a_target_of_its_name(row):
    assert rules()[row.name][0] == [variable(row.name)]


def test_what_is_read_from_outside_is_a_prerequisite(checkout, write_config):
    """An edited document or template is seen by the script: make has to see it, too."""
    (checkout / "template.jinja").write_text("{{ messages }}", encoding="utf-8")
    path = write_config(
        checkout, base="org/tiny", model={"base_model_name": "org/tiny", "chat_template": "template.jinja"}
    )
    loaded = config.load(path)
    outside = {row.name for row in graph.PHASES if sources.outside(row.name, loaded) is not None}
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert outside == {row.name for row in graph.PHASES if f"$(BUILD)/{row.name}.sources.json" in text}


@pytest.mark.parametrize("row", graph.PHASES, ids=lambda row: row.name)
def test_every_phase_has_its_script(row):
    assert f'phase.start(__doc__, "{row.name}", work' in (ROOT / "scripts" / row.script).read_text(encoding="utf-8")


def test_a_gates_record_is_written_on_passing_only():
    layout = graph.Layout("name", Path("models/base/x"))
    records = {row.name: str(row.record(layout)) for row in graph.PHASES}
    for row in graph.PHASES:
        assert row.gate == (records[row.name] == f"evaluation/name/{row.name}/gate.ok")
    assert len(set(records.values())) == len(graph.PHASES)


def test_phases_need_only_earlier_ones_and_each_is_needed():
    names = [row.name for row in graph.PHASES]
    for index, row in enumerate(graph.PHASES):
        assert set(row.needs) <= set(names[:index])
        assert list(row.needs) == sorted(row.needs, key=names.index)
    needed = {need for row in graph.PHASES for need in row.needs}
    assert set(names) - needed == {"modelfile"}


@pytest.mark.parametrize("row", graph.PHASES, ids=lambda row: row.name)
def test_a_phase_reads_no_setting_but_its_own(row):
    """`run.settings["a"]["b"]` and `run.facts("phase")` in a script are of what the graph says it reads."""
    text = (ROOT / "scripts" / row.script).read_text(encoding="utf-8")
    sections = {dotted.split(".")[0] for dotted in row.reads}
    assert set(re.findall(r'run\.settings\["(\w+)"\]', text)) <= sections
    assert set(re.findall(r'run\.facts\("([\w-]+)"\)', text)) <= set(row.needs)
    assert set(re.findall(r'run\.inputs\["([\w-]+)"\]', text)) <= set(row.needs)


def test_upstream_is_in_run_order():
    assert [row.name for row in graph.upstream("train")] == ["model", "dataset", "validate", "train"]
    assert graph.upstream("modelfile") == list(graph.PHASES)


# -- --help ----------------------------------------------------------------------------------------------------


def run(*command: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200"},
        **more,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_docstring_and_imports_nothing_heavy(tmp_path, script):
    done = run("-X", "importtime", str(ROOT / "scripts" / script), "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-500:]
    docstring = ast.get_docstring(ast.parse((ROOT / "scripts" / script).read_text(encoding="utf-8")), clean=False)
    assert docstring.strip() in done.stdout
    assert "--config" in done.stdout
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "argparse" in imported  # the list is a list
    assert imported & HEAVY == set()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_option_ends_with_2(tmp_path, script):
    done = run(str(ROOT / "scripts" / script), "--nonsense", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(rf"^{script}: error: ", done.stderr, flags=re.M)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name not in ("write_schema.py", "init_config.py")])
def test_a_missing_config_ends_with_2(tmp_path, script):
    more = ["--makefile", "build/x.mk"] if script == "sync_config.py" else []
    done = run(str(ROOT / "scripts" / script), "--config", "none.yaml", *more, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "FAIL none.yaml does not exist\n  do name an existing file: make all CONFIG=config/training_config.yaml\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_scripts_import_no_other_script():
    names = {Path(script).stem for script in SCRIPTS}
    for script in SCRIPTS:
        for node in ast.walk(ast.parse((ROOT / "scripts" / script).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not names & {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                assert node.module not in names


@pytest.mark.parametrize("row", graph.PHASES[1:], ids=lambda row: row.name)
def test_a_phase_alone_names_what_it_needs(checkout, write_config, run_script, row):
    write_config(checkout, base="org/tiny")
    done = run_script(row.script, "--config", "config/test.yaml")
    assert (done.returncode, done.stderr) == (
        2,
        f"FAIL {row.name} needs models/base/org/tiny/manifest.json, which is not there\n"
        "  do run make model CONFIG=config/test.yaml\n",
    )
    assert not (checkout / "models").exists()


# -- small scripts ---------------------------------------------------------------------------------------------


def test_status_of_a_fresh_checkout(checkout, write_config, run_script):
    write_config(checkout, base="org/tiny")
    done = run_script("status.py", "--config", "config/test.yaml", check=True)
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "test (config/test.yaml)",
        "",
        "phase           state         size when                 took  where, or why",
    ]
    assert [line.split() for line in lines[3:]] == [[row.name, "missing", "make", row.name] for row in graph.PHASES]


def test_init_writes_a_config_that_loads_and_never_twice(checkout, run_script):
    done = run_script("init_config.py", "--preset", "qwen2-7b-8gb", check=True)
    path = Path("config/local/qwen2-7b-8gb.yaml")
    assert done.stdout == f"wrote {path}: edit it, then run make all CONFIG={path}\n"
    assert config.load(path).values == config.load("config/presets/qwen2-7b-8gb.yaml").values
    done = run_script("init_config.py", "--preset", "qwen2-7b-8gb")
    assert (done.returncode, done.stderr) == (
        2,
        f"FAIL {path} exists already\n  do edit it, or move it away first\n",
    )


@pytest.mark.parametrize("name", ["", "nonsense", "../training_config"])
def test_init_of_no_preset(checkout, run_script, name):
    done = run_script("init_config.py", "--preset", name)
    assert done.returncode == 2
    assert done.stderr.startswith(f"FAIL no preset {name!r}\n  do make init PRESET=NAME with one of: ")
    assert not (checkout / "config/local").exists()


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--prompt", "  "], "no question"),
        (["--prompt", "Who?"], "there is no GGUF yet"),
        ([], "no question"),
    ],
)
def test_ask_without_a_question_or_a_model(checkout, write_config, run_script, arguments, cause):
    write_config(checkout, base="org/tiny")
    done = run_script("ask.py", "--config", "config/test.yaml", *arguments, env={"PROMPT": ""})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"FAIL {cause}\n  do ")


def test_runs_without_an_adapter(checkout, write_config, run_script):
    write_config(checkout, base="org/tiny")
    done = run_script("runs.py", "--config", "config/test.yaml", check=True)
    assert done.stdout == "test has no adapter yet: run make train\n"
    done = run_script("runs.py", "--config", "config/test.yaml", "--restore", "abc")
    assert (done.returncode, done.stderr) == (
        2,
        "FAIL 0 archived adapters begin with 'abc'\n  do see make runs for their digests\n",
    )


@pytest.mark.parametrize(
    ("name", "text", "cause"),
    [
        ("none.txt", None, "none.txt does not exist"),
        ("empty.txt", "\n \n", "empty.txt holds no question"),
        ("latin.txt", b"caf\xe9?\n", None),
    ],
)
def test_questions_of_a_file_that_has_none(checkout, write_config, run_script, name, text, cause):
    write_config(checkout, base="org/tiny")
    if text is not None:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    done = run_script("verify_adapter.py", "--config", "config/test.yaml", "--file", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"FAIL {cause or name}")


def test_asking_an_adapter_that_is_not_there(checkout, write_config, run_script):
    write_config(checkout, base="org/tiny")
    done = run_script("verify_adapter.py", "--config", "config/test.yaml", "--input", "Who?")
    assert (done.returncode, done.stderr) == (
        2,
        "FAIL models/test-adapter is not there yet\n  do run make train (adapter) or make merge (merged)\n",
    )


def test_asking_a_merged_model_that_was_not_kept(checkout, write_config, run_script):
    write_config(checkout, base="org/tiny")
    merged = Path("models/merged/test-merged")
    merged.mkdir(parents=True)
    (merged / "manifest.json").write_text("{}", encoding="utf-8")
    done = run_script("verify_adapter.py", "--config", "config/test.yaml", "--input", "Who?", "--model-type", "merged")
    assert done.returncode == 2
    assert done.stderr.startswith("FAIL the merged model was not kept (merge.keep)\n  do leave --model-type out")


# -- a wrong base ----------------------------------------------------------------------------------------------


@pytest.fixture
def base(tiny_base, tmp_path) -> Path:
    """A copy of the tiny model to spoil; the weights are a link until a test replaces it."""
    folder = tmp_path / "bases/spoiled"
    folder.mkdir(parents=True)
    for path in tiny_base.iterdir():
        if path.suffix == ".safetensors":
            (folder / path.name).symlink_to(path)
        else:
            shutil.copy(path, folder)
    return folder


@pytest.fixture
def download(checkout, write_config):
    """`download(folder)` gets a base in this process, where transformers is loaded already."""

    def get(folder: Path, **settings) -> dict:
        path = write_config(checkout, model={"base_model_name": str(folder), **settings})
        run = phase.Run(graph.BY_NAME["model"], config.load(path), argparse.Namespace(force=True))
        files.remove(run.staging)
        run.staging.mkdir(parents=True)
        return download_model.work(run)

    return get


def refused(work, code: int = 2) -> ForgeError:
    with pytest.raises(ForgeError) as caught:
        work()
    assert caught.value.code == code, caught.value.cause
    return caught.value


def edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def test_a_good_base_is_linked_not_copied(download, tiny_base):
    facts = download(tiny_base)
    assert (facts["end_token"], facts["dtype"], facts["revision"]) == ("<|im_end|>", "bfloat16", None)
    staged = next(Path("models/base/local").glob(".tiny-qwen2-*.partial"))
    assert {path.name for path in staged.iterdir()} == {path.name for path in tiny_base.iterdir()}
    assert all(path.is_symlink() for path in staged.iterdir())


@pytest.mark.parametrize("make", [True, False])
def test_no_model_in_the_folder(download, tmp_path, make):
    folder = tmp_path / "bases/none"
    if make:
        folder.mkdir(parents=True)
    error = refused(lambda: download(folder))
    assert error.cause == f"{folder} holds no model (config.json is missing)"
    assert error.remedy == "correct model.base_model_name"


def test_pickles_only(download, base):
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(b"\x80\x04")
    error = refused(lambda: download(base))
    assert error.cause.endswith(" has no .safetensors weights")
    assert error.remedy == "choose a base with safetensors weights: pickles can run code and are never loaded"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_its_own(download, base, name):
    edit(base / name, auto_map={"AutoModelForCausalLM": "modeling.Own"})
    error = refused(lambda: download(base))
    assert error.cause.endswith(f"{name} asks to run code that comes with the model (auto_map)")
    assert error.remedy == "choose a base that transformers supports by itself"


def test_no_chat_template(download, base):
    (base / "chat_template.jinja").unlink()
    error = refused(lambda: download(base))
    assert error.cause == f"{base} has no chat template"
    assert error.remedy == "set model.chat_template to a Jinja file, or choose the model's instruct version"


def test_a_chat_template_for_a_base_that_has_none(download, base):
    (base / "chat_template.jinja").unlink()
    Path("template.jinja").write_text(CHATML, encoding="utf-8")
    assert download(base, chat_template="template.jinja")["end_token"] == "<|im_end|>"
    error = refused(lambda: download(base, chat_template="none.jinja"))
    assert error.cause == "model.chat_template: none.jinja does not exist"


@pytest.mark.parametrize("text", ["{% for m in messages %}", "{{ messages[0]['content'] }}"])
def test_a_chat_template_that_does_not_do(download, base, text):
    (base / "chat_template.jinja").unlink()
    Path("template.jinja").write_text(text, encoding="utf-8")
    assert "chat template" in refused(lambda: download(base, chat_template="template.jinja")).cause


def test_a_chat_template_for_a_base_that_has_one(download, tiny_base):
    Path("template.jinja").write_text(CHATML, encoding="utf-8")
    error = refused(lambda: download(tiny_base, chat_template="template.jinja"))
    assert error.cause == "model.chat_template is set, but the base has a template of its own"
    assert error.remedy.startswith("remove model.chat_template: ")


def test_more_tokens_than_rows(download, base):
    edit(base / "config.json", vocab_size=1000)
    error = refused(lambda: download(base), code=6)
    assert error.cause == "the tokenizer knows 151936 tokens, the model has 1000 rows for them"


def test_an_architecture_that_nobody_knows(download, base):
    edit(base / "config.json", model_type="nonsense", architectures=["NonsenseForCausalLM"])
    assert "nonsense" in refused(lambda: download(base)).cause


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", '{"a": ', "[]"])
def test_damaged_json(download, base, name, text):
    (base / name).write_text(text, encoding="utf-8")
    error = refused(lambda: download(base), code=6)
    assert error.remedy


def test_truncated_weights_do_not_load(base, checkout):
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    error = refused(lambda: models.causal_lm(base, "bfloat16"), code=6)
    assert error.cause.startswith(f"the model in {base} does not load: SafetensorError: ")
    assert error.remedy == f"delete {base} and run make again"


def test_truncated_weights_are_found_before_anything_is_made_from_them(download, base):
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors" in refused(lambda: download(base), code=6).cause


def test_a_missing_weight_does_not_load(base):
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    del weights["model.layers.0.self_attn.q_proj.weight"]
    (base / "model.safetensors").unlink()
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    error = refused(lambda: models.causal_lm(base, "bfloat16"), code=6)
    assert error.cause == (f"the model in {base} lacks model.layers.0.self_attn.q_proj.weight (1 weights in all)")


def test_a_wrong_base_ends_the_script_in_two_lines_and_leaves_no_base(checkout, write_config, run_script, tmp_path):
    write_config(checkout, base=tmp_path / "nowhere")
    done = run_script("download_model.py", "--config", "config/test.yaml")
    assert (done.returncode, done.stderr) == (
        2,
        f"FAIL {tmp_path}/nowhere holds no model (config.json is missing)\n  do correct model.base_model_name\n",
    )
    assert list(Path("models").rglob("manifest.json")) == []
