"""The checks of Python and of the libraries: each does a little real work with its library.

A check takes the `Machine` and returns a `Result`; one that raises has failed.
"""

import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from forge.environment.machine import FAIL, OK, SETUP, SKIP, WARN, Card, Machine, Result, output
from forge.errors import one_line

PYTHONS = ((3, 11), (3, 13))  # trl needs 3.11; newer than 3.13 is untried
PRODUCT_TOLERANCE = 0.01  # relative; TF32 is off by 0.0005, a broken kernel by 1
NF4_TOLERANCE = 0.2  # relative to fp32; 4 bits of normally spread weights cost 0.09
SAFE_OLLAMA = (0, 17, 1)  # before: CVE-2026-7482, a crafted model file reads the server's memory


def check_environment(machine: Machine) -> Result:
    found = f"Python {platform.python_version()} in {sys.prefix}"
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Result(
            FAIL,
            f"{found}: 3.11, 3.12 or 3.13 is needed",
            "run make setup PYTHON3=/path/to/python3.11 (docs/environment.md says where to get one)",
        )
    conda = (Path(sys.prefix) / "conda-meta").is_dir()
    if sys.prefix == sys.base_prefix and not conda:
        return Result(
            FAIL, f"{found} is no virtual environment", "run make setup, then bash scripts/verify_environment.sh"
        )
    ours = (Path(sys.prefix) / "model-forge.created").exists()  # setup_environment.sh marks what it makes
    return Result(OK, found if ours else f"{found} (your own: make setup installs nothing into it)")


def check_torch(machine: Machine) -> Result:
    import torch

    version = f"{torch.__version__}"
    cards = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    cuda_13 = int((torch.version.cuda or "0").split(".")[0]) >= 13
    for card in cards:
        if cuda_13 and torch.cuda.get_device_capability(card) < (7, 5):
            return Result(
                FAIL,
                f"{version}: {torch.cuda.get_device_name(card)} is older than Turing, which CUDA 13 builds leave out",
                "run make setup TORCH=cu126",
            )
    for device in ["cpu", *(f"cuda:{card}" for card in cards)]:
        error = product_error(device)
        if not error < PRODUCT_TOLERANCE:  # NaN fails, too
            return Result(FAIL, f"{version}: a matrix product on {device} is off by {error:.2g}", SETUP)
    if not cards:
        return without_gpu(machine, version, torch.version.cuda)
    names = ", ".join(torch.cuda.get_device_name(card) for card in cards)
    return Result(OK, f"{version}, matrix products on the CPU and {names} agree")


def product_error(device: str) -> float:
    """Relative error of a 256 x 256 fp32 matrix product on a device against fp64 on the CPU."""
    import torch

    left, right = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    expected = left.double() @ right.double()
    product = (left.to(device) @ right.to(device)).double().cpu()
    return ((product - expected).norm() / expected.norm()).item()


def without_gpu(machine: Machine, version: str, cuda: str | None) -> Result:
    """No CUDA device: fine, a pity or the end, as the config and the card have it."""
    card = machine.card
    if machine.needs_gpu:
        remedy = "use a machine with an NVIDIA card, or CONFIG=config/training_config.yaml, which needs none"
        seen = f"{card.name} cannot be used" if card else "no NVIDIA card"
        remedy = wake_card(card, cuda) if card else remedy
        return Result(FAIL, f"{version}: {seen}, and {machine.config.path} needs one: {machine.needs_gpu}", remedy)
    if card:
        return Result(WARN, f"{version} cannot use the {card.name}: training on the CPU", wake_card(card, cuda))
    return Result(OK, f"{version}, CPU only: enough for {machine.name}")


