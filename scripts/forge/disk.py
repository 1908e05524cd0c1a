"""The disk that training and the phases after it take, worked out before any of them starts.

Sizes follow from the shapes of the base's weights and from the config; no weight is read. A phase builds its output
beside the old one and swaps it in, so for a while both are there: `most` walks through the phases with what lies on
the disk today.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from forge import files, models
from forge.graph import Layout
from forge.llamacpp import converter
from forge.schema import TrainingConfig

Shapes = Mapping[str, tuple[int, ...]]

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Bits a weight: llama.cpp's tools/quantize/README.md for Llama-3.1-8B, and ggml's blocks for the older types. An
# importance matrix changes them by less than what is added for embeddings.
BITS = {
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "Q8_0": 8.5,
    "Q6_K": 6.56,
    "Q5_1": 6,
    "Q5_K_M": 5.7,
    "Q5_K_S": 5.57,
    "Q5_0": 5.5,
    "Q4_1": 5,
    "Q4_K_M": 4.89,
    "Q4_K_S": 4.67,
    "IQ4_NL": 4.68,
    "Q4_0": 4.6,
    "IQ4_XS": 4.46,
    "Q3_K_L": 4.3,
    "Q3_K_M": 4,
    "IQ3_M": 3.76,
    "IQ3_S": 3.66,
    "Q3_K_S": 3.64,
    "IQ3_XS": 3.5,
    "IQ3_XXS": 3.26,
    "Q2_K": 3.16,
    "Q2_K_S": 2.97,
    "IQ2_M": 2.93,
    "IQ2_S": 2.75,
    "IQ2_XS": 2.59,
    "IQ2_XXS": 2.39,
    "IQ1_M": 2.15,
    "IQ1_S": 2.01,
}
SIXTEEN = "16-bit"  # the file that an importance matrix is measured on; it goes when all is verified
HIGHEST = max(bits for name, bits in BITS.items() if name not in converter.WHOLE)
OUTPUT_BITS = BITS["Q6_K"]  # at least: so a small model, most of it embedding, has more bits than a large one
# K-quants need rows that 256 divides. For others llama.cpp takes the next larger type: Q5_0 for Q4_K, Q8_0 for Q6_K.
ODD, ODD_LEAST = 1.15, 5.0
# The adapter and Adam's two averages, 32 bits each; 8-bit optimizers keep less.
CHECKPOINT_BYTES = 12
ADAPTER_BYTES = 4
# LoRA's all-linear leaves these out: they are no linear layers, or the output.
NOT_LINEAR = {*models.EMBEDDINGS, *models.OUTPUTS, "embed_tokens_per_layer", "wpe"}


class Item(NamedTuple):
    """What a phase writes: `size` in bytes at `path`. `stays`: after the phase; `replaces`: what is there now goes."""

    phase: str
    path: Path
    size: int
    stays: bool
    replaces: bool


def items(layout: Layout, shapes: Shapes, dtype: str, values: TrainingConfig, carried: int = 0) -> list[Item]:
    """Everything that training and the phases after it write, in run order.

    `shapes`: of the base's weights by name, from models.tensor_shapes or a model on the meta device (tied weights
    once); `dtype`: of the merged weights; `carried`: bytes of the tokenizer's files, which each output holds, too.
    """
    adapter = adapter_weights(shapes, values.lora.r, values.lora.target_modules)
    kept = values.training.save_total_limit + 1  # the oldest goes when the newest is whole
    checkpoints = kept * (adapter * CHECKPOINT_BYTES + carried)
    whole = weights(shapes) * BYTES[dtype] + carried
    wanted = [
        Item("gguf", layout.gguf(name), gguf_bytes(shapes, name) + carried, True, True)
        for name in values.gguf.quantizations
    ]
    return [
        Item("train", layout.checkpoints, checkpoints, False, False),
        Item("train", layout.adapter, adapter * ADAPTER_BYTES, True, False),  # the old one goes to the archive
        Item("merge", layout.merged, whole if values.merge.keep else carried, True, True),
        *([Item("gguf", layout.gguf(SIXTEEN), whole, False, True)] if values.gguf.importance_matrix else []),
        *wanted,
    ]


def needed(layout: Layout, shapes: Shapes, dtype: str, values: TrainingConfig, carried: int = 0) -> dict[str, int]:
    """Bytes that each phase writes, by its name: its old output, where there is one, lies beside them meanwhile."""
    return dict(total(items(layout, shapes, dtype, values, carried)))


def total(listed: Iterable[Item]) -> Counter[str]:
    found: Counter[str] = Counter()
    for item in listed:
        found[item.phase] += item.size
    return found


def most(listed: list[Item]) -> dict[Path, int]:
    """Most bytes beyond today's at any time of the phases, for one folder of each file system that is written to."""
    now: Counter[Path] = Counter()
    found: Counter[Path] = Counter()
    for phase in total(listed):
        written = [item for item in listed if item.phase == phase]
        for item in written:
            now[file_system(item.path)] += item.size
        found |= now
        for item in written:
            old = size_of(item.path) if item.replaces else 0
            now[file_system(item.path)] -= old if item.stays else item.size
    return dict(found)


