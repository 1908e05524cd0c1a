"""Chat rows to tokens: the loss is on what the assistant says and on the token that ends it, nowhere else."""

import copy

import pytest
from conftest import CHATML
from forge import chat
from forge.errors import ForgeError

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Good day \U0001f41d.\n\nMore."}]
SECOND = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "assistant: <b>no</b>"}]

# Each template is another model family's habit, cut down.
CHANGES_WITH_THE_NEXT_TURN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if not loop.last and m['role'] == 'assistant' %}[earlier] {% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_GENERATION_PROMPT = CHATML.partition("{% if add_generation_prompt %}")[0]
OTHER_GENERATION_PROMPT = CHATML.replace("<|im_start|>assistant\n' }}", "<|im_start|>assistant\n<think>' }}")
NO_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SYSTEM_IN_THE_LAST_QUESTION = (  # Mistral's: without the last turn being the user's, the system prompt is lost
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + ' ' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}[{{ first if loop.last else '' }}{{ m['content'] }}]"
    "{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
END_WITHOUT_NEWLINE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

PHI = (  # Phi-3.5's: its control tokens swallow the newline after them, and the end of all has a token of its own
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)


@pytest.fixture
def templated(tiny_tokenizer):
    """`templated(text)`: the tokenizer with another chat template."""

    def change(template: str | None):
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.chat_template = template
        return tokenizer

    return change


def carrying(tokenizer, row: dict) -> list[str]:
    """The stretches of text that carry loss."""
    stretches: list[list[int]] = []
    inside = False
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        if label != chat.IGNORED:
            assert label == token
            stretches = stretches if inside else [*stretches, []]
            stretches[-1].append(token)
        inside = label != chat.IGNORED
    return [tokenizer.decode(stretch) for stretch in stretches]


# -- what carries loss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [[], [SYSTEM]], ids=["plain", "with a system prompt"])
def test_the_answer_and_its_end_token_carry_loss(tiny_tokenizer, system):
    row = chat.encode(tiny_tokenizer, [*system, *FIRST])
    assert carrying(tiny_tokenizer, row) == ["Good day \U0001f41d.\n\nMore.<|im_end|>"]


def test_every_answer_of_a_longer_conversation_carries_loss(tiny_tokenizer):
    row = chat.encode(tiny_tokenizer, [SYSTEM, *FIRST, *SECOND])
    assert carrying(tiny_tokenizer, row) == [
        "Good day \U0001f41d.\n\nMore.<|im_end|>",
        "assistant: <b>no</b><|im_end|>",
    ]


def test_a_template_without_a_newline_after_the_end(templated):
    tokenizer = templated(END_WITHOUT_NEWLINE)
    row = chat.encode(tokenizer, [SYSTEM, *FIRST, *SECOND])
    assert carrying(tokenizer, row) == [
        "Good day \U0001f41d.\n\nMore.<|im_end|>",
        "assistant: <b>no</b><|im_end|>",
    ]


def test_what_a_template_does_not_ask_for_the_model_has_to_say(templated):
    """Without a generation prompt the model is to write the turn's head itself: that is trained, too."""
    tokenizer = templated(NO_GENERATION_PROMPT)
    row = chat.encode(tokenizer, FIRST)
    assert carrying(tokenizer, row) == ["<|im_start|>assistant\nGood day \U0001f41d.\n\nMore.<|im_end|>"]
    asked = chat.prompt_ids(tokenizer, FIRST[:1])
    assert row["input_ids"][: len(asked)] == asked


def test_the_tokens_are_those_of_the_whole_text(tiny_tokenizer):
    row = chat.encode(tiny_tokenizer, [SYSTEM, *FIRST])
    assert tiny_tokenizer.decode(row["input_ids"]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n"
        "<|im_start|>assistant\nGood day \U0001f41d.\n\nMore.<|im_end|>\n"
    )
    assert len(row["input_ids"]) == len(row["labels"])


def test_a_question_alone_carries_no_loss(tiny_tokenizer):
    row = chat.encode(tiny_tokenizer, [FIRST[0]])
    assert set(row["labels"]) == {chat.IGNORED}


def test_what_is_asked_is_a_prefix_of_what_is_trained(tiny_tokenizer):
    trained = chat.encode(tiny_tokenizer, [SYSTEM, *FIRST])
    asked = chat.prompt_ids(tiny_tokenizer, [SYSTEM, FIRST[0]])
    assert trained["input_ids"][: len(asked)] == asked
    first = next(index for index, label in enumerate(trained["labels"]) if label != chat.IGNORED)
    assert first == len(asked)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, *FIRST]},
        {"prompt": [SYSTEM, FIRST[0]], "completion": [FIRST[1]], "id": "x"},
    ],
)
def test_both_forms_of_a_row(row):
    assert chat.messages_of(row) == [SYSTEM, *FIRST]


