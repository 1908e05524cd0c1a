"""Base and adapter (or a merged model) straight to quantized files, byte for byte those of the usual chain: merge,
llama.cpp's converter, llama_model_quantize.

Which type each tensor gets, and in which order they stand, llama.cpp itself says: a dry run of its quantizer on a
sparse file that has the header of the 16-bit one and no weights. Then every tensor is read (and merged) once and
quantized by ggml for every file that is wanted.
"""

import contextlib
import ctypes
import os
import queue
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from forge.llamacpp import llama
from forge.progress import Told
from forge.quantizing import ggml, source
from forge.quantizing.source import Unsupported
from forge.weights.merging import Weights
from forge.weights.sharding import Writer

CHUNK = 1 << 19  # weights that a thread quantizes at once
AHEAD = 2  # pieces that are read and merged before their turn; each 32 MB at most
# "[  3/ 290] blk.0.attn_q.weight - [ 896, 896, 1, 1], type = bf16, size = 1.531 MiB -> 0.43 MiB (q4_K)"
LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\S+), size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\S+)\))?")


def quantize(made, weights: Weights, wanted: dict[str, Path], threads: int, told: Told) -> dict[str, str]:
    """Write a file for each of `wanted` (llama.cpp's names of quantizations); the SHA-256 of each.

    `told`: after each tensor.
    `made`: of source.converter. Raises Unsupported before anything is written, ForgeError (6) for weights that are
    not finite.
    """
    with tempfile.TemporaryDirectory(dir=next(iter(wanted.values())).parent) as folder:
        plans = {name: plan(made.gguf_writer, llama.file_type(name), Path(folder)) for name in wanted}
        heads = {name: header(made, plans[name], llama.file_type(name), Path(folder)) for name in wanted}
    order = list(next(iter(plans.values())))
    if any(list(other) != order for other in plans.values()):
        raise Unsupported("the files would hold their tensors in different orders")
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        outs = {name: stack.enter_context(Writer(path)) for name, path in wanted.items()}
        for name, out in outs.items():
            out.put(heads[name])
        done = 0
        for tensor, piece in ahead(pieces_of(made, weights, order)):
            if piece is None:
                done += 1
                told(done, len(order))
            for name, out in outs.items():
                if piece is None:
                    out.put(bytes(-out.taken % made.gguf_writer.data_alignment))
                else:
                    out.put(of_type(piece, plans[name][tensor], pool))
    return {name: out.digest.hexdigest() for name, out in outs.items()}


def pieces_of(made, weights: Weights, order: list[str]) -> Iterator[tuple[str, source.Piece | None]]:
    """All pieces of all tensors; None after the last one of each."""
    for tensor in order:
        for piece in source.pieces(made, weights, tensor):
            yield tensor, piece
        yield tensor, None


def of_type(piece: source.Piece, kind: int, pool: ThreadPoolExecutor) -> np.ndarray:
    """The piece's rows as uint8 [rows, bytes] of another ggml type, by the threads of `pool`."""
    if piece.kind == kind:
        return piece.data
    rows, width = len(piece.data), piece.data.shape[1] // source.ITEM[piece.kind]
    out = np.empty((rows, ggml.row_bytes(kind, width)), np.uint8)
    step = max(1, CHUNK // width)

    def some(start: int) -> None:
        part = slice(start, start + step)
        ggml.quantize(kind, ggml.to_float(piece.kind, piece.data[part]), out[part])

    for _ in pool.map(some, range(0, rows, step)):
        pass
    return out


def ahead(items: Iterable) -> Iterator:
    """The same items, made in a thread of their own, AHEAD of them before their turn."""
    waiting: queue.Queue = queue.Queue(maxsize=AHEAD)
    stopped = threading.Event()

    def make() -> None:
        import torch

        try:
            with torch.inference_mode():
                for item in items:
                    waiting.put((item, None))
                    if stopped.is_set():
                        return
            waiting.put((None, StopIteration()))
        except BaseException as error:
            waiting.put((None, error))

    threading.Thread(target=make, daemon=True).start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()


# -- what llama.cpp would do --------------------------------------------------------------------------------------


def plan(writer, kind: int, folder: Path) -> dict[str, int]:
    """ggml type of each tensor of the quantized file, in the file's order. `writer`: of the 16-bit file."""
    path, tensors = folder / "header.gguf", writer.tensors[0]
    if not path.exists():
        path.write_bytes(head_bytes(writer, folder))
        os.truncate(path, path.stat().st_size + sum(writer.ggml_pad(info.nbytes, 32) for info in tensors.values()))
    lines = dry_run(path, kind)
    numbers = {ggml.type_name(number): number for number in map(int, kinds())}
    rows = LINE.findall(lines)
    if [row[0] for row in rows] != list(dict.fromkeys(row[0] for row in rows)) or {row[0] for row in rows} != set(
        tensors
    ):
        raise Unsupported("llama.cpp's quantizer lists other tensors than the converter")
    return {name: numbers[new or old] for name, old, new in rows}


def kinds():
    import gguf

    return gguf.GGMLQuantizationType


def dry_run(path: Path, kind: int) -> str:
    """What llama.cpp's quantizer says that it would do."""
    llama_cpp = llama.library()
    said: list[bytes] = []
    listener = llama_cpp.llama_log_callback(lambda level, text, data: said.append(text))
    llama_cpp.llama_log_set(listener, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.dry_run = kind, True
    code = llama_cpp.llama_model_quantize(os.fsencode(path), os.fsencode(path) + b".out", ctypes.byref(parameters))
    text = b"".join(said).decode("utf-8", "replace")
    if code != 0:
        raise Unsupported(f"llama.cpp's quantizer refuses: {text.strip().splitlines()[-1][:200] if text else code}")
    return text


def head_bytes(writer, folder: Path) -> bytes:
    """Everything of a GGUF file that stands before its weights, padding included."""
    path = folder / "head"
    writer.write_header_to_file(path=path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    data = path.read_bytes()
    return data + bytes(-len(data) % writer.data_alignment)


def header(made, types: dict[str, int], kind: int, folder: Path) -> bytes:
    """The quantized file's head: the 16-bit one's metadata, two keys anew and last, and the tensors' types."""
    import gguf

    old = made.gguf_writer
    writer = gguf.GGUFWriter(None, old.arch)
    writer.kv_data = [dict(old.kv_data[0])]
    for key in ("general.quantization_version", "general.file_type"):
        writer.kv_data[0].pop(key, None)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(kind)
    for name, number in types.items():
        shape = old.tensors[0][name].shape
        size = int(np.prod(shape[:-1], dtype=np.int64)) * ggml.row_bytes(number, shape[-1])
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=gguf.GGMLQuantizationType(number))
    return head_bytes(writer, folder)
