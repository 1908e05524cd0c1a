"""Our TEMPLATEs for Ollama: what Go makes of them, and which chat template each is chosen for.

tests/data/prompts.json holds what tests/go/render.go printed, with Go's own text/template. Where there is Go it is run
again. After a change of a TEMPLATE or a conversation: UPDATE_PROMPTS=1 python -m pytest tests/test_templates.py
"""

import ast
import contextlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import CHATML
from forge.conversations import CONVERSATIONS, turns
from forge.llamacpp import llama
from forge.templates import gotemplate, ollama
from jinja2 import TemplateError

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ROOT / "tests/data/prompts.json"
NAMES = ["chatml", "gemma", "llama2", "llama3", "llama3.1", "mistral-v1", "mistral-v3", "mistral-v3-tekken"]
NAMES += ["phi3", "phi3.5", "qwen2", "qwen2.5", "smollm2"]
# Beside the conversations that files are checked with: what Ollama joins, and other white space around a text.
MORE = {
    "two questions in a row": [*turns("Hi."), *turns("Are you there?", "Yes.", "Good.")],
    "two answers in a row": [*turns("Hi.", "Good day."), {"role": "assistant", "content": "Yes?"}, *turns("And?")],
    "two system prompts": [{"role": "system", "content": "One."}, *turns("Hi.", system="Two.")],
    "an answer last": turns("Hi.", "Good day."),
    "an answer first": [{"role": "assistant", "content": "Good day."}, *turns("Hi.")],
    "every white space": turns(" \t\r\n\v\f\x1c\x85\u00a0a\u3000\u00a0\f\v\n\r\t ", "\n" * 50, "\u3000"),
    "nothing but white space": turns(" \n\t\v ", " ", "\n"),
    "another role": [*turns("Hi."), {"role": "tool", "content": "42"}],
    "half a character's bytes": turns("\u00e9", "\U0001f600", " \u4f60 "),
}
ALL = CONVERSATIONS | MORE


