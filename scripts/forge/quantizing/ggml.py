"""The functions of llama.cpp's ggml library that quantize rows of weights and read them back, by ctypes.

They release Python's lock, so several threads work at once. Source: ggml/include/ggml.h of the pinned llama.cpp.
"""

import ctypes
import functools
import os
from pathlib import Path

import numpy as np

from forge.errors import ENVIRONMENT, INTEGRITY, ForgeError

BF16, F16, F32 = 30, 1, 0  # ggml_type


class Traits(ctypes.Structure):
    """struct ggml_type_traits, as far as it is read here."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("size", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


class Start(ctypes.Structure):
    """struct gguf_init_params: only the header is read."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


@functools.cache
def library() -> ctypes.CDLL:
    """libggml-base of the installed llama-cpp-python. Raises ForgeError (7) when it is not as expected."""
    import llama_cpp

    path = Path(llama_cpp.__file__).parent / "lib/libggml-base.so"
    try:
        found = ctypes.CDLL(str(path))
        pointer, size, count = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
        found.ggml_quantize_chunk.restype = size
        found.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
        found.ggml_row_size.restype, found.ggml_row_size.argtypes = size, [ctypes.c_int, count]
        found.ggml_validate_row_data.restype = ctypes.c_bool
        found.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, size]
        found.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
        if [found.ggml_get_type_traits(kind)[0].type_name for kind in (F32, F16, BF16)] != [b"f32", b"f16", b"bf16"]:
            raise OSError("its types have other numbers")
    except (OSError, AttributeError) as error:
        raise ForgeError(f"{path} is not usable: {error}", "run make setup", ENVIRONMENT) from None
    return found


def type_name(kind: int) -> str:
    return (library().ggml_get_type_traits(kind)[0].type_name or b"").decode("ascii")


def row_bytes(kind: int, width: int) -> int:
    """Bytes of a row of `width` weights."""
    return library().ggml_row_size(kind, width)


def to_float(kind: int, data: np.ndarray) -> np.ndarray:
    """float32 [rows, width] of uint8 [rows, row_bytes(kind, width)]."""
    if kind == F32:
        return data.view(np.float32)
    traits = library().ggml_get_type_traits(kind)[0]
    rows, width = len(data), data.shape[1] // traits.size * traits.block
    out = np.empty((rows, width), np.float32)
    data = np.ascontiguousarray(data)
    traits.to_float(data.ctypes.data, out.ctypes.data, out.size)
    return out


def quantize(kind: int, rows: np.ndarray, out: np.ndarray) -> None:
    """Quantize float32 [rows, width] into uint8 [rows, row_bytes(kind, width)].

    Raises ForgeError (6) when the result holds NaN or infinity.
    """
    count, width = rows.shape
    library().ggml_quantize_chunk(kind, rows.ctypes.data, out.ctypes.data, 0, count, width, None)
    if not library().ggml_validate_row_data(kind, out.ctypes.data, out.nbytes):
        raise ForgeError("a quantized weight is not finite", "run make redo PHASE=merge", INTEGRITY)


def tensors_of(path: Path) -> dict[str, tuple[int, np.ndarray]]:
    """ggml type and bytes (uint8, mapped) of every tensor of a GGUF file, by name.

    By llama.cpp's own parser: gguf's in Python takes 20 s for a vocabulary of 150,000 words. Raises ForgeError (6).
    """
    found = library()

    def ask(name: str, kind: type, *arguments):
        function = getattr(found, f"gguf_{name}")
        function.restype = kind
        return function(*arguments)

    start = Start(True, None)
    file = ask("init_from_file", ctypes.c_void_p, os.fsencode(path), start)
    if not file:
        raise ForgeError(f"{path} is no whole GGUF file", "run make redo PHASE=gguf", INTEGRITY)
    file = ctypes.c_void_p(file)
    begin = ask("get_data_offset", ctypes.c_size_t, file)
    mapped = np.memmap(path, np.uint8, "r")
    tensors = {}
    for index in map(ctypes.c_int64, range(ask("get_n_tensors", ctypes.c_int64, file))):
        name = ask("get_tensor_name", ctypes.c_char_p, file, index).decode("utf-8")
        place = begin + ask("get_tensor_offset", ctypes.c_size_t, file, index)
        data = mapped[place : place + ask("get_tensor_size", ctypes.c_size_t, file, index)]
        tensors[name] = ask("get_tensor_type", ctypes.c_int, file, index), data
    ask("free", None, file)
    return tensors
