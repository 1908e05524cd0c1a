"""What `auto` may stand for on this machine, and which of it fits; forge.planning.resolving takes it."""

import functools
import importlib.util
from dataclasses import asdict, dataclass, field, replace

from forge import models
from forge.training import ranks

ROUND = 32  # tokens that the length of a packed batch is a multiple of: fewer lengths, each of which has kernels
SHARE = 0.9  # of what is free: a prediction may be off by 15%, and other programs want memory, too


@dataclass(frozen=True)
class Choices:
    """How the base is held and computed with.

    `dtype`: of the computation. `unpack`: 4-bit weights held in `dtype`. `attention`: transformers' name of an
    implementation, or attention.NAME; None leaves it to the model. `optimizer`: transformers' name. `processes`
    train together; `sharded`: each holds a part of the weights. `predicted_mb`: of memory at the peak, graphics memory
    where there is a card; `free_mb` of it when this was chosen.
    """

    device: str
    dtype: str
    four_bit: bool
    unpack: bool
    attention: str | None
    optimizer: str
    gradient_checkpointing: bool
    processes: int = 1
    sharded: bool = False
    predicted_mb: int = field(default=0, compare=False)
    free_mb: int = field(default=0, compare=False)

    def as_dict(self) -> dict:
        """What stands in records: the same training has the same, whatever memory was free."""
        return {name: value for name, value in asdict(self).items() if name not in ("predicted_mb", "free_mb")}


def fitting(settings: dict, estimator, free: int) -> Choices:
    """The fastest way whose peak, in bytes, leaves something of what is free; where none does, the smallest.

    `estimator`: an Estimator of planning. Where the weights alone are too much no step is replayed: for 7B that takes
    seconds.
    """
    options = possible(settings)
    for option in options:
        if option is not options[-1] and estimator.held(settings, option) > SHARE * free:
            continue
        needed = estimator.train(settings, option).peak
        chosen = replace(option, predicted_mb=round(needed / 1e6), free_mb=round(free / 1e6))
        if needed <= SHARE * free:
            break
    return chosen


def possible(settings: dict) -> list[Choices]:
    """What the settings leave open, the fastest first and the smallest last.

    Repeating the forward pass costs a third of a step, a CPU's bfloat16 two fifths of one (`dtypes`), unpacking 4-bit
    weights in each layer half of one.
    """
    quantization, training = settings["quantization"], settings["training"]
    gpu, sharded = models.device() != "cpu", ranks.sharded()
    four_bit = quantization["load_in_4bit"]
    unpack = [True, False] if quantization["unpack"] == "auto" and not gpu else [quantization["unpack"] is True]
    if quantization["unpack"] == "auto" and sharded and not gpu:
        unpack = [True]  # packed weights cannot be sharded on a CPU
    checkpointing = training["gradient_checkpointing"]
    paged = gpu and not sharded  # the paged optimizer knows no shards
    optimizer = {"auto": "paged_adamw_8bit" if paged else "adamw_torch"}.get(training["optim"], training["optim"])
    return [
        Choices(
            device=models.device(),
            dtype=dtype,
            four_bit=four_bit,
            unpack=held and four_bit,
            attention=attention_of(training, dtype, gpu),
            optimizer=optimizer,
            gradient_checkpointing=repeated,
            processes=ranks.world(),
            sharded=sharded,
        )
        for held in (unpack if four_bit else [False])
        for dtype in dtypes(quantization["bnb_4bit_compute_dtype"], gpu)
        for repeated in ([False, True] if checkpointing == "auto" else [checkpointing])
    ]


def dtypes(wanted: str, gpu: bool) -> list[str]:
    """What to compute in, the fastest first."""
    found = models.compute_dtype(wanted)
    if wanted == "auto" and not gpu and found == "bfloat16" and not bfloat16_pays():
        return ["float32", "bfloat16"]
    return [found]


@functools.cache
def bfloat16_pays() -> bool:
    """Whether the processor multiplies enough faster in bfloat16 to make up for its many casts.

    Its flags do not tell: one with AVX512-BF16 and without AMX made 145 GFLOP/s in bfloat16 and 250 in float32, and
    steps of the starter took 1.43 times as long; there bfloat16 is only the way that takes half of the memory.
    """
    from forge import capacity

    pace = {dtype: max(capacity.multiplying("cpu", dtype, 0.05) for _ in range(3)) for dtype in ("bfloat16", "float32")}
    return pace["bfloat16"] > 1.2 * pace["float32"]


def attention_of(training: dict, dtype: str, gpu: bool) -> str | None:
    wanted = training["attention"]
    if wanted != "auto":
        return wanted
    if gpu and dtype != "float32" and importlib.util.find_spec("flash_attn"):
        return "flash_attention_2"
    if training["packing"]:
        return "rows"
    return None if gpu else "eager"
