"""The documents against what they describe: targets, scripts, options, settings, links.

docs/config.md is made from the schema. After a change there: UPDATE_DOCS=1 python -m pytest tests/test_docs.py
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
import typing
from pathlib import Path

import annotated_types
import pytest
from forge import config, graph, schema
from markdown_it import MarkdownIt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "scenarios/README.md",
]
CONFIG_PAGE = ROOT / "docs/config.md"
MARKDOWN = MarkdownIt("commonmark").enable("table")
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
VARIABLES = {
    "RUNS",
    "BASE",
    "CONFIG",
    "VENV",
    "TORCH",
    "LLAMA_CUDA",
    "PYTHON3",
    "LLAMA_CPP",
    "PROMPT",
    "PHASE",
    "PRESET",
    "OVERRIDE_REASON",
}
HEADER = """\
# Every key of the config

<!-- Made by tests/test_docs.py from scripts/forge/schema.py: UPDATE_DOCS=1 python -m pytest tests/test_docs.py -->

`config/training_config.yaml` is the file to edit. A key that is left out has the default below; an unknown key is
refused. "Read by" names the phases that depend on a key: an edit reruns those, and what depends on their results.

Beside the sections a file may hold `extends: FILE`, another config relative to itself. Sections are merged key by key,
lists are replaced; the file then needs to hold only what differs.
"""


# -- docs/config.md ---------------------------------------------------------------------------------------


def render_config_reference() -> str:
    """One table a section: key, type, default, phases that read it, description."""
    parts = [HEADER]
    for name, info in schema.TrainingConfig.model_fields.items():
        rows = "\n".join(
            f"| `{dotted}` | {type_of(field)} | {default_of(field)} | {readers(dotted)} | {cell(field.description)} |"
            for dotted, field in leaves(name, info)
        )
        parts.append(f"## {name}\n\n| key | type | default | read by | description |\n|---|---|---|---|---|\n{rows}\n")
    renamed = "\n".join(f"| `{old}` | `{new}` |" for old, new in config.RENAMED.items())
    parts.append(
        "## Older names\n\nNames of older published configs are refused with today's name, wherever they stand.\n\n"
        f"| older | today |\n|---|---|\n{renamed}\n"
    )
    return "\n".join(parts)


def models_in(annotation: object) -> list[type[BaseModel]]:
    """The sections inside an annotation: of a list's items, too, and every one of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (list, typing.Annotated, typing.Union, types.UnionType):
        return [model for part in typing.get_args(annotation) for model in models_in(part)]
    return []


def leaves(prefix: str, info: FieldInfo) -> list[tuple[str, FieldInfo]]:
    """Every key below a field with its dotted name; a field that holds no section is its own leaf."""
    models = models_in(info.annotation)
    if not models:
        return [(prefix, info)]
    found = [(prefix, info)] if typing.get_origin(info.annotation) is list else []
    for name, field in [item for model in models for item in model.model_fields.items()]:
        found += leaves(f"{prefix}.{name}", field)
    return found


def type_of(info: FieldInfo) -> str:
    words = type_words(info.annotation)
    limits = [text for item in info.metadata for text in limit_words(item)]
    return cell(" ".join([words, *([f"({', '.join(limits)})"] if limits else [])]))


def type_words(annotation: object) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if models_in(annotation):
        return "list of sections of the keys below" if origin is list else "sections of the keys below"
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is typing.Annotated:
        return type_words(inner[0])
    if origin is list:
        return f"list of {type_words(inner[0])}"
    if inner:
        return " or ".join(type_words(part) for part in inner)
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
    return names[annotation]


def limit_words(item: object) -> list[str]:
    signs = ((annotated_types.Ge, "ge", ">="), (annotated_types.Gt, "gt", ">"))
    signs += ((annotated_types.Le, "le", "<="), (annotated_types.Lt, "lt", "<"))
    for kind, name, sign in signs:
        if isinstance(item, kind):
            return [f"{sign} {getattr(item, name)}"]
    if isinstance(item, annotated_types.MinLen):
        return ["not empty" if item.min_length == 1 else f"at least {item.min_length}"]
    if isinstance(item, annotated_types.MaxLen):
        return [f"at most {item.max_length} characters"]
    return []  # a pattern: the description says it in words


