"""What each phase needs: memory and graphics memory at its peak, from shapes and settings.

Constants of training are measured, on the CPU of two cores that docs/plan.md describes; none is measured on a GPU, and
of the phases after it those of merge and gguf are fitted to 0.5B, 1.5B and 7B (docs/phases.md), the others are not.
"""

from dataclasses import dataclass

from forge.evaluating import measuring, scoring
from forge.planning.batch import Batch
from forge.training.choices import ROUND, Choices
from forge.weights.hollow import Weights
from forge.weights.streaming import TOKENS_AT_ONCE

LIBRARIES = 540e6  # bytes of an interpreter with torch, transformers, trl, peft and bitsandbytes
LIGHT = 380e6  # the same without trl and peft
TOKENIZER = 12  # bytes of memory a byte of tokenizer.json
KERNELS = 0.45e6  # bytes of each matrix product that oneDNN has made a kernel for
ALLOCATOR, LOST = 1.7, 0.4e9  # times the tensors of a step, and bytes at most: what malloc loses between them
QUANTIZING = 14  # bytes a weight of the largest layer, while bitsandbytes packs it on a CPU
CUDA = 2.5e9  # bytes of RAM beside a card: CUDA's libraries and the driver's own; from what others report
CARD = 1.05  # times the tensors on a card: PyTorch's allocator rounds up and keeps blocks
GROWN = 2.5  # times the keys and values of an answer: they are copied for each token
PIECES = 60e6  # bytes of weights that are read, merged and wait to be written
MERGED = 6  # bytes a weight of the adapter, with what peft holds beside it
WHOLE = 18  # bytes a weight of a layer that is merged as a whole, its change in 32 bits twice
PERMUTED = 4  # bytes a weight of the largest layer: weights whose rows llama.cpp reorders (Llama's) come as a whole
SCORES = 0.5e9  # bytes at most of what compare.heldout_rows scores

# Bytes of state a trained weight, by transformers' names of optimizers; 8 for those that are not listed.
STATES = {"adamw_8bit": 2.1, "adamw_bnb_8bit": 2.1, "paged_adamw_8bit": 2.1, "lion_8bit": 1.1, "paged_lion_8bit": 1.1}
STATES |= {"lion_32bit": 4, "paged_lion_32bit": 4, "sgd": 0, "adafactor": 0.1}
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Need:
    """Bytes at the peak of a phase. `memory` must be there; `mapped` are pages of the weights' files that are resident
    beside it while there is room, and are dropped when there is none; `card` graphics memory, 0 without.

    `parts`: what `memory` (or, where there is a card, `card`) consists of.
    """

    memory: int
    card: int = 0
    mapped: int = 0
    parts: dict[str, int] | None = None

    @property
    def peak(self) -> int:
        """What decides whether it fits: graphics memory where there is a card."""
        return self.card or self.memory

    @property
    def resident(self) -> int:
        """As ru_maxrss tells it where memory is plenty."""
        return self.memory + self.mapped


def sum_up(parts: dict[str, float], mapped: float = 0, card: float = 0) -> Need:
    return Need(int(sum(parts.values())), int(card), int(mapped), {name: int(size) for name, size in parts.items()})


def held(weights: Weights, choices: Choices, double: bool) -> int:
    """Bytes of the base as training holds it: packed layers in 4 bits, everything else in the compute dtype."""
    each = BYTES[choices.dtype]
    if choices.four_bit and not choices.unpack:
        return weights.four_bit_bytes(double) + (weights.total - weights.packed) * each
    return weights.total * each


def train(
    weights: Weights, adapter: int, tokenizer: int, choices: Choices, settings: dict, step: int, kernels: int
) -> Need:
    """`step`: bytes of the largest step's tensors (step.Replay.peak); `kernels`: how many products oneDNN has seen."""
    double = settings["quantization"]["bnb_4bit_use_double_quant"]
    base = held(weights, choices, double)
    trained = adapter * (4 + STATES.get(choices.optimizer, 8))
    if choices.device != "cpu":
        parts = {"weights": base, "adapter and optimizer": trained, "activations and logits": step * CARD}
        card = sum(parts.values())
        return Need(int(CUDA + TOKENIZER * tokenizer), int(card), 0, {name: int(size) for name, size in parts.items()})
    parts = {
        "libraries": LIBRARIES + TOKENIZER * tokenizer,
        "weights": base,
        "adapter and optimizer": trained,
        "activations and logits": min(step * ALLOCATOR, step + LOST),
        "kernels": kernels * KERNELS,
    }
    # The 16-bit file of a base that was packed stays mapped, because some of its weights are used where they lie.
    return sum_up(parts, mapped=weights.packed * 2 if choices.four_bit else 0)


def verify_adapter(
    weights: Weights, adapter: int, tokenizer: int, dtype: str, cache: int, tokens: int, vocabulary: int
) -> Need:
    """`dtype`: of the computation; `cache`: bytes of keys and values of the answers asked at once; `tokens` scored."""
    parts = {
        "libraries": LIGHT + TOKENIZER * tokenizer,
        "weights": weights.total * BYTES[dtype],
        "adapter": adapter * 8,
        "answers": cache * GROWN,
        "scores": scores(tokens, vocabulary),
    }
    return sum_up(parts)


