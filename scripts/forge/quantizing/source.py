"""llama.cpp's own converter, its weights coming from a forge.weights.merging.Weights instead of files.

Names, permutations, 16-bit types and metadata are the converter's: only where a tensor's numbers come from differs.
Imported in the worker process alone: `conversion` and `gguf` must be those of llama.cpp's source archive.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from forge.quantizing import ggml
from forge.weights.checkpoint import AT_ONCE
from forge.weights.merging import Weights


class Unsupported(Exception):
    """This model is outside of what the short way covers; the text says why."""


class Piece(NamedTuple):
    """Some rows of a tensor as the 16-bit file would hold them: uint8 [rows, bytes] of `kind`."""

    data: np.ndarray
    kind: int


def converter(folder: Path, weights: Weights, outtype: str, name: str, metadata: Path | None):
    """The converter of the model whose config and tokenizer lie in `folder`, all tensors prepared, none read.

    `outtype`: f32, f16 or bf16. `metadata`: a JSON file of general.* keys; None leaves all metadata and the
    vocabulary out, where only the tensors matter. Its `origin` maps names of GGUF tensors to those of weights that
    pass unchanged.
    """
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
    from conversion.base import LazyTorchTensor

    settings = ModelBase.load_hparams(folder, False)
    kind = get_model_class(get_model_architecture(settings, ModelType.TEXT))

    class Streamed(kind):
        model_arch = kind.model_arch

        def index_tensors(self, remote_hf_model_id=None):
            import torch

            self.source, self.origin, found = {}, {}, {}
            for key, entry in weights.checkpoint.entries.items():
                meta = LazyTorchTensor.meta_with_dtype_and_shape(getattr(torch, weights.dtype), entry.shape)
                kept = self.filter_tensors(
                    (key, lambda key=key, meta=meta: LazyTorchTensor(meta=meta, args=(key,), func=weights.tensor))
                )
                if kept:
                    found[kept[0]] = kept[1]
                    self.source[kept[0]] = key
            return found

        def modify_tensors(self, data_torch, name, bid):
            for new, data in super().modify_tensors(data_torch, name, bid):
                if data is data_torch and name in self.source:
                    self.origin[new] = self.source[name]
                yield new, data

    kinds = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}
    made = Streamed(
        folder, gguf.LlamaFileType[kinds[outtype]], folder / "unused.gguf", model_name=name, metadata_override=metadata
    )
    made.prepare_tensors()
    if metadata is not None:
        made.prepare_metadata(vocab_only=False)
    for tensor, info in made.gguf_writer.tensors[0].items():
        if type(info.tensor).__name__ == "LazyChunkedTensor":
            raise Unsupported(f"{tensor} is put together from several weights")
    return made


def pieces(made, weights: Weights, name: str) -> Iterator[Piece]:
    """The rows of one GGUF tensor in their order, some at a time."""
    info = made.gguf_writer.tensors[0][name]
    kind, origin = int(info.dtype), made.origin.get(name)
    if origin is not None and kind == SAME.get(weights.dtype):
        width = info.shape[-1] * ITEM[kind]
        if weights.unchanged(origin):
            yield from _as_stored(weights, origin, width, kind)
            return
        for rows in weights.rows(origin):
            yield from _cut(_bytes_of(rows).reshape(-1, width), kind)
    else:
        eager = type(info.tensor).to_eager(info.tensor)
        info.tensor = None  # a lazy tensor keeps what it was made of
        yield from _cut(np.ascontiguousarray(eager).view(np.uint8).reshape(-1, info.shape[-1] * ITEM[kind]), kind)


SAME = {"bfloat16": ggml.BF16, "float16": ggml.F16, "float32": ggml.F32}
ITEM = {ggml.BF16: 2, ggml.F16: 2, ggml.F32: 4}


def _cut(data: np.ndarray, kind: int) -> Iterator[Piece]:
    step = max(1, AT_ONCE // data.shape[1])
    for start in range(0, len(data), step):
        yield Piece(data[start : start + step], kind)


def _as_stored(weights: Weights, key: str, width: int, kind: int) -> Iterator[Piece]:
    size, step = weights.checkpoint.entries[key].size, max(1, AT_ONCE // width) * width
    for start in range(0, size, step):
        data = weights.checkpoint.read(key, start, min(step, size - start)).numpy()
        yield Piece(data.reshape(-1, width), kind)


def _bytes_of(tensor) -> np.ndarray:
    import torch

    return tensor.contiguous().view(torch.uint8).reshape(-1).numpy()
