"""The checks of `make env`: what the pipeline needs of a machine, one function a check.

`CHECKS` lists them in order with their level: critical and required ones decide whether the machine is ready,
optional ones never do. A check takes the `Machine`, does a little real work and returns a `Result`; one that
raises has failed. Sizes are in GB of 10**9 bytes, so that a "16 GB" machine, of which the kernel keeps some,
counts as one.
"""

import contextlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

from forge.config import Config
from forge.errors import ForgeError, one_line

OK, FAIL, WARN, SKIP = "ok", "FAIL", "warn", "skip"
CRITICAL, REQUIRED, OPTIONAL = "critical", "required", "optional"

PYTHONS = ((3, 11), (3, 13))  # trl needs 3.11; newer than 3.13 is untried
PRODUCT_TOLERANCE = 0.01  # relative; TF32 is off by 0.0005, a broken kernel by 1
NF4_TOLERANCE = 0.2  # relative to fp32; 4 bits of normally spread weights cost 0.09
STARTER_DISK, GPU_DISK = 3.0, 50.0  # GB: 135M model / 7B model (base 15, merged 15, 16-bit GGUF 15, Q4 5)
STARTER_RAM, GPU_RAM = 8.0, 18.0  # GB: training of the starter takes 6; merging of 7B wants RAM + swap of 18
LEAST_VRAM = 7.5  # GB: an "8 GB" card
WSL_RAM = 12.0  # GB: below, WSL's default of half of Windows' memory is worth raising
CLOCK_TOLERANCE = 2.0  # s: a Windows drive keeps times in steps of up to 2 s
SAFE_OLLAMA = (0, 17, 1)  # before: CVE-2026-7482, a crafted model file reads the server's memory
SETUP = "run make setup"
SWAP = "sudo fallocate -l 16G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile"


@dataclass(frozen=True)
class Result:
    """What a check found. `detail` and `remedy` are one line each; only `ok` has no remedy."""

    state: str
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """One row. `remedy` is for the case that the function raises."""

    name: str
    level: str
    function: Callable[["Machine"], Result]
    remedy: str = SETUP


@dataclass(frozen=True)
class Card:
    """The first NVIDIA card as the driver sees it, whether PyTorch can use it or not."""

    name: str
    driver: str

    def wheel(self) -> str | None:
        """The build of PyTorch for this driver: NVIDIA wants >= 580 for CUDA 13.x, >= 525 for CUDA 12.x."""
        major = int(self.driver.split(".")[0])
        return "cu130" if major >= 580 else "cu126" if major >= 525 else None


@dataclass(frozen=True)
class Machine:
    """What several checks ask for: the checkout's root, the config and what it needs, the card, WSL."""

    root: Path
    config: Config

    @property
    def name(self) -> str:
        return self.config.layout.name

    @cached_property
    def needs_gpu(self) -> str | None:
        """Why this config needs an NVIDIA card; None when a CPU will do."""
        return needs_gpu(self.config.values.training.optim, self.config.values.model.base_model_name)

    @cached_property
    def card(self) -> Card | None:
        return find_card()

    @cached_property
    def wsl(self) -> bool:
        return in_wsl()


def in_wsl() -> bool:
    return "microsoft" in platform.uname().release.lower()


def needs_gpu(optim: str, base: str) -> str | None:
    """Reason why training would take days without a card, from the optimizer and the base's name."""
    if optim.startswith("paged_"):
        return f"training.optim is {optim}"
    sizes = [float(size) for size in re.findall(r"(\d+(?:\.\d+)?)[bB](?![A-Za-z0-9])", base)]
    largest = max(sizes, default=0)
    return f"{base} has {largest:g} billion weights" if largest >= 3 else None


def find_card() -> Card | None:
    # WSL's driver is outside PATH when a login shell was skipped
    command = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if command is None:
        return None
    found = output(command, "--query-gpu=name,driver_version", "--format=csv,noheader")
    match = re.match(r"(.+?), (\d+\.[\d.]+)", found or "")
    return Card(match[1], match[2]) if match else None


