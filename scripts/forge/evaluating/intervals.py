"""Intervals and sample sizes, by scipy. Every interval has 90%: its two ends are one-sided bounds of 95% each.

How often they hold what they should, and how often a gate on them errs, is simulated in bench/evaluation.py.
"""

import math
from collections.abc import Sequence

CONFIDENCE = 0.90
POWER = 0.95

Interval = tuple[float, float]
UNKNOWN: Interval = (math.nan, math.nan)


def of_mean(values: Sequence[float]) -> Interval:
    """Student's interval of a mean; unknown for fewer than two values, or when one is not finite."""
    from scipy import stats

    if len(values) < 2 or not all(map(math.isfinite, values)):
        return UNKNOWN
    if max(values) == min(values):
        return float(values[0]), float(values[0])
    found = stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return float(found.low), float(found.high)


def of_rate(count: int, total: int) -> Interval:
    """Wilson's interval of a share (Wilson 1927); unknown of nothing."""
    from scipy import stats

    if total == 0:
        return UNKNOWN
    found = stats.binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def of_difference(before: Sequence[bool], after: Sequence[bool]) -> Interval:
    """Interval of (share after - share before) of the same items: Newcombe 1998 (Statistics in Medicine 17:2635), his
    method 10, which squares and adds Wilson's limits with the correlation of the pairs."""
    total = len(before)
    if total == 0:
        return UNKNOWN
    both = sum(one and other for one, other in zip(before, after, strict=True))
    first, second = sum(before), sum(after)
    neither = total - first - second + both
    lost, won = first - both, second - both
    product = first * (total - first) * second * (total - second)
    cross = both * neither - lost * won
    if cross > 0:
        cross = max(cross - total / 2, 0)  # his correction for continuity
    correlation = cross / math.sqrt(product) if product else 0.0
    (low_1, high_1), (low_2, high_2) = of_rate(first, total), of_rate(second, total)
    share_1, share_2 = first / total, second / total
    below = _spread(share_2 - low_2, high_1 - share_1, correlation)
    above = _spread(high_2 - share_2, share_1 - low_1, correlation)
    return share_2 - share_1 - below, share_2 - share_1 + above


def _spread(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(one * one - 2 * correlation * one * other + other * other, 0.0))


def size_needed(spread: float, margin: float) -> int:
    """Pairs by which an equal model passes a gate of non-inferiority with probability POWER.

    `spread`: standard deviation of the differences, `margin`: how much worse still passes; both in one unit.
    """
    from scipy import stats

    one_sided = stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(POWER)
    return math.ceil((one_sided * spread / margin) ** 2)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact two-sided p of McNemar's test: whether as many items changed one way as the other. A diagnostic."""
    from scipy import stats

    changed = [after_one for before_one, after_one in zip(before, after, strict=True) if before_one != after_one]
    return float(stats.binomtest(sum(changed), len(changed)).pvalue) if changed else 1.0
