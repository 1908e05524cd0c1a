"""Loading Hugging Face models and tokenizers: always from a local folder, never with code from it."""

import contextlib
import ctypes
import gc
import logging
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from forge.errors import BAD_INPUT, INTEGRITY, ForgeError, one_line, out_of_memory

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8  # <malloc.h>
MAPPED = 1 << 25  # bytes from which memory comes from the system and goes back at once; 32 MB, glibc's most
DTYPES = ("bfloat16", "float16", "float32")
LICENCE_FILES = ("LICENSE*", "NOTICE*", "USE_POLICY*")  # Llama's licence asks for the notice and the policy, too
# Files that make a model folder; anything else (pickles, training state, pictures) is left out.
MODEL_FILES = (
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    *LICENCE_FILES,
)
# The same weights a second time, in their makers' own layout: 14.5 GB of Mistral-7B-Instruct-v0.3.
NOT_MODEL_FILES = ("consolidated*.safetensors",)
# Last part of the names of the matrices that have a row for each token: at the model's beginning, at its end.
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
OUTPUTS = ("lm_head", "embed_out")
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)


def prepare(repeats: bool = False) -> None:
    """Called before torch is imported: quiet libraries, no network.

    Progress bars and advice of libraries are off, the phases print their own. `repeats`: tensors of the same sizes
    come again and again, as in training; else each weight comes once.
    """
    (keep_memory if repeats else return_memory)()
    share_processors()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, about their own next versions
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def keep_memory() -> None:
    """Tell glibc to keep freed memory: else every large tensor is mapped, zeroed and unmapped anew.

    On two cores a training step of the starter took 2.2 s instead of 3.1, for 10% more memory. One arena: with
    several, what one thread freed is lost to the others. In pages of 2 MB (torch's own switch) 12 steps took 43 s
    instead of 46, and 3.6 GB instead of 4.4.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    tell_malloc({M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1})


def return_memory() -> None:
    """Tell glibc to give freed memory back: else small pieces that stay lie between large ones that were freed.

    Weights of the starter that come and go took 1.7 to 6.7 GB from run to run, with 0.3 GB in use; so they take 1.4.
    In pages of 2 MB (torch's own switch) merging 1.5B took 27 s instead of 31 (one run each).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    tell_malloc({M_ARENA_MAX: 1, M_MMAP_THRESHOLD: MAPPED, M_TRIM_THRESHOLD: 8 * MAPPED})


def tell_malloc(options: dict[int, int]) -> None:
    """glibc's mallopt; other C libraries are left alone."""
    try:
        library = ctypes.CDLL(None)
        for option, value in options.items():
            library.mallopt(option, value)
    except (OSError, AttributeError):
        return


def give_memory_back() -> None:
    """What was freed goes back to the system: kept pieces of many lengths fit each other ever less.

    Packed batches of the starter took 2.6 GB after 8 steps and 7.6 GB after 120.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def share_processors() -> None:
    """Tell OpenMP how long an idle thread spins, and oneDNN how many kernels it may keep; read when torch is loaded.

    A thread that spins for long holds the core that the other one waits for: beside one busy core of two, training
    the starter made less than 62 tokens/s by default and 111 with 10,000 turns, which cost at most 8% when alone
    (none at all: 40%). Packed batches and rows have many lengths, and oneDNN makes kernels for each, of 0.45 MB: with
    its 1,024 places the pace fell from 312 tokens/s to 250 within 40 steps; 4,096 take at most 1.8 GB.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")


def tokenizer(folder: Path):
    """The tokenizer of a model folder. Raises ForgeError (6) when it does not load."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers, json and transformers each raise their own on damaged files
        if out_of_memory(error):
            raise
        raise ForgeError(
            f"the tokenizer in {folder} does not load: {one_line(error)[:200]}",
            f"delete {folder} and run make model again",
            INTEGRITY,
        ) from None


def causal_lm(
    folder: Path,
    dtype: str,
    quantization: object = None,
    attention: str | None = None,
    where: str | None = None,
):
    """A causal language model on the GPU when there is one, else on the CPU, in evaluation mode.

    `dtype` is one of DTYPES; `quantization` a BitsAndBytesConfig or None; `attention` transformers' name of an
    implementation, None for its default; `where` a device of your choice. Raises ForgeError (6) when the files are
    damaged or a weight is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=getattr(torch, dtype),
            quantization_config=quantization,
            attn_implementation=attention,
            device_map={"": where or (device() if quantization is not None else whole(folder))},
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors, json, transformers each raise their own on damaged files
        if out_of_memory(error):
            raise
        raise ForgeError(
            f"the model in {folder} does not load: {type(error).__name__}: {one_line(error)[:200]}",
            f"delete {folder} and run make again",
            INTEGRITY,
        ) from None
    missing = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if missing:
        raise ForgeError(
            f"the model in {folder} lacks {missing[0]} ({len(missing)} weights in all)",
            f"delete {folder} and run make again",
            INTEGRITY,
        )
    return model.eval()


def adapter_on(model, lora: dict):
    """peft's model of a base and an adapter as the config's section `lora` has it."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=lora["r"],
        lora_alpha=lora["lora_alpha"],
        lora_dropout=lora["lora_dropout"],
        target_modules=lora["target_modules"],
        use_rslora=lora["use_rslora"],
        use_dora=lora["use_dora"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def with_adapter(model, folder: Path):
    """The model with the adapter of a folder on it. Raises ForgeError when the two do not belong together."""
    import warnings

    from peft import PeftModel

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False)
        except Exception as error:
            if out_of_memory(error):
                raise
            raise ForgeError(
                f"the adapter in {folder} does not fit this base: {one_line(error)[:200]}",
                "train again (make redo PHASE=train), or restore the base that it was trained on",
                INTEGRITY,
            ) from None
    lost = [str(item.message) for item in caught if "missing adapter keys" in str(item.message)]
    if lost:
        raise ForgeError(f"the adapter in {folder} lacks weights: {one_line(lost[0])[:200]}", "train again", INTEGRITY)
    return adapted.eval()


def weight_bytes(folder: Path) -> int:
    """Size of a model folder's weights on disk."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of a model folder by its name. Only the headers of the files are read.

    Raises ForgeError (6) for a damaged header.
    """
    from safetensors import SafetensorError, safe_open

    shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(path), framework="numpy") as weights:
                shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ForgeError(f"{path} is damaged: {one_line(error)}", "get the model again", INTEGRITY) from None
    return shapes


def named(shapes: Mapping[str, tuple[int, ...]], names: Iterable[str]) -> list[tuple[int, ...]]:
    """Those of `shapes` whose module has one of these names: EMBEDDINGS, say."""
    ends = tuple(f".{name}.weight" for name in names)
    return [shape for name, shape in shapes.items() if f".{name}".endswith(ends)]


def whole(folder: Path) -> str:
    """Where a model of a folder is loaded in 16 bits or more: the GPU when it fits there, else the CPU."""
    where, four_bit = place(folder)
    return "cpu" if four_bit else where


def place(folder: Path) -> tuple[str, bool]:
    """Where a model of a folder is measured, and whether in 4 bits.

    The GPU when its weights fit what is free there (a fifth more for activations), else the GPU in 4 bits, else the
    CPU. Of 7B, 15 GB, 4 bits leave 5.7, the vocabulary in 16 bits included; answers and logits take some more.
    """
    import torch

    if device() == "cpu":
        return "cpu", False
    free, size = torch.cuda.mem_get_info()[0], weight_bytes(folder)
    four_bit = size * 1.2 >= free
    return (device(), four_bit) if not four_bit or size * 0.4 + 8e8 < free else ("cpu", False)


def precision(folder: Path, device: str) -> str:
    """What a model of a folder is measured in, on the `device` that `place` chose."""
    from forge import capacity

    if device != "cpu":
        return compute_dtype("auto")
    return on_processor(weight_bytes(folder), capacity.free_memory()[0])


def on_processor(size: int, free: int) -> str:
    """32 bits where the CPU's bfloat16 is slow (no AMX) and twice the `size` bytes of the weights fit `free`."""
    if processor_has("amx_bf16") or 3 * size >= free:
        return compute_dtype("auto")
    return "float32"


def to_measure(folder: Path, dtype: str, placed: tuple[str, bool] | None = None):
    """A model to be measured. `placed`: what `place` said, for who must know it before; None asks now."""
    where, four_bit = placed or place(folder)
    return causal_lm(folder, dtype, nf4(dtype) if four_bit else None, where=where)


def nf4(dtype: str):
    """4 bits as `quantization` has them by default, computed with in `dtype`."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def device() -> str:
    """The first GPU, or the one that a launcher gave this process (LOCAL_RANK); else the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def compute_dtype(wanted: str) -> str:
    """`auto` resolved: bfloat16 where the hardware has it, else float16 on a GPU and float32 on a CPU.

    bfloat16 needs compute capability 8.0; on CPUs without avx512_bf16 or amx_bf16 it is emulated and slow.
    """
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16"
    return "bfloat16" if processor_has("avx512_bf16") or processor_has("amx_bf16") else "float32"


def processor_has(flag: str) -> bool:
    """Whether the processor has an extension, by Linux' name of it."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"), re.M)
    return flags is not None and flag in flags[1].split()


def refuse_unsafe(folder: Path) -> None:
    """Refuse (2) a base whose weights are pickles only, or that wants its own code to be run."""
    import json

    if not list(folder.glob("*.safetensors")):
        raise ForgeError(
            f"{folder} has no .safetensors weights",
            "choose a base with safetensors weights: pickles can run code and are never loaded",
            BAD_INPUT,
        )
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            wants_code = "auto_map" in content
        except (ValueError, TypeError) as error:
            raise ForgeError(f"{path} is damaged: {error}", "get the model again", INTEGRITY) from None
        if wants_code:
            raise ForgeError(
                f"{path} asks to run code that comes with the model (auto_map)",
                "choose a base that transformers supports by itself",
                BAD_INPUT,
            )
