"""About how long each phase takes: floating-point work divided by a measured rate, and shares of that rate that were
measured on the starter. Rough: a factor of two either way is usual."""

from forge.planning.machine import Rates
from forge.weights.hollow import Weights

# Shares of the rate of large matrix products, measured with the starter on two cores: 312 tokens/s of training,
# 1,302 of forward passes, 464 of answers, 24 at once. Larger models do better; none was measured.
TRAINING, SCORING, ANSWERING = 0.2, 0.4, 0.14
MERGED = 190e6  # bytes a second: a model of 15.2 GB took 72 to 93 s on a machine that was slow that day
QUANTIZED = 41e6  # bytes a second of 16-bit weights on one core: 186 s on two
LOADED = 6.0  # seconds in which the libraries are imported


def train(weights: Weights, adapter: int, tokens: float, checkpointing: bool, evaluated: float, rates: Rates) -> float:
    """Seconds for `tokens` trained and `evaluated` more that only a loss is measured of.

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
