"""Chat rows to tokens: rendered by the model's own template, with the loss on what the assistant says.

A row holds `messages`, or `prompt` and `completion` (lists of role and content). The tokens that carry loss
are found by exact prefixes: the text that the template gives up to an assistant's turn is a prefix of the
text that includes it; what lies between is the turn, its end token included. So any template works that
renders a conversation's beginning the same whatever follows; one that does not is refused by name.
"""

import functools

from forge.errors import ForgeError

IGNORED = -100  # torch's cross entropy leaves this label out


def messages_of(row: dict) -> list[dict]:
    return row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]


def render(tokenizer, messages: list[dict], generation_prompt: bool = False) -> str:
    """Text of a conversation by the tokenizer's chat template. Raises ForgeError (2) when it cannot."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    except Exception as error:  # jinja2 raises many kinds; a template may raise its own by raise_exception
        raise ForgeError(
            f"the chat template cannot render a conversation: {error}",
            "name another base, or a template for it in model.chat_template",
        ) from None


def encode(tokenizer, messages: list[dict]) -> dict[str, list[int]]:
    """`input_ids` and `labels` (both of the row's length) of a conversation.

    Labels are the token ids inside the assistant's turns and IGNORED elsewhere.
    """
    whole = render(tokenizer, messages)
    spans = [_span(tokenizer, messages, index, whole) for index in _assistant_turns(messages)]
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    labels = [
        token if any(begin <= start and end <= stop for begin, stop in spans) and end > start else IGNORED
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    return {"input_ids": encoded["input_ids"], "labels": labels}


def _assistant_turns(messages: list[dict]) -> list[int]:
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def _span(tokenizer, messages: list[dict], index: int, whole: str) -> tuple[int, int]:
    before = render(tokenizer, messages[:index], generation_prompt=True)
    upto = render(tokenizer, messages[: index + 1])
    if not (upto.startswith(before) and whole.startswith(upto)):
        raise ForgeError(
            "the chat template renders a turn differently when another follows, so its tokens cannot be told apart",
            "use rows with one assistant turn, or name another template in model.chat_template",
        )
    return len(before), len(upto.rstrip())  # what stands after the end token is never generated


def prompt_ids(tokenizer, messages: list[dict]) -> list[int]:
    """Token ids that a model is given to answer a conversation."""
    return tokenizer(render(tokenizer, messages, generation_prompt=True), add_special_tokens=False)["input_ids"]


def conversation(system_prompt: str, question: str) -> list[dict]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": question}]


@functools.cache
def end_token(tokenizer) -> int:
    """Id of the token that ends an assistant's turn in the rendered template.

    Raises ForgeError (2) when the template writes none: such a model would never stop.
    """
    row = encode(tokenizer, [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}])
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    for token in reversed([label for label in row["labels"] if label != IGNORED]):
        if token in special:
            return token
    raise ForgeError(
        "the chat template writes no end token after an answer: the model would never stop",
        "name another template in model.chat_template",
    )


def stop_ids(tokenizer, generation_config) -> list[int]:
    """Every id that ends an answer: the template's, the tokenizer's and the model's own list."""
    ids = {end_token(tokenizer), tokenizer.eos_token_id}
    listed = getattr(generation_config, "eos_token_id", None)
    ids.update(listed if isinstance(listed, list) else [listed])
    return sorted(token for token in ids if token is not None)