def evaluate(weights: Weights, adapter: int, tokenizer: int, dtype: str, cache: int) -> Need:
    """The base, and beside it, where that is small, a model of random weights as a control; the adapter is added to the
    base's own weights. `cache` as in `verify_adapter`; logits of pairs come in batches."""
    parts = {
        "libraries": LIGHT + TOKENIZER * tokenizer,
        "weights": weights.total * BYTES[dtype],
        "control": weights.total * BYTES[dtype] if weights.total * 2 <= measuring.LARGEST_RANDOM else 0,
        "adapter": adapter * 8,
        "answers": cache * GROWN,
        "logits": 2 * scoring.LOGIT_BYTES,
    }
    return sum_up(parts)


def scores(tokens: int, vocabulary: int) -> float:
    """Bytes of the log-probabilities of held-out rows that are kept to compare with."""
    return min(SCORES, 4.0 * tokens * vocabulary)


def merge(
    weights: Weights, adapter: int, tokenizer: int, dtype: str, lora: dict, base: str, tokens: int, vocabulary: int
) -> Need:
    """Some rows of a weight at a time. `lora`: the config's section, `base`: merge.base.

    An adapter that peft alone can merge takes the whole model; scripts/merge_adapter.py then asks for that.
    """
    parts = merging(weights, adapter, lora, base)
    if base == "measure":
        parts |= streamed(weights, tokenizer, dtype, tokens, vocabulary)
    return sum_up(parts)


def merging(weights: Weights, adapter: int, lora: dict, base: str) -> dict[str, float]:
    """Parts of what merges: DoRA wants the norm of whole weights, bitsandbytes rounds whole ones."""
    whole = lora["use_dora"] or base != "base"
    return {
        "libraries": LIBRARIES,
        "pieces": PIECES,
        "adapter": adapter * MERGED,
        "largest layer": weights.layer * WHOLE if whole else 0,
    }


def verify_merged(weights: Weights, adapter: int, tokenizer: int, dtype: str, tokens: int, vocabulary: int) -> Need:
    """Layer by layer from the disk: the largest weight as it is and as it computes, log-probabilities twice."""
    return sum_up(streamed(weights, tokenizer, dtype, tokens, vocabulary) | {"adapter": adapter * 8})


def streamed(weights: Weights, tokenizer: int, dtype: str, tokens: int, vocabulary: int) -> dict[str, float]:
    """Parts of a model that runs from the disk (forge.weights.streaming)."""
    return {
        "libraries": LIGHT + TOKENIZER * tokenizer,
        "largest weight": max(weights.head * BYTES[dtype], weights.layer * (BYTES[dtype] + 4)),
        "layer": min(tokens, TOKENS_AT_ONCE) * weights.widest * 3 * 4,
        "scores": 2 * scores(tokens, vocabulary),
    }


def gguf(weights: Weights, adapter: int, tokenizer: int, lora: dict, base: str) -> Need:
    """Straight from the weights: pieces of them, and the vocabulary."""
    parts = merging(weights, adapter, lora, base)
    return sum_up(parts | {"permuted": weights.layer * PERMUTED, "vocabulary": 2 * TOKENIZER * tokenizer})


def verify_gguf(weights: Weights, tokenizer: int, dtype: str, file: int, tokens: int, vocabulary: int) -> Need:
    """The merged model from the disk, then the GGUF, `file` bytes that stay mapped."""
    return sum_up(streamed(weights, tokenizer, dtype, tokens, vocabulary), mapped=file)


def small(tokenizer: int) -> Need:
    """A phase that loads no weights."""
    return sum_up({"libraries": LIGHT + TOKENIZER * tokenizer})


def activations(text, batch: Batch, choices: Choices) -> int:
    """Bytes of a step where it cannot be replayed: 34 a token and unit of width in 16 bits, and 5 for each pair of
    tokens and head where scores are kept (Korthikanti et al. 2022); with checkpointing one layer and the boundaries.

    Logits in 16 bits, and three times in 32. `text`: the language model's config.
    """
    rows = 2 if batch.stage == "dpo" else 1
    tokens, width = rows * sum(batch.lengths), text.hidden_size
    each = BYTES[choices.dtype]
    layer = 17 * each * tokens * width
    if choices.device == "cpu" or choices.attention == "eager":
        layer += rows * sum(5 * length**2 * text.num_attention_heads for length in batch.lengths)
    layers = text.num_hidden_layers
    kept = layer + layers * each * tokens * width if choices.gradient_checkpointing else layers * layer
    return kept + batch.targets * text.vocab_size * (each + 12)


def kernels(batches: list[Batch], steps: int) -> int:
    """How many products oneDNN makes a kernel for: each batch and each row of another length has its own."""
    widest = max(len(batch.lengths) for batch in batches)
    longest = max(max(batch.lengths) for batch in batches)
    return 25 * min(steps, widest * longest // ROUND) + 6 * min(steps * widest, longest)
