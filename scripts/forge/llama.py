"""llama.cpp: the converter, the quantizer and the runtime, all from one source archive.

The set-up builds llama-cpp-python from its source distribution and unpacks the llama.cpp inside it, so that
converter and library are of one commit. The converter runs in a subprocess: it brings its own `gguf` package,
which must not be mixed with the one from PyPI.
"""

import ctypes
import functools
import os
import subprocess
import sys
from pathlib import Path

from forge.errors import ENVIRONMENT, INTEGRITY, ForgeError, one_line

SETUP = "run make setup"


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
    if done.returncode != 0 or not out.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ForgeError(
            f"llama.cpp's converter failed on {model}: {one_line(lines[-1])[:300] if lines else done.returncode}",
            "check that the architecture is one that llama.cpp supports",
            INTEGRITY,
        )


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
