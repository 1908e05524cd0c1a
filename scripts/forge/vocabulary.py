"""What llama.cpp and Ollama make of a GGUF file's vocabulary and template, against the tokenizer that training uses."""

import contextlib

from forge import chat
from forge.conversations import CONVERSATIONS, RARE, TEXTS
from forge.errors import ForgeError
from forge.llamacpp import llama
from forge.templates import ollama

Asked = dict[str, list[dict]]


def checks(model, tokenizer, keys: int | None = None, own: Asked | None = None) -> list[dict]:
    """A gate's checks of a loaded file (of llama.load). `keys`: see check_metadata. `own`: the project's
    conversations, compared like the ones that are there for all."""
    asked = CONVERSATIONS | (own or {})
    wanted = written(tokenizer, asked)
    return [
        check_metadata(model, tokenizer, keys),
        check_prompts(model, asked, wanted),
        check_tokens(model, tokenizer, wanted),
        *check_texts(model, tokenizer),
    ]


def written(tokenizer, asked: Asked) -> dict[str, str | None]:
    """Each conversation as training writes it, the answer asked for; None where the template refuses it."""
    found: dict[str, str | None] = dict.fromkeys(asked)
    for name, turns in asked.items():
        with contextlib.suppress(ForgeError):  # a template without system role, say: it refuses in training, too
            found[name] = chat.render(tokenizer, turns, generation_prompt=True)
    return found


def check_prompts(model, asked: Asked, wanted: dict[str, str | None]) -> dict:
    """The file's own template writes every conversation to the byte as training does, and refuses the same ones."""
    write, differing = llama.prompt_writer(model), []
    for name, turns in asked.items():
        found = None
        with contextlib.suppress(Exception):  # as in chat.render
            found = write(turns)
        if found != wanted[name]:
            differing.append(name)
    refused = [name for name, text in wanted.items() if text is None and name not in differing]
    note = f"; {len(refused)} refused by both: {', '.join(refused)}" if refused else ""
    found = _check("conversations that the file's template writes otherwise", differing, len(asked) - len(refused))
    return {**found, "value": found["value"] + note, "refused": refused}


def check_tokens(model, tokenizer, wanted: dict[str, str | None]) -> dict:
    """Written conversations give the same token ids in both: as llama-cpp-python takes them, and as llama-server and
    Ollama do, where llama.cpp puts the start token in front. None begins with two start tokens."""
    start, differing = llama.start_token(model)[0], []
    told = {name: text for name, text in wanted.items() if text is not None}
    for name, text in told.items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        plain = model.tokenize(text.encode("utf-8"), add_bos=False, special=True)
        sent = model.tokenize(served(model, text).encode("utf-8"), add_bos=True, special=True)
        if not ids == plain == sent or sent[:2] == [start, start]:
            differing.append(name)
    return _check("conversations that are split into other tokens", differing, len(told))


def check_texts(model, tokenizer) -> list[dict]:
    """Hard texts give the same token ids in both, each behind the end token, as a turn's text stands in a prompt. What
    llama.cpp is known to split otherwise is counted and named, and has no limit."""
    end = tokenizer.convert_ids_to_tokens(chat.end_token(tokenizer))

    def differs(text: str) -> bool:
        ids = tokenizer(end + text, add_special_tokens=False)["input_ids"]
        return model.tokenize((end + text).encode("utf-8"), add_bos=False, special=True) != ids

    hard = [repr(text) for text in TEXTS if differs(text)]
    rare = [name for name, text in RARE.items() if differs(text)]
    return [
        _check("hard texts that are split into other tokens", hard, len(TEXTS)),
        _check("rare texts that are split into other tokens", rare, len(RARE)) | {"limit": "any", "passed": True},
    ]


def _check(name: str, differing: list[str], count: int) -> dict:
    value = ", ".join(differing) or "none"
    return {"name": name, "value": value, "limit": "none", "n": count, "passed": count > 0 and not differing}


def served(model, text: str) -> str:
    """What a server gives llama.cpp of a prompt: without the start token where llama.cpp puts it there itself."""
    _, start, adds = llama.start_token(model)
    return text.removeprefix(start) if adds else text


def template(model, tokenizer, own: Asked | None = None) -> dict:
    """The TEMPLATE that makes Ollama write every conversation as training does: `name`, `text` and `conversations`
    (how many were equal); `name` None and `reason` where no TEMPLATE that is known does."""
    asked = CONVERSATIONS | (own or {})
    wanted = {name: text and served(model, text) for name, text in written(tokenizer, asked).items()}
    name, reason = ollama.choose(asked, wanted)
    if name is None:
        return {"name": None, "reason": reason}
    return {"name": name, "text": ollama.text(name), "conversations": len(asked)}


def check_metadata(model, tokenizer, keys: int | None = None) -> dict:
    """A gate's check: the template is the same to the byte, the vocabulary as long as the tokenizer's or padded, and
    llama.cpp ends an answer where the template does. `keys`: how many the file has, where somebody counted."""
    found = {
        "chat template": llama.chat_template(model) != tokenizer.chat_template,
        "vocabulary": model.n_vocab() < len(tokenizer),
        "end token": not llama.ends(model, chat.end_token(tokenizer)),
    }
    problems = [name for name, differs in found.items() if differs]
    return {
        "name": "metadata that differs from the model's",
        "value": ", ".join(problems) or "none",
        "limit": "none",
        "n": keys,
        "passed": not problems,
    }
