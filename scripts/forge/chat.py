"""Chat rows to tokens: rendered by the model's own template, with the loss on what the assistant says.

A row holds `messages`, or `prompt` and `completion` (lists of role and content): then the completion alone carries
loss, as in trl, and earlier answers are context. The tokens that carry loss are found by exact prefixes: the text
that the template gives up to an assistant's turn is a prefix of the text that includes it; what lies between is the
turn, its end token included. So any template works that renders a conversation's beginning the same whatever
follows; one that does not is refused by name.
"""

import contextlib
import functools
import os
import resource
import signal

from forge.errors import ForgeError

IGNORED = -100  # torch's cross entropy leaves this label out
SECONDS, MEMORY = 4, 1 << 30  # of the processor and bytes: a template of a few hundred lines needs milliseconds


def messages_of(row: dict) -> list[dict]:
    return row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]


def render(tokenizer, messages: list[dict], generation_prompt: bool = False) -> str:
    """Text of a conversation by the tokenizer's chat template. Raises ForgeError (2) when it cannot."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    except Exception as error:  # jinja2 raises many kinds; a template may raise its own by raise_exception
        raise ForgeError(
            f"the chat template cannot render a conversation: {error}", _what_helps(tokenizer, messages)
        ) from None


def require_bounded(tokenizer) -> None:
    """Raises ForgeError (2) for a chat template that does not end, or fills the memory, over a few words.

    A template is a program that came with the model. jinja's sandbox keeps it from this machine's files, not from
    loops in loops; so it is first tried in a process that the kernel stops.
    """
    child = os.fork()
    if child == 0:
        code = 0  # what the trial itself cannot do blames no template
        with contextlib.suppress(Exception):
            try:
                _try_within_limits(tokenizer)
            except MemoryError:
                code = 1
        os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        raise ForgeError(
            f"the chat template takes more than {SECONDS} s or {MEMORY >> 30} GB for a few words",
            "name another base, or a template for it in model.chat_template",
        )


def _try_within_limits(tokenizer) -> None:
    """What a template refuses in words is found later, by its name; here only MemoryError gets out."""
    import psutil

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(15 * SECONDS)  # for what waits instead of computing
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))  # counts from the fork on
    most, hard = psutil.Process().memory_info().vms + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    turns = [{"role": role, "content": "Hello"} for role in ("system", "user", "assistant", "user")]
    for messages, prompted in ((turns, True), (turns[1:], True), (turns[1:2], True), (turns[1:3], False)):
        try:
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
        except MemoryError:
            raise
        except Exception:  # it may refuse such turns: here is only asked whether it ends, and in how much memory
            continue


def _what_helps(tokenizer, messages: list[dict]) -> str:
    """Gemma 2's template, for one, refuses a system turn and takes everything else."""
    with contextlib.suppress(Exception):
        if messages[0]["role"] == "system":
            tokenizer.apply_chat_template(messages[1:], tokenize=False)
            return 'set project.system_prompt to "" (rows must have no system turn either), or name another base'
    return "name another base, or a template for it in model.chat_template"


def encode_row(tokenizer, row: dict) -> dict[str, list[int]]:
    """`encode` of a row, with the loss where the row's form says."""
    return encode(tokenizer, messages_of(row), last_only="prompt" in row)