def default_of(info: FieldInfo) -> str:
    if info.default is PydanticUndefined:
        return "must be given"
    value = info.default
    if value is None or isinstance(value, bool):
        return f"`{'null' if value is None else str(value).lower()}`"
    if isinstance(value, list):
        return f"`{json.dumps(value)}`"
    return f"`{value}`" if value != "" else "empty"


def related(dotted: str) -> list[str]:
    """Phases that read a key, a part of it, or the section that it is in."""

    def reads(phase: graph.Phase) -> bool:
        return any(f"{dotted}.".startswith(f"{key}.") or f"{key}.".startswith(f"{dotted}.") for key in phase.reads)

    return [phase.name for phase in graph.PHASES if reads(phase)]


def readers(dotted: str) -> str:
    return ", ".join(related(dotted))


def cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


def test_config_reference_is_current():
    if os.environ.get("UPDATE_DOCS"):
        CONFIG_PAGE.write_text(render_config_reference(), encoding="utf-8")
    assert CONFIG_PAGE.read_text(encoding="utf-8") == render_config_reference(), "UPDATE_DOCS=1 rewrites docs/config.md"


# -- what the pages hold ----------------------------------------------------------------------------------


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def spans(page: Path) -> list[str]:
    """Inline code of a page."""
    return [
        child.content
        for token in MARKDOWN.parse(text_of(page))
        for child in token.children or []
        if child.type == "code_inline"
    ]


def command_lines(page: Path) -> list[str]:
    """Lines that a reader may type: bash fences, indented blocks, `$ ` lines of transcripts, inline code."""
    lines = spans(page)
    for token in MARKDOWN.parse(text_of(page)):
        if token.type == "code_block" or (token.type == "fence" and token.info == "bash"):
            lines += token.content.splitlines()
        elif token.type == "fence" and token.info == "text":
            lines += [line[2:] for line in token.content.splitlines() if line.startswith("$ ")]
    return lines


def make_calls() -> dict[str, tuple[Path, list[str]]]:
    """Every `make ...` of the pages, by its text: page and arguments."""
    found = {}
    for page in PAGES:
        for line in command_lines(page):
            for part in re.split(r"&&|;", line):
                match = re.match(r"\s*(?:[A-Z_0-9]+=\S* )*make(?: (.*))?$", part)
                if match:
                    arguments = shlex.split(match[1] or "", comments=True)
                    found[" ".join(["make", *arguments])] = (page, arguments)
    return found


CALLS = make_calls()


def targets_of(arguments: list[str]) -> list[str]:
    return [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]


def test_the_pages_name_make_commands():
    assert {
        "make all",
        "make status",
        "make lint test test-slow",
        "make redo PHASE=gguf",
        "make -n all",
    } <= CALLS.keys()
    assert {target for _, arguments in CALLS.values() for target in targets_of(arguments)} >= TARGETS - {"lint"}


@pytest.mark.parametrize("call", CALLS)
def test_make_commands_are_possible(call):
    page, arguments = CALLS[call]
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if sign:
            assert name in VARIABLES, f"{page.name}: {call}"
            assert name != "PHASE" or value in {*graph.BY_NAME, "..."}, f"{page.name}: {call}"
            assert name != "PRESET" or (ROOT / f"config/presets/{value}.yaml").is_file(), f"{page.name}: {call}"
        elif argument.startswith("-"):
            assert argument == "-n", f"{page.name}: {call}"
        else:
            assert argument in TARGETS, f"{page.name}: {call}"


