"""About how long each phase takes: floating-point work divided by a measured rate, and shares of that rate that were
measured. Rough: a factor of two either way is usual, and no share was measured on a GPU."""

from forge.capacity import Rates
from forge.weights.hollow import Weights

# Shares of the rate of large matrix products, measured with the starter on two cores: 200 tokens/s of training,
# 610 of the evaluation's pairs, 170 of answers, 48 at once. Scoring with a 7B from the disk had the same share.
TRAINING, SCORING, ANSWERING = 0.55, 0.8, 0.26
MERGED = 345e6  # bytes a second: a model of 15.2 GB took 44 s
QUANTIZED = (
    24e6  # bytes a second of 16-bit weights on one core, merged on the way: a model of 15.2 GB took 328 s on two
)
LOADED = 6.0  # seconds in which the libraries are imported


def train(weights: Weights, adapter: int, tokens: float, checkpointing: bool, evaluated: float, rates: Rates) -> float:
    """Seconds for `tokens` trained and `evaluated` more that are only computed forward.

    A frozen weight costs two operations a token forward and two backward, a trained one two more (Kaplan et al. 2020);
    checkpointing repeats the forward ones. The vocabulary is projected to for half the tokens.
    """
    again = 2 if checkpointing else 0
    each = weights.linear * (4 + again) + adapter * (6 + again) + weights.head * 2
    return (each * tokens + 2 * weights.linear * evaluated) / (rates.compute * TRAINING)


def score(weights: Weights, tokens: float, rates: Rates) -> float:
    return 2 * (weights.linear + weights.head) * tokens / (rates.compute * SCORING)


def answer(weights: Weights, tokens: float, rates: Rates) -> float:
    return 2 * (weights.linear + weights.head) * tokens / (rates.compute * ANSWERING)


def merge(size: int, rates: Rates) -> float:
    return size / MERGED + size / rates.hashing


def gguf(size: int, quantizations: int, cores: int, rates: Rates) -> float:
    return quantizations * size / (QUANTIZED * cores) + size / rates.hashing
