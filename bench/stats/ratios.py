"""Two paired series of positive numbers → their ratio, its interval, and what may be said of it.

All functions are pure. Method: the t interval of the mean log ratio of the pairs,
turned back into a ratio (paired t test on logarithms; a ratio of geometric means).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct
from scipy.special import stdtrit

from bench.stats.spread import FEWEST_PROCESSES

FEWEST_PAIRS = FEWEST_PROCESSES  # each side of a pair is a process
CONFIDENCE = 0.99

Change = Literal["higher", "lower", "same", "inconclusive"]


class RatioInterval(Struct, frozen=True):
    """A ratio (1: no change) with its confidence interval."""

    ratio: float
    low: float
    high: float


def ratio(before: Sequence[float], after: Sequence[float]) -> float:
    """Geometric mean of `after` ÷ `before` over their pairs. All numbers must be positive."""
    return math.exp(statistics.fmean(_logs(before, after)))


def ratio_interval(
    before: Sequence[float], after: Sequence[float], confidence: float = CONFIDENCE
) -> RatioInterval | None:
    """`ratio` with its t interval over the pairs; None under 3 pairs.

    Raises ValueError where the lengths differ or a number is not positive.
    """
    logs = _logs(before, after)
    if len(logs) < FEWEST_PAIRS:
        return None
    mean = statistics.fmean(logs)
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    half = float(stdtrit(len(logs) - 1, (1 + confidence) / 2)) * error
    return RatioInterval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def _logs(before: Sequence[float], after: Sequence[float]) -> list[float]:
    return [math.log(b) - math.log(a) for a, b in zip(before, after, strict=True)]


def judge(found: RatioInterval, min_effect: float) -> Change:
    """What the interval allows to say, where a change of up to `min_effect` does not matter.

    Higher or lower: it excludes 1 and the ratio is further than `min_effect` from 1.
    Same: it lies within `min_effect` of 1. Anything else is inconclusive.
    """
    if found.low > 1 and found.ratio > 1 + min_effect:
        return "higher"
    if found.high < 1 and found.ratio < 1 - min_effect:
        return "lower"
    if 1 - min_effect <= found.low and found.high <= 1 + min_effect:
        return "same"
    return "inconclusive"
