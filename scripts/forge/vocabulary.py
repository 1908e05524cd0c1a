"""What llama.cpp makes of a GGUF file's vocabulary, against the tokenizer that training uses."""

from forge import chat, llama
from forge.errors import ForgeError

# Conversations whose rendering or splitting goes wrong first.
CONVERSATIONS = (
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Caf\u00e9 \U0001f600 12345 \u4f60\u597d?"},
    ],
    [
        {"role": "user", "content": "def f(x):\n    return x  # tab\there"},
        {"role": "assistant", "content": "  Fine.  "},
        {"role": "user", "content": "And now?\n\n"},
    ],
)


def check_tokens(model, tokenizer) -> dict:
    """A gate's check: rendered conversations give the same token ids in both. `model`: of llama.load."""
    wrong = []
    for conversation in CONVERSATIONS:
        try:
            text = chat.render(tokenizer, conversation, generation_prompt=True)
        except ForgeError:
            continue  # a template without system role, say: it refuses in training too
        theirs = model.tokenize(text.encode("utf-8"), add_bos=False, special=True)
        if theirs != tokenizer(text, add_special_tokens=False)["input_ids"]:
            wrong.append(text[:40])
    return {
        "name": "conversations that are split into other tokens",
        "value": len(wrong),
        "limit": "0",
        "n": len(CONVERSATIONS),
        "passed": not wrong,
    }


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
