"""llama.cpp: where its source is, its quantizer and its runtime.

The set-up builds llama-cpp-python from its source distribution and unpacks the llama.cpp inside it, so that
converter (converter.py) and library are of one commit.
"""

import ctypes
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from forge import models
from forge.errors import ENVIRONMENT, INTEGRITY, ForgeError

SETUP = "run make setup"
# What reading a header may take. That of Gemma, with 262,144 tokens, took 0.3 s and 65 MB.
HEADER_SECONDS, HEADER_BYTES = 20, 1 << 29
# llama-cpp-python's name of the chat template inside the file: left alone it takes its own writer for some of them.
OWN_TEMPLATE = "chat_template.default"


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
    models.share_processors()
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


def file_type(quantization: str) -> int:
    """llama_ftype number of a quantization's name."""
    llama_cpp = library()
    for prefix in ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_"):
        if hasattr(llama_cpp, prefix + quantization):
            return getattr(llama_cpp, prefix + quantization)
    raise ForgeError(f"this llama.cpp has no {quantization}", "choose another of gguf.quantizations")


def quantize(full: Path, out: Path, quantization: str, matrix: Mapping[str, object] | None = None) -> None:
    """Quantize a 16- or 32-bit GGUF in this process, with an importance matrix (of importance.entries) or without.

    Raises ForgeError (6) when llama.cpp refuses.
    """
    llama_cpp = library()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type(quantization)
    parameters.nthread = os.cpu_count() or 1
    kept = _weigh(parameters, matrix) if matrix else ()
    code = llama_cpp.llama_model_quantize(str(full).encode("utf-8"), str(out).encode("utf-8"), ctypes.byref(parameters))
    del kept
    if code != 0:
        raise ForgeError(
            f"llama.cpp could not quantize {full} to {quantization} (code {code})",
            "check the free disk space, or choose another of gguf.quantizations",
            INTEGRITY,
        )


def _weigh(parameters, matrix: Mapping[str, object]) -> tuple:
    """Hand a matrix to the quantizer, which also writes that it had one. What is returned must live that long."""
    llama_cpp = library()
    listed = (llama_cpp.llama_model_imatrix_data * (len(matrix) + 1))()  # the last one, empty, ends the list
    for item, (name, values) in zip(listed, matrix.items(), strict=False):
        item.name, item.size = name.encode("utf-8"), values.size
        item.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    told = (llama_cpp.llama_model_kv_override * 3)()  # keys of llama.cpp's own llama-quantize
    told[0].tag, told[0].key = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, b"quantize.imatrix.dataset"
    told[0].value.val_str = b"training rows"
    told[1].tag, told[1].key = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, b"quantize.imatrix.entries_count"
    told[1].value.val_i64 = len(matrix)
    parameters.imatrix, parameters.kv_overrides = listed, told
    return listed, told, matrix


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
            chat_format=OWN_TEMPLATE,
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


def header(path: Path, remedy: str | None = None) -> dict[str, object]:
    """Metadata of a GGUF file: key -> value, long lists left out (None). `remedy`: for a file that is not ours.

    The file may be anybody's: it is parsed in a process of its own, with little memory and time (header.py).
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
