"""llama.cpp's own converter: Hugging Face folders to 16-bit GGUF files, told what training was like.

It runs in a process of its own: it brings its own `gguf` package, which must not be mixed with the one from PyPI.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from forge import chat, files, models
from forge.errors import INTEGRITY, ForgeError, one_line
from forge.llamacpp import llama

# Its names: of the quantizations that it writes itself, and of the weights' types.
WHOLE = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def convert(model: Path, out: Path, outtype: str, name: str, metadata: Path | None = None) -> None:
    """HF folder to a 16- or 32-bit GGUF by llama.cpp's own converter. `outtype`: f32, f16 or bf16.

    `metadata`: a JSON file of general.* keys. Raises ForgeError (6) with the converter's last line when it fails.
    """
    problem = run_converter(model, out, outtype, name, ["--metadata", str(metadata)] if metadata else None)
    if problem:
        raise ForgeError(
            f"llama.cpp's converter failed on {model}: {problem}",
            "check that the architecture is one that llama.cpp supports",
            INTEGRITY,
        )


def run_converter(model: Path, out: Path, outtype: str, name: str, extra: list[str] | None = None) -> str | None:
    """Run llama.cpp's converter in a process of its own: None when `out` is there, else its last line, shortened."""
    command = [
        sys.executable,
        str(llama.source() / "convert_hf_to_gguf.py"),
        str(model),
        "--outfile",
        str(out),
        "--outtype",
        outtype,
        "--model-name",
        name,
        *(extra or []),
    ]
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("NO_LOCAL_GGUF", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode == 0 and out.is_file():
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0 or not lines:
        return f"it ended with {done.returncode}"
    return re.sub(r"^[A-Z]+:[\w-]+:", "", one_line(lines[-1]))[:300]  # without logging's "ERROR:hf-to-gguf:"


def for_converter(model: Path, links: Path, card: str = "") -> Path:
    """What the converter is to read: the model's folder, or links to it beside what it takes over from us.

    `card`: of ggufmeta.card. With a SentencePiece vocabulary llama.cpp puts a space before the text after every special
    token, unless the file says no. Tokenizers of today put it at the very beginning alone: "[INST] Hello" of
    Mistral-7B-v0.3 would be split with one space more than in training. And servers put the start token before every
    prompt where the file says so, also before those of a chat template that writes none: training had none there.
    """
    models.prepare()
    tokenizer = models.tokenizer(model)
    changed: dict[str, dict] = {}
    sentencepiece = (model / "tokenizer.model").is_file()  # there llama.cpp does both unless the file says no
    if sentencepiece and not _spaced_after_special(tokenizer):
        changed["tokenizer_config.json"] = {"add_prefix_space": False}
    if _writes_no_start(tokenizer) and (sentencepiece or tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id):
        changed["tokenizer_config.json"] = {**changed.get("tokenizer_config.json", {}), "add_bos_token": False}
        changed["tokenizer.json"] = {"post_processor": None}  # what it says goes before the setting
    return _linked(model, links, changed, card) if changed or card else model


def _linked(model: Path, links: Path, changed: dict[str, dict], card: str) -> Path:
    """Links to a model's files, those JSON files aside that are `changed`: copies with these keys."""
    links.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        if path.name in changed:
            content = json.loads(path.read_text(encoding="utf-8"))
            files.write_json(links / path.name, {**content, **changed[path.name]})
        elif not (links / path.name).is_symlink() and not (card and path.name == "README.md"):
            (links / path.name).symlink_to(path.resolve())
    if card:
        files.write_text(links / "README.md", card)
    return links


def _writes_no_start(tokenizer) -> bool:
    """Whether there is a start token that prompts of the chat template do not begin with."""
    try:
        asked = chat.render(tokenizer, chat.conversation("", "Hello"), generation_prompt=True)
    except ForgeError:
        return False  # whoever needs the template says so
    return tokenizer.bos_token is not None and not asked.startswith(tokenizer.bos_token)


def _spaced_after_special(tokenizer) -> bool:
    """Whether the tokenizer splits a word behind a special token as it does at the beginning of a text."""
    special = tokenizer.bos_token or tokenizer.eos_token
    if special is None:
        return True  # nothing to compare: the converter's own way
    alone, behind = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", f"{special}a"))
    return behind[1:] == alone


def shown_name(folder: Path, name: str) -> str:
    """The name to write into a GGUF: `name`, with "(phi-3)" behind it where llama.cpp must read that.

    The control tokens of Phi-3 swallow the space after them ("<|user|>\\n"). No GGUF can say so, llama.cpp goes by
    the model's name: under another one it would split every prompt with more tokens than in training.
    """
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if settings.get("model_type") != "phi3" or any(known in name.lower() for known in ("phi-3", "phi3")):
        return name
    models.prepare()
    added = models.tokenizer(folder).added_tokens_decoder.values()
    return f"{name} (phi-3)" if any(token.special and token.rstrip for token in added) else name
