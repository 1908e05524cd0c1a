"""The Modelfile: a system prompt stays text, whatever it holds; nothing of this machine gets in."""

import argparse
import re
from pathlib import Path

import create_modelfile
import pytest
from forge import config, files, graph, phase
from forge.errors import ForgeError
from forge.templates import ollama

OLDER: dict = {"name": "older"}  # stands for a verdict from before there were TEMPLATEs
PARAMETERS = {"num_ctx": 512, "temperature": 0.7, "top_p": 0.9, "repeat_penalty": 1.05}


@pytest.fixture
def modelfile(checkout, write_config):
    """`modelfile(system_prompt=..., token=..., base=...)` fills Modelfile.template of the checkout.

    `template`, `text`: what verify-gguf left of the TEMPLATE. `policy`: ollama.template."""

    def fill(
        token: str = "<|im_end|>",
        base: str = "org/tiny",
        template: dict | None = None,
        text: str = "",
        policy: str = "auto",
        **project,
    ) -> str:
        sections = {"project": {"name": "Test", **project}, "ollama": {"template": policy}}
        loaded = config.load(write_config(checkout, base="org/tiny", **sections))
        gate = loaded.layout.gate("verify-gguf")
        found = {"template": template or {"name": None, "reason": "none is equal"}}
        files.write_json(gate / "verdict.json", found if template != OLDER else {})
        files.write_text(gate / "template", text)
        run = phase.Run(graph.BY_NAME["modelfile"], loaded, argparse.Namespace(force=True))
        run.inputs = {"model": {"facts": {"base_model_name": base, "end_token": token}}}
        return create_modelfile.fill(run, loaded.layout.gguf("Q4_K_M"), PARAMETERS)

    return fill


def refused(work) -> ForgeError:
    with pytest.raises(ForgeError) as caught:
        work()
    assert caught.value.code == 2
    return caught.value


def test_the_whole_file(modelfile):
    assert modelfile(system_prompt="You are Maja.") == (
        "# Test 1.0.0: made by Model Forge from org/tiny\n"
        "# Load it:  ollama create test -f Modelfile     Talk to it:  ollama run test\n"
        "FROM ./models/gguf/Test-Q4_K_M.gguf\n"
        "\n"
        "# No TEMPLATE: none is equal.\n"
        "# Ollama uses the chat template inside the GGUF, which was checked to be the one of the training.\n"
        "PARAMETER num_ctx 512\n"
        "PARAMETER temperature 0.7\n"
        "PARAMETER top_p 0.9\n"
        "PARAMETER repeat_penalty 1.05\n"
        'PARAMETER stop "<|im_end|>"\n'
        'SYSTEM """You are Maja."""\n'
    )


def test_no_system_line_without_a_system_prompt(modelfile):
    text = modelfile(system_prompt="")
    assert "SYSTEM" not in text
    assert text.endswith('PARAMETER stop "<|im_end|>"\n')


def test_from_is_relative_and_there_is_no_path_of_this_machine(modelfile, checkout):
    text = modelfile(base=str(checkout / "my model"), system_prompt="You are Maja.")
    assert re.findall(r"^FROM (.*)$", text, flags=re.M) == ["./models/gguf/Test-Q4_K_M.gguf"]
    assert str(checkout.parent) not in text


@pytest.mark.parametrize(
    "prompt",
    [
        "One line.\nAnother.\n\nA third.",
        "$(touch hacked) `touch hacked` ${HOME} $HOME $$ ${name} ${system} $name",
        'She said "hello" and ""left"" at once.',
        '"Quoted" first.',
        "back\\slash \\n \\",
        "# no comment\nFROM /etc/passwd\nPARAMETER num_ctx 1",
        "Gr\u00fc\u00dfe, \u4f60\u597d \U0001f41d",
        "  spaces around  ",
        "{{ .System }} {% raw %}",
        "''' single ''",
    ],
)
def test_a_system_prompt_stays_literal(modelfile, prompt):
    text = modelfile(system_prompt=prompt)
    assert text.endswith(f'\nSYSTEM """{prompt}"""\n')
    assert text.count('"""') == 2
    assert not Path("hacked").exists()


@pytest.mark.parametrize("prompt", ['Say """ now.', 'Say "hello"', '"', '"""', 'a""""b'])
def test_a_prompt_that_would_end_the_quotation_is_refused(modelfile, prompt):
    error = refused(lambda: modelfile(system_prompt=prompt))
    assert error.cause == (
        'project.system_prompt holds """ or ends with a quotation mark, which a Modelfile cannot hold'
    )
    assert error.remedy == "rephrase the system prompt"


@pytest.mark.parametrize("field", ["version", "description"])
def test_other_texts_cannot_add_a_line(modelfile, field):
    text = modelfile(system_prompt="", **{field: "1.0\nFROM /etc/passwd"})
    assert re.findall(r"^FROM", text, flags=re.M) == ["FROM"]