def output(*command: str) -> str | None:
    """What a command prints on both streams; None when it fails or hangs."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


# -- running the checks ---------------------------------------------------------------------------------


def examine(machine: Machine, debug: bool = False) -> dict:
    """Run all checks, print a row each, and return the report that --json writes."""
    # no check may wait for a network or draw a progress bar into the table
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    width = max(len(check.name) for check in CHECKS)
    print(f"{'check':{width}} {'level':8} {'state':5} what was found ({machine.name}, {machine.config.path})")
    rows = []
    for check in CHECKS:
        # the name first: if a library kills the process, the last line names it
        print(f"{check.name:{width}} {check.level:8} ", end="", flush=True)
        result = judge(check, machine, debug)
        print(f"{result.state:5} {result.detail}", flush=True)
        if result.remedy:
            print(f"{'':{width + 15}} do {result.remedy}", flush=True)
        rows.append({"name": check.name, "level": check.level, **asdict(result)})
    return summarize(machine, rows)


def judge(check: Check, machine: Machine, debug: bool = False) -> Result:
    """The check's result; a failure of whatever kind is one line, never a traceback (unless debug)."""
    try:
        with contextlib.nullcontext() if debug else quiet():
            return check.function(machine)
    except ForgeError as error:
        return Result(FAIL, error.cause, error.remedy)
    except ModuleNotFoundError as error:
        return Result(FAIL, one_line(error), SETUP)
    except (Exception, SystemExit) as error:
        if debug:
            traceback.print_exc()
        return Result(FAIL, f"{type(error).__name__}: {one_line(error)[:200]}", check.remedy)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence both streams, also for C libraries, which write to the descriptors."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)


def summarize(machine: Machine, rows: list[dict]) -> dict:
    counts = {state: sum(row["state"] == state for row in rows) for state in (OK, WARN, SKIP, FAIL)}
    optional = sum(row["state"] == FAIL and row["level"] == OPTIONAL for row in rows)
    ready = counts[FAIL] == optional
    summary = (
        f"{counts[OK]} ok, {counts[WARN]} warning{'' if counts[WARN] == 1 else 's'}, {counts[SKIP]} skipped, "
        f"{counts[FAIL]} failed{f' ({optional} optional)' if optional else ''}: {'ready' if ready else 'NOT ready'}"
    )
    return {
        "config": str(machine.config.path),
        "needs_gpu": machine.needs_gpu,
        "ready": ready,
        "counts": counts,
        "summary": summary,
        "checks": rows,
    }


# -- the seven checks of old ----------------------------------------------------------------------------


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
    from forge import llama

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


# -- the other libraries --------------------------------------------------------------------------------


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
    from forge import llama

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


# -- the machine ----------------------------------------------------------------------------------------


def check_disk(machine: Machine) -> Result:
    models = machine.root / "models"  # often a link to a larger disk
    free = shutil.disk_usage(models if models.exists() else machine.root).free / 1e9
    wanted = GPU_DISK if machine.needs_gpu else STARTER_DISK
    found = f"{free:.1f} GB free, {wanted:g} GB wanted for {machine.name}"
    remedy = "free some space, or make models/ a link to a folder on a larger disk"
    if free < wanted / 2:
        return Result(FAIL, found, remedy)
    return Result(WARN, found, remedy) if free < wanted else Result(OK, found)


def memory() -> tuple[float, float]:
    """RAM and swap in GB; a container's limit counts as its RAM."""
    import psutil

    limits = [psutil.virtual_memory().total]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no container, or "max"
            limits.append(int(Path(path).read_text(encoding="utf-8")))
    return min(limits) / 1e9, psutil.swap_memory().total / 1e9


def memory_remedy(machine: Machine, ram: float) -> str:
    return wslconfig(ram) if machine.wsl else SWAP