def wake_card(card: Card, cuda: str | None) -> str:
    """How to make PyTorch use a card that the driver shows. `cuda`: what this PyTorch is built for, or None."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return "unset CUDA_VISIBLE_DEVICES, which hides the card"
    wheel = card.wheel()
    if wheel is None:
        return f"update the NVIDIA driver ({card.driver}) to 580 or newer, then run make setup TORCH=cu130"
    if cuda and cuda.split(".")[0] <= wheel[2:4]:
        return "restart (under WSL: wsl --shutdown in Windows), then see what nvidia-smi says"
    return f"run make setup TORCH={wheel} (driver {card.driver})"


def check_bitsandbytes(machine: Machine) -> Result:
    import bitsandbytes
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    random = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(size, 256, generator=random) for size in (128, 8))
    layer = bitsandbytes.nn.Linear4bit(256, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight.data = weight.clone()
    layer = layer.to(device)  # this is what quantizes
    if not hasattr(layer.weight, "quant_state") or layer.weight.quant_state is None:
        return Result(FAIL, f"{bitsandbytes.__version__} did not quantize a layer on {device}", SETUP)
    product = layer(rows.to(device)).cpu()
    stored = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float().cpu()
    exact, full = rows @ stored.T, rows @ weight.T
    error = ((product - exact).norm() / exact.norm()).item()
    loss = ((product - full).norm() / full.norm()).item()
    found = f"{bitsandbytes.__version__}, NF4 product on {device}: {error:.1g} off the dequantized, {loss:.2f} off fp32"
    if error < PRODUCT_TOLERANCE and loss < NF4_TOLERANCE:
        return Result(OK, f"{found} (limits {PRODUCT_TOLERANCE:g}, {NF4_TOLERANCE:g})")
    return Result(FAIL, f"{found} (limits {PRODUCT_TOLERANCE:g}, {NF4_TOLERANCE:g})", SETUP)


def check_triton(machine: Machine) -> Result:
    import torch

    if not torch.cuda.is_available():
        return Result(SKIP, "no CUDA device", "nothing: only GPU kernels are written in it")
    import triton

    try:
        add_by_triton()
    except Exception as error:
        # Training does without kernels compiled here, so this is no reason to stop.
        return Result(
            WARN,
            f"{triton.__version__} cannot compile a kernel: {one_line(error)[:150]}",
            f"sudo apt install build-essential python{sys.version_info[0]}.{sys.version_info[1]}-dev",
        )
    return Result(OK, f"{triton.__version__}, compiled and ran a kernel")


def add_by_triton(device: str = "cuda") -> None:
    """Compile and run a kernel that adds two vectors. Raises what triton raises, or ValueError."""
    import torch
    import triton
    import triton.language as tl

    @triton.jit
    def add(left, right, total, SIZE: tl.constexpr):
        place = tl.arange(0, SIZE)
        tl.store(total + place, tl.load(left + place) + tl.load(right + place))

    values = torch.arange(64, dtype=torch.float32, device=device)
    total = torch.empty_like(values)
    add[(1,)](values, values, total, SIZE=64)
    if not torch.equal(total, 2 * values):
        raise ValueError("its sum of two vectors is wrong")


def check_transformers(machine: Machine) -> Result:
    import torch
    import transformers

    with torch.no_grad():
        logits = tiny_model()(torch.arange(8).unsqueeze(0)).logits
    if tuple(logits.shape) != (1, 8, 64) or not torch.isfinite(logits).all():
        return Result(FAIL, f"{transformers.__version__}: a tiny Llama gives no finite logits", SETUP)
    return Result(OK, f"{transformers.__version__}, forward pass of a tiny Llama")


def tiny_model():
    """A Llama with random weights, 16,000 of them: [batch, tokens] ids below 64 -> [batch, tokens, 64] logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    ).eval()


def check_xformers(machine: Machine) -> Result:
    if importlib.util.find_spec("xformers") is None:
        return Result(SKIP, "not installed", "nothing: attention runs on PyTorch's own kernels")
    import torch
    import xformers.ops

    version = metadata.version("xformers")
    if not torch.cuda.is_available():
        return Result(SKIP, f"{version}, not tried: no CUDA device", "nothing: attention runs on PyTorch's own kernels")
    query = torch.randn(1, 16, 2, 32, device="cuda", dtype=torch.float16)  # batch, tokens, heads, width
    found = xformers.ops.memory_efficient_attention(query, query, query).transpose(1, 2)
    heads = query.transpose(1, 2)
    expected = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    error = (found.float() - expected.float()).abs().max().item()
    if not error < PRODUCT_TOLERANCE:
        return Result(FAIL, f"{version}: its attention is off by {error:.2g}", "pip uninstall xformers: not needed")
    return Result(OK, f"{version}, attention agrees with PyTorch's")