def test_no_system_turn_without_a_system_prompt():
    assert chat.conversation("", "Why?") == [{"role": "user", "content": "Why?"}]
    assert chat.conversation("Be brief.", "Why?") == [SYSTEM, {"role": "user", "content": "Why?"}]


# -- the end -------------------------------------------------------------------------------------------------


def test_the_end_token_is_the_templates(tiny_tokenizer, templated):
    assert tiny_tokenizer.convert_ids_to_tokens(chat.end_token(tiny_tokenizer)) == "<|im_end|>"
    other = templated(CHATML.replace("<|im_end|>", "<|endoftext|>"))
    assert other.convert_ids_to_tokens(chat.end_token(other)) == "<|endoftext|>"
    assert chat.stop_ids(other, None) == sorted(other.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))


@pytest.mark.parametrize(("listed", "more"), [(None, []), (7, [7]), ([8, 7], [7, 8])])
def test_every_stop_of_the_model_counts(tiny_tokenizer, listed, more):
    from transformers import GenerationConfig

    found = chat.stop_ids(tiny_tokenizer, GenerationConfig(eos_token_id=listed))
    assert found == [*more, tiny_tokenizer.eos_token_id]


@pytest.fixture
def phi(templated):
    from transformers import AddedToken

    tokenizer = templated(PHI)
    names = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    tokenizer.add_tokens([AddedToken(name, rstrip=True) for name in names], special_tokens=True)
    return tokenizer


def test_an_end_token_that_swallows_the_newline_carries_loss(phi):
    row = chat.encode(phi, [SYSTEM, *FIRST])
    assert phi.convert_ids_to_tokens(row["input_ids"])[-2:] == ["<|end|>", "<|im_end|>"], "no newline between them"
    assert carrying(phi, row) == ["Good day \U0001f41d.\n\nMore.<|end|><|im_end|>"]
    asked = chat.prompt_ids(phi, [SYSTEM, FIRST[0]])
    assert row["input_ids"][: len(asked)] == asked


def test_of_two_tokens_at_the_end_the_first_ends_the_answer(phi):
    assert phi.convert_ids_to_tokens(chat.end_token(phi)) == "<|end|>"


def test_the_end_of_all_is_no_part_of_an_earlier_answer(phi):
    row = chat.encode(phi, [SYSTEM, *FIRST, *SECOND])
    assert carrying(phi, row) == [
        "Good day \U0001f41d.\n\nMore.<|end|>",
        "assistant: <b>no</b><|end|><|im_end|>",
    ]


# -- templates that are refused -------------------------------------------------------------------------------


def refused(work) -> ForgeError:
    with pytest.raises(ForgeError) as caught:
        work()
    assert caught.value.code == 2
    return caught.value


def test_a_system_prompt_that_a_template_forgets_is_trained_all_the_same(templated):
    tokenizer = templated(SYSTEM_IN_THE_LAST_QUESTION)
    row = chat.encode(tokenizer, [SYSTEM, *FIRST])
    asked = chat.prompt_ids(tokenizer, [SYSTEM, FIRST[0]])
    assert tokenizer.decode(asked) == "[Be brief. Hi.]"
    assert row["input_ids"][: len(asked)] == asked
    assert carrying(tokenizer, row) == [" Good day \U0001f41d.\n\nMore.<|im_end|>"]
    refused(lambda: chat.encode(tokenizer, [SYSTEM, *FIRST, *SECOND]))