def wslconfig(ram: float, swap: int = 16) -> str:
    """The lines that give WSL three quarters of Windows' memory instead of half, and `swap` GB of swap.

    What Windows has is taken to be twice what WSL shows, which is WSL's default.
    """
    return (
        f"write into %UserProfile%\\.wslconfig (Windows) the lines [wsl2], memory={max(round(1.5 * ram), 2)}GB, "
        f"swap={swap}GB, then run wsl --shutdown"
    )


def check_ram(machine: Machine) -> Result:
    ram, swap = memory()
    if machine.needs_gpu:
        have, wanted, found = ram + swap, GPU_RAM, f"{ram:.1f} GB RAM + {swap:.1f} GB swap"
    else:
        have, wanted, found = ram, STARTER_RAM, f"{ram:.1f} GB RAM"
    found = f"{found}, {wanted:g} GB wanted for {machine.name}"
    return Result(OK, found) if have >= wanted else Result(WARN, found, memory_remedy(machine, ram))


def check_swap(machine: Machine) -> Result:
    ram, swap = memory()
    wanted = GPU_RAM if machine.needs_gpu else STARTER_RAM
    if swap == 0 and ram < wanted:
        return Result(WARN, f"none, and less than {wanted:g} GB RAM", memory_remedy(machine, ram))
    return Result(OK, f"{swap:.1f} GB" if swap else f"none; RAM alone has the {wanted:g} GB")


def check_vram(machine: Machine) -> Result:
    import torch

    if not torch.cuda.is_available():
        return Result(SKIP, "no CUDA device", "nothing: the row torch says whether one is needed")
    free, total = (size / 1e9 for size in torch.cuda.mem_get_info(0))
    found = f"{total:.1f} GB, {free:.1f} GB of it free"
    if machine.needs_gpu and total < LEAST_VRAM:
        return Result(
            FAIL,
            f"{found}; {machine.config.path} needs {LEAST_VRAM:g} GB",
            "use a card with 8 GB or more, or a smaller base model (model.base_model_name)",
        )
    return Result(OK, found)


def check_token(machine: Machine) -> Result:
    """Whether there is a Hugging Face token, and where; never what it is."""
    names = ("HF_TOKEN", "HUGGING_FACE_TOKEN")
    absent = "write HF_TOKEN=... into .env, if you use a gated model or upload (https://hf.co/settings/tokens)"
    for name in names:
        if os.environ.get(name, "").strip():
            return Result(OK, f"present: {name} in the environment")
    path = machine.root / ".env"
    if not path.exists():
        return Result(SKIP, "absent: only gated models and uploads need one", absent)
    from dotenv import dotenv_values

    try:
        values = dotenv_values(path, interpolate=False, encoding="utf-8-sig")
    except (OSError, ValueError):  # the error's text could hold a part of it
        return Result(WARN, ".env cannot be read", "save .env as a UTF-8 text file that you may read")
    for name in names:
        value = (values.get(name) or "").strip()
        if value and "your_token" not in value:  # the line that instructions give as an example
            return Result(OK, f"present: {name} in .env")
    return Result(SKIP, "absent: .env has none; only gated models and uploads need one", absent)


# -- traps, most of them WSL's --------------------------------------------------------------------------


def check_folder(machine: Machine) -> Result:
    root = machine.root.resolve()
    if machine.wsl and re.match(r"/mnt/[a-z](/|$)", str(root)):
        return Result(
            WARN,
            f"{root} is a Windows drive: many times slower, and its files' times are coarse",
            "clone into a folder of Linux, such as ~/model-forge, and work there",
        )
    return Result(OK, f"{root}{' (a folder of Linux)' if machine.wsl else ''}")


def check_clock(machine: Machine) -> Result:
    """make decides by files' times: they must be neither skewed nor in the future."""
    with tempfile.NamedTemporaryFile(dir=machine.root, prefix=".clock-") as handle:
        skew = Path(handle.name).stat().st_mtime - time.time()
    if abs(skew) > CLOCK_TOLERANCE:
        remedy = "sudo hwclock -s (or wsl --shutdown in Windows)" if machine.wsl else "sudo timedatectl set-ntp true"
        return Result(WARN, f"a file written now is dated {skew:+.0f} s off", remedy)
    future = future_files(machine.root, time.time() + CLOCK_TOLERANCE)
    if future:
        return Result(
            WARN,
            f"{len(future)} files are dated in the future, first {future[0]}: make takes them for new again and again",
            "when the clock is right: find . -path ./.git -prune -o -type f -newermt '2 seconds' -exec touch {} +",
        )
    return Result(OK, f"files written now are dated right ({abs(skew):.1f} s off), none in the future")