def require(run) -> None:
    """Refuse to begin what the disk cannot hold. Raises ForgeError (7) with what each phase takes.

    Reads lora, training and gguf of the whole config: what is free differs from day to day, so no record depends on
    it, and an edited quantization is no reason to check the rows again.
    """
    shapes = models.tensor_shapes(run.layout.base)
    carried = sum(path.stat().st_size for name in models.TOKENIZER_FILES for path in run.layout.base.glob(name))
    listed = items(run.layout, shapes, run.facts("model")["dtype"], run.config.values, carried)
    shares = ", ".join(f"{phase} {size / 1e9:.1f}" for phase, size in total(listed).items())
    for folder, size in most(listed).items():
        files.require_free_space(folder, size, f"the way to the GGUF ({shares} GB)")


# -- sizes --------------------------------------------------------------------------------------------------------


def weights(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes.values()))


def adapter_weights(shapes: Shapes, r: int, target: str | list[str]) -> int:
    """Numbers of a LoRA adapter (Hu et al. 2021): r for each row and each column of every matrix that it is put on.

    `target`: lora.target_modules. A matrix that peft leaves out all the same (fused experts) counts too much.
    """
    return sum(
        r * sum(shape)
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and _targeted(name.removesuffix(".weight"), target)
    )


def _targeted(module: str, target: str | list[str]) -> bool:
    """As peft reads target_modules: all-linear, a pattern for the whole name, or ends of names."""
    if target == "all-linear":
        return not NOT_LINEAR & set(module.split("."))
    if isinstance(target, str):
        return re.fullmatch(target, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in target)


def gguf_bytes(shapes: Shapes, quantization: str) -> int:
    """Size of a GGUF file of these weights, without its vocabulary; rather too much than too little."""
    bits = BITS.get(quantization, HIGHEST)
    if quantization in converter.WHOLE:
        return weights(shapes) * bits // 8
    outputs = models.named(shapes, models.OUTPUTS) or models.named(shapes, models.EMBEDDINGS)  # or: tied to it
    output = sum(map(math.prod, outputs))
    output_bits = max(bits, OUTPUT_BITS)
    if ("_K" in quantization or quantization[0] in "IT") and any(
        len(shape) == 2 and shape[1] % 256 for shape in shapes.values()
    ):
        bits = HIGHEST if bits >= OUTPUT_BITS else max(bits * ODD, ODD_LEAST)
        output_bits = HIGHEST
    return int((output * output_bits + (weights(shapes) - output) * bits) / 8)


# -- what lies there ----------------------------------------------------------------------------------------------


def file_system(path: Path) -> Path:
    """The highest folder above a path of the layout that is on the file system where it will be written: mostly
    models; another one where that or models/gguf, say, is a link to a larger disk."""
    there = [folder for folder in path.parents[:-1] if folder.exists()] or [Path()]
    return next(folder for folder in reversed(there) if folder.stat().st_dev == there[0].stat().st_dev)


def size_of(path: Path) -> int:
    """Bytes of a file, or of a folder's files."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