def encode(tokenizer, messages: list[dict], last_only: bool = False) -> dict[str, list[int]]:
    """`input_ids` and `labels` (both of the row's length) of a conversation.

    Labels are the token ids inside the assistant's turns (the last one, with `last_only`) and IGNORED elsewhere.
    """
    whole, spans = _last_turn(tokenizer, messages) if last_only else _turns(tokenizer, messages)
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    labels = [
        token if end > start and any(_within(whole, start, end, *span) for span in spans) else IGNORED
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    return {"input_ids": encoded["input_ids"], "labels": labels}


def _within(whole: str, start: int, end: int, begin: int, stop: int) -> bool:
    """Whether a token's text is the turn's, what it swallows aside: "<|end|>" of Phi-3 takes the line's end with it."""
    return begin <= start < stop and (end <= stop or whole[stop:end].isspace())


def _turns(tokenizer, messages: list[dict]) -> tuple[str, list[tuple[int, int]]]:
    """Text of a conversation, and from where to where each of the assistant's turns reaches in it."""
    if len(_assistant_turns(messages)) == 1 and messages[-1]["role"] == "assistant":
        return _last_turn(tokenizer, messages)
    whole = render(tokenizer, messages)
    return whole, [_span(tokenizer, messages, index, whole) for index in _assistant_turns(messages)]


def _last_turn(tokenizer, messages: list[dict]) -> tuple[str, list[tuple[int, int]]]:
    """Text of a conversation, and from where to where its last answer reaches in it.

    Mistral's templates write the system prompt into the last message if that is a user's, so it is gone once an
    answer follows. The row is then what the model will be asked, system prompt included, and the answer as it stands
    after the same question without what came before.
    """
    whole = render(tokenizer, messages)
    asked = render(tokenizer, messages[:-1], generation_prompt=True)
    if not whole.startswith(asked):
        answered = render(tokenizer, messages[-2:])
        question = render(tokenizer, messages[-2:-1], generation_prompt=True)
        if not answered.startswith(question):
            raise ForgeError(
                "the chat template renders a question differently when its answer follows",
                "name another template in model.chat_template",
            )
        whole = asked + answered[len(question) :]
    return whole, [(len(asked), len(whole.rstrip()))]


def _assistant_turns(messages: list[dict]) -> list[int]:
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def _span(tokenizer, messages: list[dict], index: int, whole: str) -> tuple[int, int]:
    before = render(tokenizer, messages[:index], generation_prompt=True)
    upto = render(tokenizer, messages[: index + 1])
    if not whole.startswith(upto):  # Phi-3.5's template closes every conversation with an end token of its own
        upto = upto.removesuffix(tokenizer.eos_token or "")
    if not (upto.startswith(before) and whole.startswith(upto)):
        raise ForgeError(
            "the chat template renders a turn differently when another follows, so its tokens cannot be told apart",
            "use rows with one assistant turn, or name another template in model.chat_template",
        )
    return len(before), len(upto.rstrip())  # what stands after the end token is never generated


def asked(turns: list[dict] | str) -> str:
    """What the person says in a conversation."""
    if isinstance(turns, str):
        return turns
    return "\n".join(turn["content"] for turn in turns if turn["role"] == "user")


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
    found = None
    for token in reversed([label for label in row["labels"] if label != IGNORED]):
        if token in special:
            found = token  # of several ("<|end|>\n<|endoftext|>" in Phi-3.5) the first: there the model stops
        elif tokenizer.decode([token]).strip():
            break
    if found is not None:
        return found
    raise ForgeError(
        "the chat template writes no end token after an answer: the model would never stop",
        "name another template in model.chat_template",
    )


def control_tokens(tokenizer) -> list[str]:
    """Texts that the tokenizer takes for something else than their letters: special tokens, and added ones that
    the chat template writes. Other added tokens (runs of spaces, HTML tags) are text like any other."""
    template = str(tokenizer.chat_template or "")
    found = set(tokenizer.all_special_tokens)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or (len(token.content.strip()) > 1 and token.content in template):
            found.add(token.content)
    return sorted(text for text in found if len(text.strip()) > 1)  # one letter (a "!" for padding) cannot be broken


def stop_ids(tokenizer, generation_config) -> list[int]:
    """Every id that ends an answer: the template's, the tokenizer's and the model's own list."""
    ids = {end_token(tokenizer), tokenizer.eos_token_id}
    listed = getattr(generation_config, "eos_token_id", None)
    ids.update(listed if isinstance(listed, list) else [listed])
    return sorted(token for token in ids if token is not None)