def test_variables_are_read_by_something():
    places = [ROOT / "Makefile", ROOT / "scripts/setup_environment.sh", ROOT / "scripts/forge/llamacpp/llama.py"]
    code = "".join(map(text_of, places))
    assert [name for name in VARIABLES if not re.search(rf"\b{name}\b", code)] == []


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A copy with an environment that make takes for finished, and the configs that the pages invent."""
    root = tmp_path_factory.mktemp("docs") / "a clone"
    root.mkdir()
    for name in ("Makefile", "Modelfile.template", "requirements-finetuning.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, root / name)
    for name in ("scripts", "corpus", "scenarios", "config"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    (root / "config/other.yaml").write_text("extends: training_config.yaml\n", encoding="utf-8")
    (root / "config/local").mkdir()
    for preset in (ROOT / "config/presets").glob("*.yaml"):
        shutil.copy(preset, root / "config/local")
    (root / ".venv/bin").mkdir(parents=True)
    wrapper = root / ".venv/bin/python"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    for stamp in ("light.ok", "ready.ok", "dev.ok"):
        (root / ".venv" / stamp).touch()
    return root


def dry_runs() -> list[list[str]]:
    """The calls that can be planned: those with an ellipsis, another environment or a bare `redo` cannot."""
    return [
        arguments
        for _, arguments in CALLS.values()
        if targets_of(arguments)
        and arguments != ["redo"]
        and not any("..." in item or item.startswith("VENV=") for item in arguments)
    ]


@pytest.mark.parametrize("arguments", dry_runs(), ids=" ".join)
def test_make_plans_the_commands(checkout, arguments):
    environment = {key: value for key, value in os.environ.items() if key not in {*VARIABLES, "MAKEFLAGS", "MAKELEVEL"}}
    done = subprocess.run(
        ["make", "-n", *arguments], cwd=checkout, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


# -- scripts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.*") if path.is_file()))
def test_every_script_is_described(script):
    assert any(script in text_of(page) for page in PAGES)


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "bench").glob("*.py")))
def test_every_benchmark_is_described(script):
    assert f"`bench/{script}`" in section(ROOT / "README.md", "Benchmarks")


def test_every_benchmark_has_a_target():
    rules = dict(
        re.findall(r"^bench-([a-z-]+):.*\n\t@\$\(PYTHON\) bench/(\w+)\.py", text_of(ROOT / "Makefile"), flags=re.M)
    )
    shown = re.findall(r"^\| `make bench-([a-z-]+)` \| `bench/(\w+)\.py`", text_of(ROOT / "README.md"), flags=re.M)
    references = {path.stem.removeprefix("reference_") for path in (ROOT / "bench").glob("reference_*.py")}
    named = {name: name.replace("-", "_") for name in rules} | {"gguf": "quantize"}  # gguf.py would hide the package
    assert dict(shown) == rules == named
    assert references <= rules.keys()


def script_calls() -> set[tuple[str, str]]:
    """Script and option of every command that calls a script."""
    found = set()
    for page in PAGES:
        for line in command_lines(page):
            match = re.match(r".*\b(?:python|bash) (?:scripts|bench)/(\w+\.(?:py|sh))(.*)", line)
            if match:
                found |= {(match[1], option) for option in re.findall(r"(?<=\s)--[a-z-]+", match[2])}
        for span in spans(page):
            if re.fullmatch(r"--[a-z-]+( [A-Z]+)?", span):
                found.add(("", span.split()[0]))
    return found


def test_options_exist():
    code = {
        path.name: text_of(path) for path in [*ROOT.glob("scripts/*.*"), *ROOT.glob("bench/*.py")] if path.is_file()
    }
    shared = "".join(text_of(ROOT / f"scripts/forge/{name}.py") for name in ("command", "phase"))
    shared += code["harness.py"] + '"--help"'
    unknown = []
    for script, option in script_calls():
        places = [*code.values(), shared] if not script else [code[script], shared]
        if script.endswith(".sh"):
            places.append(code[script.replace(".sh", ".py")])
        if not any(f'"{option}"' in text for text in places):
            unknown.append((script, option))
    assert unknown == []


def test_paths_of_scripts_exist():
    named = {name for page in PAGES for name in re.findall(r"scripts/([\w/]+\.(?:py|sh|txt))", text_of(page))}
    assert [name for name in sorted(named) if not (ROOT / "scripts" / name).is_file()] == []


# -- presets ----------------------------------------------------------------------------------------------


def test_readme_lists_the_presets_with_their_sizes():
    """The sizes themselves are tried in tests/test_presets.py."""
    rows = re.findall(r"^\| `([\w.-]+)` \| .* \| ([\d.]+) GB \|$", section(ROOT / "README.md", "Presets"), flags=re.M)
    told = {
        path.stem: re.search(r"4-bit weights take ([\d.]+) GB", text_of(path))[1]
        for path in (ROOT / "config/presets").glob("*.yaml")
    }
    assert dict(rows) == told


# -- phases -----------------------------------------------------------------------------------------------


def section(page: Path, heading: str) -> str:
    """Text under a heading, down to the next of the same or a higher rank."""
    match = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,6}} |\Z)", text_of(page), flags=re.M | re.S)
    assert match, f"{page.name} has no heading {heading!r}"
    return match[2]


@pytest.mark.parametrize("phase", graph.PHASES, ids=lambda phase: phase.name)
def test_each_phase_has_its_section_with_its_settings(phase):
    text = section(ROOT / "docs/phases.md", phase.name)
    assert f"`scripts/{phase.script}`" in text
    settings = re.search(r"- Settings: (.*?)(?:\.\s| of which|, of which)", text, flags=re.S)
    assert set(re.findall(r"`([\w.]+)`", settings[1])) == set(phase.reads)
    assert ("gate" in text.split("\n- ")[0]) == phase.gate


def test_phases_stand_in_run_order():
    names = [phase.name for phase in graph.PHASES]
    headings = re.findall(r"^## ([a-z-]+)$", text_of(ROOT / "docs/phases.md"), flags=re.M)
    rows = re.findall(r"^\| `make ([a-z-]+)` \| `(\w+\.py)`", section(ROOT / "README.md", "The phases"), flags=re.M)
    shown = re.findall(r"^\$ make ([a-z-]+)$", text_of(ROOT / "README.md"), flags=re.M)
    assert headings == shown == names
    assert rows == [(phase.name, phase.script) for phase in graph.PHASES]


def test_the_diagram_has_every_phase():
    diagram = re.search(r"```mermaid\n(.*?)```", text_of(ROOT / "README.md"), flags=re.S)[1]
    for phase in graph.PHASES:
        shape = rf"{phase.name}\{{{phase.name}\}}" if phase.gate else rf"{phase.name}\[{phase.name}\]"
        assert re.search(shape, diagram), phase.name


def test_headlines_of_the_phases_are_those_printed():
    printed = dict(re.findall(r"^== ([a-z-]+): (.*) \(it was not done yet\)$", text_of(ROOT / "README.md"), flags=re.M))
    assert printed == {phase.name: phase.purpose for phase in graph.PHASES}


def printed_lines() -> list[str]:
    """What README says that the phases and `make all` print."""
    blocks = [token.content for token in MARKDOWN.parse(text_of(ROOT / "README.md")) if token.type == "fence"]
    [phases] = [text for text in blocks if text.startswith("$ make model")]
    [end] = [text for text in blocks if text.startswith("forge-starter\n")]
    lines = [*phases.splitlines(), *end.splitlines()]
    unsure = ("$ ", "...", "wrote gguf_model_manifest.json")  # the last: not where the copy is the same already
    return [line for line in lines if line.strip() and not line.startswith(unsure[0]) and line not in unsure]


@pytest.mark.skipif("TRANSCRIPT" not in os.environ, reason="TRANSCRIPT= names no file with what `make all` printed")
def test_make_all_prints_what_readme_shows():
    """`...` stands for anything, as do numbers that have a fraction and what is counted before ` of `."""
    seen = Path(os.environ["TRANSCRIPT"]).read_text(encoding="utf-8").splitlines()
    missing = []
    for line in printed_lines():
        varying = r"\.\.\.|(?<![\w.])\d+\.\d+(?!\.\d)|\b\d+(?= of \d)"
        words = re.sub(varying, "...", line).split()
        pattern = r"\s+".join(".*".join(map(re.escape, word.split("..."))) for word in words)
        if not any(re.fullmatch(r"\s*" + pattern, text) for text in seen):
            missing.append(line)
    assert missing == []


def test_what_an_edit_reruns():
    rows = re.findall(r"^\| (.+?) \| (.*?) ?\| .*\|$", section(ROOT / "README.md", "What an edit reruns"), flags=re.M)
    checked = set()
    for edited, phases in rows:
        for key in re.findall(r"`([a-z]+\.\w+|merge|ollama)`", edited):
            assert re.findall(r"`([a-z-]+)`", phases) == related(key), key
            checked.add(key.split(".")[0])
    assert checked == set(schema.TrainingConfig.model_fields)


# -- settings, codes, links, paths ------------------------------------------------------------------------


def known_keys() -> set[str]:
    """Every dotted key, with the sections and lists on the way."""
    found = set()
    for name, info in schema.TrainingConfig.model_fields.items():
        for dotted, _ in leaves(name, info):
            parts = dotted.split(".")
            found |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_config_keys_exist(page):
    sections = "|".join(schema.TrainingConfig.model_fields)
    known = known_keys()
    unknown = []
    for span in spans(page):
        match = re.match(rf"((?:{sections})\.[a-z_0-9.]+)(?::|$)", span)
        if match and not match[1].endswith((".py", ".json", ".jsonl", ".yaml", ".exe")) and match[1] not in known:
            unknown.append(span)
    assert unknown == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_examples_hold_known_keys(page):
    import yaml

    for token in MARKDOWN.parse(text_of(page)):
        if token.type == "fence" and token.info == "yaml":
            example = yaml.safe_load(token.content)
            base = yaml.safe_load(text_of(ROOT / "config/training_config.yaml"))
            schema.TrainingConfig.model_validate({key: base[key] | example.get(key, {}) for key in base})


def test_exit_codes_are_those_of_the_code():
    from forge import errors

    used = "".join(text_of(path) for path in (ROOT / "scripts").rglob("*.py") if path.name != "errors.py")
    codes = {value for name, value in vars(errors).items() if isinstance(value, int) and name in used} | {1}
    for page, heading in ((ROOT / "README.md", "Exit codes"), (ROOT / "docs/phases.md", "What all phases share")):
        listed = {int(code) for code in re.findall(r"^\| (\d+) \|", section(page, heading), flags=re.M)}
        assert listed == codes | {errors.BAD_INPUT, errors.OK}, page.name


def anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_of_the_checkout_exist(page):
    made = ("config/local/", "config/other.yaml")
    named = [span for span in spans(page) if re.fullmatch(r"(?:config|corpus|docs|tests|scripts|bench)/[\w./-]+", span)]
    assert [name for name in named if not name.startswith(made) and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_path_of_one_machine(page):
    assert re.findall(r"/(?:tmp|root|home/(?!me/))\S*|" + re.escape(str(ROOT)), text_of(page)) == []


def test_the_test_command_is_the_one_of_ci():
    commands = [line for line in text_of(ROOT / ".ci/run").splitlines() if re.match(r"make .*\btest\b", line)]
    assert commands == ["make lint test test-slow"]
    assert f"```bash\n{commands[0]}\n```" in section(ROOT / "README.md", "Tests")


def test_the_licence_is_whole():
    text = text_of(ROOT / "LICENSE")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_every_room_is_named():
    """docs/architecture.md tells what each module and folder of scripts/forge is for."""
    named = set(re.findall(r"`([\w.]+)/?`", text_of(ROOT / "docs/architecture.md")))
    rooms = {path.name for path in (ROOT / "scripts/forge").iterdir() if not path.name.startswith("__")}
    assert sorted(rooms - named) == []
