"""What can be known before hours of training: that the result can be converted, loaded and served.

The gate validate asks for it before it reads a row. No weight is loaded: the base's tokenizer, the headers of its
files, and a GGUF file of the vocabulary alone, made by the converter that the finished model goes through and read by
the library that runs it.
"""

import re
import tempfile
from pathlib import Path

from forge import chat, models, vocabulary
from forge.errors import ENVIRONMENT, ForgeError, one_line
from forge.llamacpp import converter, llama

ANSWER = {"role": "assistant", "content": "Good day"}
# What the converter says last, and what helps. Llama.cpp knows a tokenizer by a hash of how it splits one text.
REMEDIES = (
    (
        "pre-tokenizer was not recognized",
        "take the base's tokenizer files as its makers published them, or another base; a newer llama.cpp may know it "
        "(LLAMA_CPP=)",
    ),
    ("is not supported", "choose a base whose architecture llama.cpp supports; a newer one may do (LLAMA_CPP=)"),
)
OTHER_REMEDY = "get the model again, or choose another base; a newer llama.cpp may do (LLAMA_CPP=)"


def examine(base: Path, tokenizer, system_prompt: str) -> tuple[list[dict], list[str]]:
    """Checks of a gate (see phase.Run.gate; a failed one with its own `remedy`), and what could not be checked, why.

    `system_prompt`: the project's, empty for none. The same base gives the same result, whatever the machine.
    """
    told, rows = rows_of(base)
    found = [
        *check_template(tokenizer, system_prompt),
        check_padding(tokenizer),
        *check_sizes(tokenizer, told, rows),
    ]
    missing = [] if rows else [f"rows of the embedding: no weight in {base} has a name known for it"]
    if all(item["passed"] for item in found):  # else the rest says the same again
        try:
            found += check_vocabulary(base, tokenizer, rows[0] if rows else told)
        except ForgeError as error:
            if error.code != ENVIRONMENT:
                raise
            missing.append(f"conversion to GGUF: {error.cause} ({error.remedy})")
    return found, missing


def check(name: str, value: object, limit: str, passed: bool, remedy: str, n: int | None = None) -> dict:
    found = {"name": name, "value": value, "limit": limit, "n": n, "passed": passed}
    return found if passed else {**found, "remedy": remedy}


# -- the chat template --------------------------------------------------------------------------------------------


def check_template(tokenizer, system_prompt: str) -> list[dict]:
    """The template writes a token after an answer, and into every kind of conversation all that was said."""
    remedy = "choose another base, or for one without a template of its own another in model.chat_template"
    try:
        end = chat.end_token(tokenizer)
        shown = tokenizer.convert_ids_to_tokens(end)
    except ForgeError as error:
        end, shown = None, error.cause
    question, second = {"role": "user", "content": "Hello"}, {"role": "user", "content": "And now?"}
    kinds = {"a question": [question], "several turns": [question, ANSWER, second]}
    if system_prompt:
        kinds["system prompt and question"] = chat.conversation(system_prompt, "Hello")
    wrong = {name: problem for name, turns in kinds.items() if (problem := rendered_wrongly(tokenizer, turns, end))}
    return [
        check("end token of the chat template", shown, "a special token", end is not None, remedy),
        check(
            "kinds of conversation that the chat template does not render",
            "; ".join(f"{name}: {problem}" for name, problem in wrong.items()) or "none",
            "none",
            not wrong,
            remedy,
            len(kinds),
        ),
    ]


def rendered_wrongly(tokenizer, turns: list[dict], end: int | None) -> str | None:
    """What is wrong with the prompt that asks for an answer, and with the answer as training sees it; None: nothing.

    `end`: id of the token that an answer must end with, None where there is none.
    """
    try:
        prompt = chat.render(tokenizer, turns, generation_prompt=True)
        lost = [turn["role"] for turn in turns if turn["content"].strip() not in prompt]
        if lost:
            return f"what {lost[0]} says is not in the text"
        labels = chat.encode(tokenizer, [*turns, ANSWER], last_only=True)["labels"]
    except ForgeError as error:
        return error.cause[:200]
    return "the end token carries no loss" if end is not None and end not in labels else None