def future_files(root: Path, limit: float) -> list[str]:
    """Files dated after `limit`, relative to root; hidden folders and environments are left out."""
    found = []
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = [name for name in folders if name[0] != "." and not (here / name / "pyvenv.cfg").exists()]
        for name in names:
            with contextlib.suppress(OSError):  # another process may just have removed it
                if (here / name).lstat().st_mtime > limit:
                    found.append(str((here / name).relative_to(root)))
    return sorted(found)


def check_wsl_memory(machine: Machine) -> Result:
    if not machine.wsl:
        return Result(SKIP, "this is not WSL", "nothing: only Windows limits it so")
    ram, swap = memory()
    found = f"WSL gives {ram:.1f} GB RAM and {swap:.1f} GB swap"
    return (
        Result(OK, found) if ram >= WSL_RAM else Result(WARN, f"{found}, its share of Windows' memory", wslconfig(ram))
    )


def check_line_endings(machine: Machine) -> Result:
    """CRLF breaks make's recipes and bash with messages that name neither."""
    root = machine.root
    scripts = [path for path in [root / "Makefile", *sorted((root / "scripts").glob("*.sh"))] if path.is_file()]
    configs = sorted(path for path in (root / "config").rglob("*") if path.suffix in (".yaml", ".yml"))
    broken, odd = (
        [str(path.relative_to(root)) for path in paths if b"\r\n" in path.read_bytes()] for paths in (scripts, configs)
    )
    if not broken and not odd:
        return Result(OK, f"LF in {len(scripts) + len(configs)} files (Makefile, scripts/*.sh, config)")
    names = " ".join(map(shlex.quote, broken + odd))
    return Result(FAIL if broken else WARN, f"CRLF line endings: {names}", f"sed -i 's/\\r$//' {names}")


CHECKS = (
    Check("environment", CRITICAL, check_environment),
    Check("torch", CRITICAL, check_torch, "run make setup TORCH=cpu, cu126 or cu130 (docs/environment.md says which)"),
    Check("bitsandbytes", REQUIRED, check_bitsandbytes),
    Check("triton", REQUIRED, check_triton),
    Check("transformers", REQUIRED, check_transformers),
    Check("xformers", OPTIONAL, check_xformers, "pip uninstall xformers: nothing here needs it"),
    Check("llama-cpp-python", REQUIRED, check_llama),
    Check("tensorflow", OPTIONAL, check_tensorflow, "nothing: no phase uses it"),
    Check("peft", REQUIRED, check_peft),
    Check("trl", REQUIRED, check_trl),
    Check("datasets", REQUIRED, check_datasets),
    Check("pins", REQUIRED, check_pins),
    Check("converter", REQUIRED, check_converter),
    Check("ollama", OPTIONAL, check_ollama, "install it again from https://ollama.com/download"),
    Check("disk", REQUIRED, check_disk, "check that the checkout's folder can be read"),
    Check("RAM", REQUIRED, check_ram),
    Check("swap", OPTIONAL, check_swap),
    Check(
        "VRAM", CRITICAL, check_vram, "restart (under WSL: wsl --shutdown in Windows), then see what nvidia-smi says"
    ),
    Check("Hugging Face token", OPTIONAL, check_token),
    Check("project folder", OPTIONAL, check_folder, "cd to the checkout's root"),
    Check("clock", REQUIRED, check_clock, "make the checkout's folder writable for you"),
    Check("WSL memory", OPTIONAL, check_wsl_memory),
    Check("line endings", REQUIRED, check_line_endings, "make the checkout's files readable for you"),
)
