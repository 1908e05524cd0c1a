"""llama.cpp: the converter, the quantizer and the runtime, all from one source archive.

The set-up builds llama-cpp-python from its source distribution and unpacks the llama.cpp inside it, so that
converter and library are of one commit. The converter runs in a subprocess: it brings its own `gguf` package,
which must not be mixed with the one from PyPI.
"""

import ctypes
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from forge import files, models
from forge.errors import ENVIRONMENT, INTEGRITY, ForgeError, one_line

SETUP = "run make setup"
# The converter's own names: of the quantizations that it writes itself, and of the weights' types.
WHOLE = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
# What reading a header may take. That of Gemma, with 262,144 tokens, took 0.3 s and 65 MB.
HEADER_SECONDS, HEADER_BYTES = 20, 1 << 29


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


def convert(model: Path, out: Path, outtype: str, name: str, extra: list[str] | None = None) -> None:
    """HF folder to a 16- or 32-bit GGUF by llama.cpp's own converter. `outtype`: f32, f16 or bf16.

    Raises ForgeError (6) with the converter's last line when it fails.
    """
    problem = run_converter(model, out, outtype, name, extra)
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


def for_converter(model: Path, links: Path, card: str = "") -> Path:
    """What the converter is to read: the model's folder, or links to it beside what it takes over from us.

    `card`: of ggufmeta.card. With a SentencePiece vocabulary llama.cpp puts a space before the text after every special
    token, unless the file says no. Tokenizers of today put it at the very beginning alone: "[INST] Hello" of
    Mistral-7B-v0.3 would be split with one space more than in training.
    """
    ours = {"README.md": card} if card else {}
    if (model / "tokenizer.model").is_file() and not _spaced_after_special(model):
        settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
        ours["tokenizer_config.json"] = json.dumps({**settings, "add_prefix_space": False})
    if not ours:
        return model
    links.mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        if path.name not in ours and not (links / path.name).is_symlink():
            (links / path.name).symlink_to(path.resolve())
    for name, text in ours.items():
        files.write_text(links / name, text)
    return links


def _spaced_after_special(folder: Path) -> bool:
    """Whether the tokenizer splits a word behind a special token as it does at the beginning of a text."""
    models.prepare()
    tokenizer = models.tokenizer(folder)
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


def load(path: Path, context: int, logits_all: bool = False, vocab_only: bool = False):
    """A loaded GGUF (llama_cpp.Llama). `context` in tokens. Raises ForgeError (6) when it does not load."""
    llama_cpp = library()
    try:
        return llama_cpp.Llama(
            model_path=str(path),
            n_ctx=context,
            n_batch=context if logits_all else 512,
            logits_all=logits_all,
            vocab_only=vocab_only,
            n_threads=os.cpu_count(),
            n_gpu_layers=0 if logits_all else -1,  # fidelity is measured on one device for all files
            verbose=False,
            seed=0,
        )
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ForgeError(
            f"llama.cpp cannot load {path}: {error}", f"delete {path} and run make gguf again", INTEGRITY
        ) from None


def ends(model, token: int) -> bool:
    """Whether llama.cpp ends an answer at this token: by the file's own keys, or because it knows the token's text."""
    llama_cpp = library()
    return llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(model.model), token)


def chat_template(model) -> str | None:
    """The chat template inside a loaded file."""
    found = library().llama_model_chat_template(model.model, None)
    return found.decode("utf-8") if found is not None else None


def header(path: Path, remedy: str | None = None) -> dict[str, object]:
    """Metadata of a GGUF file: key -> value, long lists left out (None). `remedy`: for a file that is not ours.

    The file may be anybody's: it is parsed in a process of its own, with little memory and time (forge/header.py).
    Raises ForgeError (6) for a damaged file, or one that takes more.
    """
    base = next((Path(library().__file__).parent / "lib").glob("libggml-base.*"))
    command = [sys.executable, "-P", str(Path(__file__).with_name("header.py")), str(base), str(path)]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    try:
        done = subprocess.run(
            [*command, str(HEADER_BYTES)],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=HEADER_SECONDS,
            check=False,
        )
        if done.returncode == 0:
            return json.loads(done.stdout)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = re.sub(r"^gguf_\w+: ", "", lines[-1])[:200] if lines else ""
        problem = said if said and done.returncode > 0 else f"its reader ended with {done.returncode}"
    except subprocess.TimeoutExpired:
        problem = f"its header was not read in {HEADER_SECONDS} s"
    raise ForgeError(
        f"{path} is no whole GGUF file: {problem}", remedy or f"delete {path} and run make gguf again", INTEGRITY
    )