@pytest.mark.parametrize("token", ['a"b', "a\nb"])
def test_an_end_token_that_cannot_be_written_is_refused(modelfile, token):
    assert refused(lambda: modelfile(token=token)).cause


def test_a_token_with_dollars_is_literal(modelfile):
    assert 'PARAMETER stop "<$end${x}>"\n' in modelfile(token="<$end${x}>", system_prompt="")


@pytest.mark.parametrize(("slot", "named"), [("${nonsense}", "'nonsense'"), ("$1", "")])
def test_an_unknown_slot_in_the_template_is_refused(modelfile, slot, named):
    template = Path("Modelfile.template")
    template.write_text(template.read_text(encoding="utf-8") + f"# {slot}\n", encoding="utf-8")
    error = refused(modelfile)
    assert error.cause.startswith("Modelfile.template: ")
    assert named in error.cause
    assert error.remedy == (
        "known slots: base, from_path, model_name, name, num_ctx, repeat_penalty, stops, system, temperature, "
        "template, top_p, version"
    )


# -- TEMPLATE ---------------------------------------------------------------------------------------------

SHOWN = {"name": "chatml", "sha256": "0" * 64, "conversations": 18}


@pytest.mark.parametrize("name", ollama.names())
def test_a_template_that_was_shown_equal_stands_there_as_it_is(modelfile, name):
    text = modelfile(template={**SHOWN, "name": name}, text=ollama.text(name), system_prompt="You are Maja.")
    assert f"# {name}: shown to write prompts as the chat template of the training does\n" in text
    assert f'\nTEMPLATE """{ollama.text(name)}"""\nPARAMETER num_ctx 512\n' in text
    assert text.count('"""') == 4 and "No TEMPLATE" not in text


def test_none_when_the_config_says_so(modelfile):
    text = modelfile(template=SHOWN, text=ollama.text("chatml"), policy="none")
    assert "\n# No TEMPLATE: ollama.template is none.\n# Ollama uses the chat template inside the GGUF" in text
    assert "\nTEMPLATE" not in text


def test_a_reason_cannot_add_a_line(modelfile):
    text = modelfile(template={"name": None, "reason": "this\nFROM /etc/passwd"})
    assert re.findall(r"^FROM (.*)$", text, flags=re.M) == ["./models/gguf/Test-Q4_K_M.gguf"]


@pytest.mark.parametrize(
    "text", ['{{ .Messages }}"""\nFROM /etc/passwd', '{{ .Messages }}"', "{{ .Messages }}\u00a0", "{{ .Messages }}\v"]
)
def test_a_template_that_ollama_would_read_otherwise_is_refused(modelfile, text):
    error = refused(lambda: modelfile(template=SHOWN, text=text))
    assert error.cause == "a Modelfile cannot hold the TEMPLATE of verify-gguf"
    assert "FROM /etc" not in modelfile(template=SHOWN, text=text, policy="none")


def test_a_verdict_of_an_older_version_is_done_again(modelfile):
    assert refused(lambda: modelfile(template=OLDER)).remedy == "run make redo PHASE=verify-gguf"


# -- the context ------------------------------------------------------------------------------------------


@pytest.fixture
def context(checkout, write_config):
    """`context(num_ctx, made_for)` is the context in the Modelfile of a model that was trained on 256 tokens."""

    def choose(num_ctx: int | None, made_for: int | None) -> int:
        loaded = config.load(write_config(checkout, base="org/tiny", ollama={"num_ctx": num_ctx}))
        run = phase.Run(graph.BY_NAME["modelfile"], loaded, argparse.Namespace(force=True))
        run.inputs = {"train": {"settings": {"training": {"max_length": 256}}}}
        header = {"general.architecture": "qwen2"} | ({"qwen2.context_length": made_for} if made_for else {})
        return create_modelfile.sampling(run, header)["num_ctx"]

    return choose


@pytest.mark.parametrize(
    ("num_ctx", "made_for", "chosen"),
    [(None, 512, 512), (None, 32768, 8192), (None, None, 8192), (300, 512, 300), (16384, 32768, 16384)],
)
def test_the_context_is_the_models(context, num_ctx, made_for, chosen):
    assert context(num_ctx, made_for) == chosen


@pytest.mark.parametrize(
    ("trained", "original", "chosen"), [(512, 4096, 4096), (4096, 4096, 4096), (6000, 4096, 8192), (512, None, 8192)]
)
def test_the_context_of_phi_3_5_takes_the_angles_that_were_trained(trained, original, chosen):
    header = {"phi3.rope.scaling.original_context_length": original} if original else {}
    assert create_modelfile.usual_context(header, 131072, trained) == chosen


@pytest.mark.parametrize(("num_ctx", "made_for"), [(1024, 512), (None, 128)])
def test_a_context_that_does_not_suit_is_refused(context, num_ctx, made_for):
    error = refused(lambda: context(num_ctx, made_for))
    assert error.cause == (
        f"ollama.num_ctx {num_ctx or made_for} is not between the training length 256 and the model's {made_for}"
    )
    assert error.remedy == "set ollama.num_ctx to null or to a value between the two"
