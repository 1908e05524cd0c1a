"""The held-out questions: wordings that training never saw, asked of a model, their answers judged by facts.

An answer is right when it contains every fact of its question (the text that stood in bold in the document) as
whole words, letter case and spaces aside. That tells what a model knows, not how well it says it.
"""

import re
from pathlib import Path

from forge import chat, files
from forge.llamacpp import decoding, llama
from forge.progress import Told, untold

# A character that goes on with a word. Thai, Burmese, Khmer, Chinese, Japanese and Korean write words without spaces
# or with endings, so their letters end no match.
LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"


def plain(text: str) -> str:
    """Letter case and spaces aside: texts that are equal so are the same question."""
    return " ".join(text.casefold().split())


def heldout(dataset: Path, count: int) -> list[dict]:
    """Up to `count` rows of questions.jsonl, with `prompt` (a conversation) and `facts`, in the file's order.

    Where there are more, those with the smallest digests: a sample of all pages, not the first ones.
    """
    rows = files.read_jsonl(dataset / "questions.jsonl")
    chosen = {row["id"] for row in sorted(rows, key=lambda row: row["id"])[:count]}
    return [row for row in rows if row["id"] in chosen]


def text_of(row: dict) -> str:
    return row["prompt"][-1]["content"]


def right(answer: str, facts: list[str] | None) -> bool | None:
    """Whether an answer contains every fact; None for a question without facts: it is not judged.

    Whole words: "remember" does not tell "Ember", "exit code 75" does not tell "exit code 7".
    """
    if not facts:
        return None
    said = plain(answer)
    return all(re.search(f"(?<!{LETTER}){re.escape(plain(fact))}(?!{LETTER})", said) is not None for fact in facts)


def score(items: list[dict]) -> dict[str, int]:
    """Counts over answers: `right` of `asked` (those that could be judged), `stopped` of `answers`.

    An item holds `contains_facts` (see `right`) and `stopped`: the answer ended by itself.
    """
    judged = [item["contains_facts"] for item in items if item["contains_facts"] is not None]
    return {
        "right": sum(judged),
        "asked": len(judged),
        "stopped": sum(item["stopped"] for item in items),
        "answers": len(items),
    }


def ask_gguf(path: Path, conversations: list[list[dict]], limit: int, told: Told = untold) -> list[dict]:
    """Greedy answers of a GGUF through llama.cpp with the file's own chat template: `answer` and `stopped`.

    `limit` in tokens. Raises ForgeError (6) when the file does not load.
    """
    vocabulary = llama.load(path, context=64, vocab_only=True)
    write = llama.prompt_writer(vocabulary)
    written = [write(turns).encode("utf-8") for turns in conversations]
    prompts = [vocabulary.tokenize(text, add_bos=False, special=True) for text in written]
    with decoding.mapped(path) as model:
        found = decoding.answers(model, prompts, limit, told)
    texts = [vocabulary.detokenize(answer.tokens).decode("utf-8", errors="ignore").strip() for answer in found]
    vocabulary.close()
    return [{"answer": text, "stopped": answer.stopped} for text, answer in zip(texts, found, strict=True)]


def identity(project: dict) -> list[dict]:
    """The conversation that asks the finished model who it is."""
    return chat.conversation(project["system_prompt"], project["identity"]["question"])