def check_padding(tokenizer) -> dict:
    """Rows of a batch are made equally long with the padding token, or for want of one with the tokenizer's end token.

    Either may be the token that ends answers: which tokens carry loss goes with the row, by place, and padding gets
    none whatever its id (tests/test_preflight.py tries that with trl's collator).
    """
    token = tokenizer.pad_token or tokenizer.eos_token
    remedy = "choose a base whose tokenizer names a pad_token or an eos_token"
    return check("token to pad rows with", token or "none", "any", token is not None, remedy)


# -- tokens and rows ----------------------------------------------------------------------------------------------


def rows_of(base: Path) -> tuple[int, list[int]]:
    """Rows of the embedding as config.json tells them, and as the headers of the weights do: one number where all
    that have a row for each token agree, none where no name is known."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
    found = models.named(models.tensor_shapes(base), (*models.EMBEDDINGS, *models.OUTPUTS))
    return config.get_text_config().vocab_size, sorted({shape[0] for shape in found})


def check_sizes(tokenizer, told: int, rows: list[int]) -> list[dict]:
    """Config, weights and tokenizer agree on the number of tokens. `told`, `rows`: see rows_of."""
    remedy = "get the model again, or choose a base whose tokenizer belongs to it"
    largest = max(tokenizer.get_vocab().values())
    least = min([told, *rows])
    found = [check("largest token id", largest, f"< {least}", largest < least, remedy)]
    if rows:
        shown = ", ".join(map(str, rows))
        found.insert(0, check("rows of the embedding", shown, f"{told} as in config.json", rows == [told], remedy))
    return found


# -- llama.cpp ----------------------------------------------------------------------------------------------------


def check_vocabulary(base: Path, tokenizer, rows: int) -> list[dict]:
    """The base's vocabulary converted to GGUF and loaded: as many tokens as `rows`, text split as in training, the
    template and its end token as they are. Raises ForgeError (7) where there is no converter or no llama.cpp."""
    llama.source()
    llama.library()
    with tempfile.TemporaryDirectory(prefix="model-forge-") as folder:
        problem, model = vocabulary_of(base, Path(folder))
    done = check("vocabulary converted and loaded by llama.cpp", problem or "yes", "yes", not problem, advice(problem))
    if problem:
        return [done]
    try:
        tokens = model.n_vocab()
        again = "choose another base, or a newer llama.cpp (LLAMA_CPP=)"
        found = vocabulary.checks(model, tokenizer)
    finally:
        model.close()
    return [
        done,
        check("tokens of the GGUF", tokens, f"{rows} as in the embedding", tokens == rows, again),
        *(item if item["passed"] else {**item, "remedy": again} for item in found),
    ]


def vocabulary_of(base: Path, folder: Path) -> tuple[str | None, object]:
    """Why there is no GGUF of the vocabulary alone, in one line; else None and the loaded file.

    It is in memory when this returns: `folder` may go. Raises ForgeError (7) when the converter lacks a library.
    """
    out = folder / "vocabulary.gguf"
    readable = converter.for_converter(base, folder / "source")
    problem = converter.run_converter(readable, out, "bf16", converter.shown_name(base, "vocabulary"), ["--vocab-only"])
    if problem and re.match(r"(ModuleNotFound|Import)Error", problem):
        raise ForgeError(f"llama.cpp's converter does not run: {problem}", llama.SETUP, ENVIRONMENT)
    if problem is None:
        try:
            return None, llama.load(out, context=64, vocab_only=True)
        except Exception as error:  # llama-cpp-python also reads the template, and Jinja raises errors of its own
            problem = str(error) if isinstance(error, ForgeError) else f"{type(error).__name__}: {error}"
    return one_line(problem.replace(f"{folder}/", ""))[:200], None


def advice(problem: str | None) -> str:
    return next((remedy for mark, remedy in REMEDIES if problem and mark in problem), OTHER_REMEDY)
