"""Answers to a conversation, as they come: by the finished GGUF, and by the base beside it."""

from collections.abc import Callable

from forge import models
from forge.errors import ForgeError
from forge.graph import Layout
from forge.llamacpp import llama
from forge.serving.finished import Finished

Turns = list[dict[str, str]]
Write = Callable[[str], None]
Answer = Callable[[Turns, Write], str]  # writes an answer's pieces and returns it whole


class TooLong(Exception):
    """A conversation that does not fit the context."""


def by_gguf(finished: Finished, limit: int) -> Answer:
    """Answers through llama.cpp, by the chat template inside the file. `limit` in tokens."""
    model = llama.load(finished.path, context=finished.parameters["num_ctx"])

    def answer(turns: Turns, write: Write) -> str:
        said = ""
        try:
            for part in model.create_chat_completion(turns, max_tokens=limit, stream=True, **finished.sampling):
                piece = part["choices"][0]["delta"].get("content") or ""
                said += piece
                write(piece)
        except ValueError as error:
            if "exceed context window" in str(error):
                raise TooLong from None
            raise ForgeError(
                f"the model's chat template refuses this conversation: {error}", "begin a new one"
            ) from None
        return said

    return answer


def by_base(layout: Layout, finished: Finished, limit: int) -> Answer:
    """Answers of the base model as it was before training, in 16 or 32 bits by transformers, each in one piece."""
    from forge import compare

    if not layout.base.is_dir():
        raise ForgeError(f"{layout.base} is not there, so the base cannot answer", "run make model")
    models.prepare(repeats=True)
    tokenizer = models.tokenizer(layout.base)
    model = models.causal_lm(layout.base, models.compute_dtype("auto"))
    wanted = finished.sampling
    choice = {"repetition_penalty": wanted["repeat_penalty"], "do_sample": wanted["temperature"] > 0}
    if choice["do_sample"]:
        choice |= {"temperature": wanted["temperature"], "top_p": wanted["top_p"]}

    def answer(turns: Turns, write: Write) -> str:
        [found] = compare.answers(model, tokenizer, [turns], limit, choice)
        write(found["answer"])
        return found["answer"]

    return answer


def shorten(turns: Turns) -> bool:
    """Take the oldest question and answer out; False where nothing but the last question is left."""
    first = next(index for index, turn in enumerate(turns) if turn["role"] == "user")
    if first + 1 >= len(turns):
        return False
    del turns[first : first + 2]
    return True