@pytest.mark.parametrize("template", [CHANGES_WITH_THE_NEXT_TURN, OTHER_GENERATION_PROMPT])
def test_a_template_whose_beginning_changes_is_refused(templated, template):
    error = refused(lambda: chat.encode(templated(template), [*FIRST, *SECOND]))
    assert error.cause == (
        "the chat template renders a turn differently when another follows, so its tokens cannot be told apart"
    )
    assert error.remedy == "use rows with one assistant turn, or name another template in model.chat_template"


def test_such_a_template_does_for_rows_of_one_answer(templated):
    tokenizer = templated(CHANGES_WITH_THE_NEXT_TURN)
    assert carrying(tokenizer, chat.encode(tokenizer, FIRST)) == ["Good day \U0001f41d.\n\nMore.<|im_end|>"]


def test_a_template_without_an_end_token_is_refused(templated):
    error = refused(lambda: chat.end_token(templated(NO_END)))
    assert error.cause == "the chat template writes no end token after an answer: the model would never stop"
    assert error.remedy == "name another template in model.chat_template"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "tokenizer.chat_template is not set"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ messages[0].content.nothing() }}", "has no attribute 'nothing'"),
    ],
)
def test_a_template_that_does_not_render_is_refused(templated, template, reason):
    error = refused(lambda: chat.render(templated(template), [SYSTEM, *FIRST]))
    assert error.cause.startswith("the chat template cannot render a conversation: ")
    assert reason in error.cause
    assert error.remedy == "name another base, or a template for it in model.chat_template"


def test_a_template_without_a_system_turn_says_what_helps(templated):
    error = refused(lambda: chat.render(templated(NO_SYSTEM), [SYSTEM, *FIRST]))
    assert error.cause == "the chat template cannot render a conversation: System role not supported"
    assert error.remedy == (
        'set project.system_prompt to "" (rows must have no system turn either), or name another base'
    )


def test_a_template_cannot_reach_the_machine(templated):
    """Templates come with the model: jinja's sandbox keeps them from running anything."""
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    error = refused(lambda: chat.render(templated(template), FIRST))
    assert "unsafe" in error.cause


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(9999) %}{{ 'a' * 9999999 }}{% endfor %}",
    ],
    ids=["time", "memory"],
)
def test_a_template_without_an_end_is_stopped(templated, template):
    error = refused(lambda: chat.require_bounded(templated(template)))
    assert error.cause == "the chat template takes more than 4 s or 1 GB for a few words"


@pytest.mark.parametrize("template", [CHATML, "{{ raise_exception('no') }}"])
def test_other_templates_are_within_bounds(templated, template):
    chat.require_bounded(templated(template))


def test_of_a_prompt_and_its_completion_the_last_answer_alone_is_trained(tiny_tokenizer):
    row = {"prompt": [SYSTEM, *FIRST, SECOND[0]], "completion": [SECOND[1]]}
    whole = chat.encode(tiny_tokenizer, [SYSTEM, *FIRST, *SECOND])
    encoded = chat.encode_row(tiny_tokenizer, row)
    assert encoded["input_ids"] == whole["input_ids"]
    assert carrying(tiny_tokenizer, encoded) == [carrying(tiny_tokenizer, whole)[-1]]
    assert chat.encode_row(tiny_tokenizer, {"messages": [SYSTEM, *FIRST, *SECOND]}) == whole


def test_many_turns_with_a_template_that_moves_the_system_prompt(templated):
    tokenizer = templated(SYSTEM_IN_THE_LAST_QUESTION)
    prompt = [SYSTEM, *FIRST, SECOND[0]]
    encoded = chat.encode_row(tokenizer, {"prompt": prompt, "completion": [SECOND[1]]})
    asked = chat.prompt_ids(tokenizer, prompt)
    assert SYSTEM["content"] in tokenizer.decode(asked)
    assert encoded["input_ids"][: len(asked)] == asked
    [answer] = carrying(tokenizer, encoded)
    assert answer.strip() == SECOND[1]["content"] + "<|im_end|>"