def check_llama(machine: Machine) -> Result:
    from forge.llamacpp import llama

    llama_cpp = llama.library()
    version = llama_cpp.__version__
    vocabulary = llama.source() / "models" / "ggml-vocab-qwen2.gguf"
    if not vocabulary.is_file():
        return Result(WARN, f"{version} loads; not tried, as {vocabulary} is missing", SETUP)
    model = llama_cpp.Llama(str(vocabulary), vocab_only=True, verbose=False)
    tokens = model.tokenize(b"forge", add_bos=False)
    text = model.detokenize(tokens)
    model.close()
    if text != b"forge":
        return Result(FAIL, f"{version}: a word is not itself after tokenizing", SETUP)
    offload = llama_cpp.llama_supports_gpu_offload()
    if machine.card and not offload:
        return Result(
            WARN,
            f"{version} is a CPU build, and there is a {machine.card.name}: chatting will be slow",
            "run make setup LLAMA_CUDA=1 (needs nvcc)",
        )
    return Result(OK, f"{version}, tokenized with Qwen2's vocabulary, {'GPU' if offload else 'CPU'} build")


def check_tensorflow(machine: Machine) -> Result:
    # Not imported: that takes seconds, fills the card's memory, and nothing here calls it.
    if importlib.util.find_spec("tensorflow") is None:
        return Result(SKIP, "not installed", "nothing: no phase uses it")
    try:
        version = metadata.version("tensorflow")
    except metadata.PackageNotFoundError:  # tensorflow-cpu and other builds
        version = "of unknown version"
    return Result(OK, f"{version} is installed; no phase uses it")


def check_peft(machine: Machine) -> Result:
    import peft

    adapter = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model(), adapter)
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    if not trainable or not all("lora_" in name for name in trainable):
        return Result(FAIL, f"{peft.__version__}: LoRA gives {len(trainable)} trainable tensors", SETUP)
    return Result(OK, f"{peft.__version__}, LoRA on a tiny Llama: {len(trainable)} trainable tensors")


def check_trl(machine: Machine) -> Result:
    import trl

    with tempfile.TemporaryDirectory() as folder:
        # bf16 is trl's default and refused on cards that have none
        settings = trl.SFTConfig(output_dir=folder, max_length=64, bf16=False, use_cpu=True, report_to="none")
    return Result(OK, f"{trl.__version__}, SFTConfig with max_length {settings.max_length}")


def check_datasets(machine: Machine) -> Result:
    import datasets

    rows = [{"text": "one"}, {"text": "two"}]
    if datasets.Dataset.from_list(rows).to_list() != rows:
        return Result(FAIL, f"{datasets.__version__}: rows are not themselves in a Dataset", SETUP)
    return Result(OK, f"{datasets.__version__}, a Dataset of {len(rows)} rows")


def check_pins(machine: Machine) -> Result:
    path = machine.root / "requirements-finetuning.txt"
    if not path.is_file():
        return Result(SKIP, f"no {path.name}", "restore it from git: the versions that were tested stand in it")
    wanted = pins(path.read_text(encoding="utf-8"))
    other = [difference for name, pin in wanted.items() if (difference := compare(name, pin))]
    if other:
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        return Result(
            WARN,
            f"{other[0]}{more} in {path.name}",
            f"{SETUP}, or in an environment of your own: pip install -r {path.name}",
        )
    return Result(OK, f"{len(wanted)} packages have the versions of {path.name}")


def pins(text: str) -> dict[str, str]:
    """Name -> version of the lines `name==version`; lines for other platforms (`; marker`) are left out."""
    found = re.findall(r"^\s*([\w.-]+)(?:\[[^\]]*\])?\s*==\s*([^\s;#\\]+)\s*(?:#.*|\\)?$", text, re.MULTILINE)
    return dict(found)


def compare(name: str, pin: str) -> str | None:
    """How the installed version differs from the pin. A local suffix (+cpu, +cu126) names a build, no version."""
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed, pinned to {pin}"
    same = installed == pin if "+" in pin else installed.split("+")[0] == pin
    return None if same else f"{name} is {installed}, pinned to {pin}"


def check_converter(machine: Machine) -> Result:
    from forge.llamacpp import llama

    return Result(OK, f"convert_hf_to_gguf.py, conversion/ and gguf-py/ in {llama.source()}")


def check_ollama(machine: Machine) -> Result:
    command = shutil.which("ollama") or (shutil.which("ollama.exe") if machine.wsl else None)
    if command is None:
        return Result(
            SKIP,
            "not found: only running the model in Ollama needs it",
            "get it from https://ollama.com/download if wanted",
        )
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", output(command, "--version") or "")
    if match is None:
        return Result(WARN, f"{command} does not tell its version", "install it again from https://ollama.com/download")
    version = tuple(map(int, match.groups()))
    if version < SAFE_OLLAMA:
        return Result(
            WARN, f"{match[0]} has CVE-2026-7482", "update it to 0.17.1 or newer: https://ollama.com/download"
        )
    return Result(OK, f"{match[0]} ({command})")
