"""Models of real shapes with random weights, and adapters for them, made on the spot for the benchmarks.

Shapes and vocabulary are Qwen2's; the tokenizer is the one that comes with llama.cpp. The numbers are one block of
normally spread ones, cut at another place for each tensor: made in the time that the disk takes.
"""

import json
import math
import os
import shutil
import struct
from pathlib import Path

import harness
from forge import models
from forge.llamacpp import llama
from forge.weights import merging

# hidden size, inner size, layers, heads, heads of keys and values, vocabulary, tied output
SHAPES = {
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
}
BLOCK = 1 << 25  # numbers, 64 MB
SHARD = 4 * 10**9  # bytes, as the makers' own
RANK = 16


def make(folder: Path, shape: str) -> tuple[Path, Path]:
    """Folders of a base and of an adapter for it: made in `folder`, unless they are there already."""
    base, adapter = (folder / f"{shape}-{name}" for name in ("base", "adapter"))
    if adapter.is_dir():
        return base, adapter
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    write_settings(base, SHAPES[shape])
    write_tokenizer(base)
    write_weights(base)
    write_adapter(base, adapter)
    return base, adapter


def write_settings(folder: Path, sizes: tuple) -> None:
    from transformers import Qwen2Config

    hidden, inner, layers, heads, key_heads, vocabulary, tied = sizes
    Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        dtype="bfloat16",
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=tied,
        max_position_embeddings=32768,
    ).save_pretrained(folder)


def write_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer

    vocabulary = llama.source() / "models/ggml-vocab-qwen2.gguf"
    AutoTokenizer.from_pretrained(str(vocabulary.parent), gguf_file=vocabulary.name).save_pretrained(folder)


def write_weights(folder: Path) -> None:
    import torch

    model = merging.placeholder(folder, "bfloat16")
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    if model.config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    noise = (torch.randn(BLOCK, generator=torch.Generator().manual_seed(1)) * 0.02).to(torch.bfloat16)
    ones = torch.ones(1 << 20, dtype=torch.bfloat16)
    groups = grouped(shapes)
    index = {}
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        index |= dict.fromkeys(names, file)
        with (folder / file).open("wb", buffering=0) as out:
            out.write(header(shapes, names))
            for place, name in enumerate(names):
                source = ones if "norm" in name else noise.roll(997 * place)
                left = math.prod(shapes[name])
                while left:
                    count = min(left, len(source))
                    out.write(source[:count].view(torch.uint8).numpy())
                    left -= count
    size = sum(map(math.prod, shapes.values())) * 2
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def grouped(shapes: dict) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * 2
        if filled and filled + size > SHARD:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def header(shapes: dict, names: list[str]) -> bytes:
    found, place = {}, 0
    for name in names:
        size = math.prod(shapes[name]) * 2
        found[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(found).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_adapter(base: Path, folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    settings = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(merging.placeholder(base, "bfloat16"), settings)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    model.save_pretrained(folder)


def arguments(doc: str):
    parser = harness.parser(doc, repeat=1)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--models", type=Path, help="folder to make the models in, and to leave them for other runs")
    return parser.parse_args()


def fresh(out: Path, *read: Path) -> None:
    """The same start for each side: `out` empty, everything written, and of the folders to `read` nothing in memory.

    With a base in memory, or still being written, one side took twice as long as with another start.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()
    for path in (path for folder in read for path in folder.iterdir()):
        with path.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def prepare() -> None:
    models.prepare()