def by_go() -> dict[str, dict[str, str | None]]:
    asked = {"templates": {name: ollama.text(name) for name in ollama.names()}, "conversations": ALL}
    done = subprocess.run(
        ["go", "run", str(ROOT / "tests/go/render.go")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def prompts() -> dict[str, dict[str, str | None]]:
    if os.environ.get("UPDATE_PROMPTS"):
        PROMPTS.write_text(json.dumps(by_go(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return json.loads(PROMPTS.read_text(encoding="utf-8"))


# -- what Go makes of them ----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go: its results of earlier are taken")
def test_go_renders_what_is_kept(prompts):
    assert by_go() == prompts


def test_the_kept_prompts_are_of_these_templates(prompts):
    assert sorted(prompts) == ollama.names() == NAMES
    assert all(set(found) == set(ALL) for found in prompts.values())


@pytest.mark.parametrize("name", NAMES)
def test_python_renders_as_go_does(name, prompts):
    assert {key: ollama.render(name, conversation) for key, conversation in ALL.items()} == prompts[name]


def test_what_is_refused(prompts):
    refused = {name: {key for key in CONVERSATIONS if found[key] is None} for name, found in prompts.items()}
    late = {"later system prompt"}
    expected = dict.fromkeys(NAMES, set()) | dict.fromkeys(
        ("llama2", "mistral-v1", "mistral-v3", "mistral-v3-tekken"), late
    )
    expected["gemma"] = {key for key, said in CONVERSATIONS.items() if any(t["role"] == "system" for t in said)}
    assert refused == expected
    assert len(expected["gemma"]) == 8


@pytest.mark.parametrize("name", NAMES)
def test_every_turn_of_many_keeps_its_end(name, prompts):
    text = prompts[name]["many turns"]
    end = next(mark for mark in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>") if mark in text)
    for said in ("Good day.", "Well, yes."):
        assert text.partition(said)[2].lstrip().startswith(end)


def test_no_two_templates_write_the_same(prompts):
    assert len({json.dumps(found, sort_keys=True) for found in prompts.values()}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_modelfile_can_hold_them(name):
    text = ollama.text(name)
    assert '"""' not in text and not text.endswith('"')
    assert text.isascii() and text.replace("\n", "").isprintable()  # Ollama's reader drops other characters


@pytest.mark.parametrize(
    "text",
    [
        "{{ end }}",
        "{{ json .Messages }}",
        "{{ .Content | print }}",
        "{{ .Content }",
        "{{ range .Messages }}{{ break }}{{ end }}",
        "{{ (eq 1 1 }}",
        "{{ 'a' }}",
    ],
)
def test_what_is_not_known_is_refused(text):
    with pytest.raises(gotemplate.Failed):
        gotemplate.Template(text).render({"Messages": [{"Content": "a"}], "Content": "b"})


@pytest.mark.parametrize(
    "text",
    [
        '{{ template "none" . }}',
        "{{ .Nothing }}",
        "{{ slice .Content 1 0 }}",
        "{{ slice .Content 9 }}",
        "{{ .Messages }}",
    ],
)
def test_what_go_ends_with_an_error_is_one(text):
    with pytest.raises(gotemplate.Failed):
        gotemplate.Template(text).render({"Messages": [], "Content": "text"})


# -- which chat template each is chosen for -----------------------------------------------------------------------

# Those of llama.cpp's models/templates, by the names of the files; no other gets one.
CHOSEN = {
    "Qwen-Qwen2.5-7B-Instruct": "qwen2.5",
    "Qwen3-Coder": "chatml",
    "google-gemma-2-2b-it": "gemma",
    "meta-llama-Llama-3.1-8B-Instruct": "llama3.1",
    "meta-llama-Llama-3.3-70B-Instruct": "llama3.1",
    "microsoft-Phi-3.5-mini-instruct": "phi3.5",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral-v3-tekken",
}
# Some of those that stand in llama.cpp's tests/test-chat-template.cpp, by the beginnings of their names.
CHOSEN_IN_TESTS = {
    "teknium/OpenHermes-2.5-Mistral-7B": "chatml",
    "mistralai/Mistral-7B-Instruct-v0.2 (mistralai 'v1'": "mistral-v1",
    "Mistral-Large-Instruct-2407 (mistralai 'v3'": "mistral-v3",
    "Mistral-Nemo-Instruct-2407": "mistral-v3-tekken",
    "google/gemma-7b-it": "gemma",
    "Llama-3": "llama3",
    "Phi-3-small": "phi3",
    "mistralai/Mistral-Large-Instruct-2411": None,
    "bofenghuang/vigogne-2-70b-chat": None,
    "Phi-3-mini": None,
    "openchat/openchat-3.5-0106": None,
}
LLAMA_2 = (  # as Llama 2's does
    "{% if messages[0]['role'] == 'system' %}{% set said = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set said = messages %}{% set system = false %}{% endif %}{% for m in said %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set text = m['content'] %}{% if loop.first and system != false %}"
    "{% set text = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + text %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
WITH_DEFAULT = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nDEFAULT<|im_end|>\n{% endif %}" + CHATML
DEFAULTS = {
    "smollm2": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "qwen2": "You are a helpful assistant.",
    "qwen2.5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
}


def chosen(template: str) -> str | None:
    """The TEMPLATE for a chat template, the start token left to llama.cpp."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    wanted: dict[str, str | None] = dict.fromkeys(CONVERSATIONS)
    with contextlib.suppress(TemplateError):  # some of the templates are for other readers of Jinja
        formatter = Jinja2ChatFormatter(template, eos_token="</s>", bos_token="<s>")
        for key, conversation in CONVERSATIONS.items():
            with contextlib.suppress(TemplateError, TypeError, ValueError):
                wanted[key] = formatter(messages=conversation).prompt.removeprefix("<s>")
    return ollama.choose(CONVERSATIONS, wanted)[0]


def test_which_of_llama_cpps_templates_get_one():
    paths = sorted((llama.source() / "models/templates").glob("*.jinja"))
    found = {path.stem: chosen(path.read_text(encoding="utf-8")) for path in paths}
    assert {name: template for name, template in found.items() if template} == CHOSEN
    assert len(found) >= 60


@pytest.mark.parametrize("name", CHOSEN_IN_TESTS)
def test_which_of_the_templates_in_llama_cpps_tests_get_one(name):
    source = (llama.source() / "tests/test-chat-template.cpp").read_text(encoding="utf-8")
    pattern = rf'name= \*/ "{re.escape(name)}.*",\s+(?://.*\s+)*/\* \.template_str= \*/ ("(?:[^"\\]|\\.)*")'
    assert chosen(ast.literal_eval(re.search(pattern, source)[1])) == CHOSEN_IN_TESTS[name]


def test_llama_2():
    assert chosen(LLAMA_2) == "llama2"


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_system_prompt_is_kept(name):
    assert chosen(WITH_DEFAULT.replace("DEFAULT", DEFAULTS[name])) == name
    assert chosen(WITH_DEFAULT.replace("DEFAULT", DEFAULTS[name] + " ")) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<|im_end|>' + '\n'", "<|im_end|>'"),
        ("assistant\n' }}", "assistant\n<think>\n' }}"),
        ("message['content']", "message['content'] | trim"),
        ("message['role']", "message['role'] | upper"),
        ("{% for", "{{ raise_exception('no') if messages[0]['role'] == 'system' }}{% for"),
        ("{% for", "{{ bos_token }}{{ bos_token }}{% for"),
        ("{% for", "{{ raise_exception('no') }}{% for"),
    ],
)
def test_an_altered_template_gets_none(old, new):
    assert old in CHATML
    assert chosen(CHATML) == "chatml"
    assert chosen(CHATML.replace(old, new)) is None


def test_why_there_is_none():
    wanted = {key: ollama.render("chatml", conversation) for key, conversation in CONVERSATIONS.items()}
    wanted["code"] = wanted["empty turns"] = None
    assert ollama.choose(CONVERSATIONS, wanted) == (
        None,
        f"none that is known here writes all {len(CONVERSATIONS)} conversations as the model's chat template does; "
        "the nearest, chatml, writes 2 otherwise: code, empty turns",
    )
