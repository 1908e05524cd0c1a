"""llama.cpp: the converter, the quantizer and the runtime, all from one source archive.

The set-up builds llama-cpp-python from its source distribution and unpacks the llama.cpp inside it, so that
converter and library are of one commit. The converter runs in a subprocess: it brings its own `gguf` package,
which must not be mixed with the one from PyPI.
"""

import contextlib
import ctypes
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from forge import chat, files, models
from forge.errors import ENVIRONMENT, INTEGRITY, ForgeError, one_line

SETUP = "run make setup"
# The converter's own names: of the quantizations that it writes itself, and of the weights' types.
WHOLE = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def source() -> Path:
    """Folder of llama.cpp's source: LLAMA_CPP when set, else what the set-up unpacked.

    Raises ForgeError (7) when there is no converter with its `conversion/` and `gguf-py/`.
    """
    named = os.environ.get("LLAMA_CPP")
    places = [Path(named).expanduser()] if named else [Path(sys.prefix) / "llama.cpp", Path(".llama.cpp")]
    for place in places:
        if all((place / part).exists() for part in ("convert_hf_to_gguf.py", "conversion", "gguf-py/gguf")):
            return place
    raise ForgeError(
        f"no llama.cpp source with its converter in {' or '.join(map(str, places))}",
        "name a complete checkout with LLAMA_CPP=, or unset it and run make setup" if named else SETUP,
        ENVIRONMENT,
    )


def library():
    """The llama_cpp package, quiet. Raises ForgeError (7) when it is not installed or does not load."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError, FileNotFoundError) as error:
        raise ForgeError(f"llama-cpp-python does not load: {error}", SETUP, ENVIRONMENT) from None
    _silence(llama_cpp)
    return llama_cpp


@functools.cache
def _silence(llama_cpp) -> object:
    callback = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return callback  # cached, so that it lives as long as the process: C holds only a pointer


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
        str(source() / "convert_hf_to_gguf.py"),
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


def for_converter(model: Path, links: Path) -> Path:
    """What the converter is to read: the model's folder, or links to it beside settings that it takes over.

    With a SentencePiece vocabulary llama.cpp puts a space before the text after every special token, unless the
    file says no. Tokenizers of today put it at the very beginning alone: "[INST] Hello" of Mistral-7B-v0.3 would
    be split with one space more than in training. And servers put the start token before every prompt where the file
    says so, also before those of a chat template that writes none: training had none there.
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
    return _linked(model, links, changed) if changed else model


def _linked(model: Path, links: Path, changed: dict[str, dict]) -> Path:
    """Links to a model's files, those JSON files aside that are `changed`: copies with these keys."""
    links.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        if path.name in changed:
            content = json.loads(path.read_text(encoding="utf-8"))
            files.write_json(links / path.name, {**content, **changed[path.name]})
        elif not (links / path.name).is_symlink():
            (links / path.name).symlink_to(path.resolve())
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


def file_type(quantization: str) -> int:
    """llama_ftype number of a quantization's name."""
    llama_cpp = library()
    for prefix in ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_"):
        if hasattr(llama_cpp, prefix + quantization):
            return getattr(llama_cpp, prefix + quantization)
    raise ForgeError(f"this llama.cpp has no {quantization}", "choose another of gguf.quantizations")


def quantize(full: Path, out: Path, quantization: str) -> None:
    """Quantize a 16- or 32-bit GGUF in this process. Raises ForgeError (6) when llama.cpp refuses."""
    llama_cpp = library()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type(quantization)
    parameters.nthread = os.cpu_count() or 1
    code = llama_cpp.llama_model_quantize(str(full).encode("utf-8"), str(out).encode("utf-8"), ctypes.byref(parameters))
    if code != 0:
        raise ForgeError(
            f"llama.cpp could not quantize {full} to {quantization} (code {code})",
            "check the free disk space, or choose another of gguf.quantizations",
            INTEGRITY,
        )


def load(path: Path, context: int, vocab_only: bool = False):
    """A loaded GGUF (llama_cpp.Llama). `context` in tokens. Raises ForgeError (6) when it does not load."""
    llama_cpp = library()
    try:
        return llama_cpp.Llama(
            model_path=str(path),
            n_ctx=context,
            vocab_only=vocab_only,
            n_threads=os.cpu_count(),
            n_gpu_layers=-1,
            verbose=False,
            seed=0,
        )
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ForgeError(
            f"llama.cpp cannot load {path}: {error}", f"delete {path} and run make gguf again", INTEGRITY
        ) from None


@contextlib.contextmanager
def mapped(path: Path) -> Iterator:
    """llama.cpp's own model of a file on the CPU, its weights mapped and not packed anew: no second copy in memory.

    Raises ForgeError (6) when it does not load.
    """
    llama_cpp = library()
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers, parameters.use_extra_bufts = 0, False
    model = llama_cpp.llama_model_load_from_file(str(path).encode("utf-8"), parameters)
    if not model:
        raise ForgeError(f"llama.cpp cannot load {path}", f"delete {path} and run make gguf again", INTEGRITY)
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


def vocabulary_size(model) -> int:
    llama_cpp = library()
    return llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))


def logits(model, rows: list[list[int]], places: list) -> list:
    """For each row of token ids its logits at `places` (int [n]): float32 [n, vocabulary], by one decoding of all.

    `model`: of `mapped`. Every row is a sequence of its own: none sees another. Raises ForgeError (7) when there is
    not the memory for it.
    """
    import numpy as np

    llama_cpp = library()
    tokens = sum(map(len, rows))
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = tokens, tokens, min(tokens, 512)
    parameters.n_seq_max, parameters.kv_unified = len(rows), True
    parameters.n_threads = parameters.n_threads_batch = os.cpu_count() or 1
    context = llama_cpp.llama_init_from_model(model, parameters)
    if not context:
        raise ForgeError(f"llama.cpp has no memory for {tokens} tokens", "close other programs", ENVIRONMENT)
    batch = llama_cpp.llama_batch_init(tokens, 0, 1)
    try:
        wanted = _fill(batch, rows, places)
        if llama_cpp.llama_decode(context, batch) != 0:
            raise ForgeError(f"llama.cpp cannot run {tokens} tokens at once", "close other programs", ENVIRONMENT)
        size = (vocabulary_size(model),)
        return [
            np.array([np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, place), size) for place in row])
            for row in wanted
        ]
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)


def _fill(batch, rows: list[list[int]], places: list) -> list[list[int]]:
    """Put the rows into a batch one after the other; for each row where in it its `places` are."""
    batch.n_tokens = sum(map(len, rows))
    begin, wanted = 0, []
    for sequence, (row, chosen) in enumerate(zip(rows, places, strict=True)):
        kept = set(map(int, chosen))
        for position, token in enumerate(row):
            place = begin + position
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = position in kept
        wanted.append([begin + position for position in sorted(kept)])
        begin += len(row)
    return wanted


def ends(model, token: int) -> bool:
    """Whether llama.cpp ends an answer at this token: by the file's own keys, or because it knows the token's text."""
    llama_cpp = library()
    return llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(model.model), token)


def chat_template(model) -> str | None:
    """The chat template inside a loaded file."""
    found = library().llama_model_chat_template(model.model, None)
    return found.decode("utf-8") if found is not None else None


def start_token(model) -> tuple[int, str, bool]:
    """Id and text of the start token (-1 and "" where there is none), and whether llama.cpp puts it before a prompt."""
    llama_cpp = library()
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    token = llama_cpp.llama_vocab_bos(vocab)
    return token, _token_text(token, vocab), llama_cpp.llama_vocab_get_add_bos(vocab)


def _token_text(token: int, vocab) -> str:
    return library().llama_vocab_get_text(vocab, token).decode("utf-8") if token >= 0 else ""


def prompt_writer(model):
    """A function that writes a conversation as llama-cpp-python does, by the chat template inside a loaded file.

    It raises what the template raises.
    """
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    vocab = library().llama_model_get_vocab(model.model)
    start, end = library().llama_vocab_bos(vocab), library().llama_vocab_eos(vocab)
    formatter = Jinja2ChatFormatter(
        chat_template(model), eos_token=_token_text(end, vocab), bos_token=_token_text(start, vocab)
    )
    return lambda turns: formatter(messages=turns).prompt


def header(path: Path) -> dict[str, object]:
    """Metadata of a GGUF file, by gguf's reader: key -> value. Raises ForgeError (6) on a damaged file."""
    import gguf

    try:
        reader = gguf.GGUFReader(str(path))
        return {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OSError, OverflowError, MemoryError) as error:
        raise ForgeError(
            f"{path} is no whole GGUF file: {error}", f"delete {path} and run make gguf again", INTEGRITY
        ) from None
