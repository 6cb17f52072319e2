"""Judging one series of samples: is it steady, how sure is its mean, what is its shape.

All functions are pure. scripts/coverage shows how often the intervals of the whole
procedure (warm-up, looks, stopping) hold the truth.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from bench.stats import autoregression

WINDOW = 3  # samples in each of the two windows that must agree
LEVEL_TOLERANCE = 0.02  # windows closer than this agree whatever their spread
FEWEST = 8  # samples from which an interval is stated
SURE, SUSPECTED = 0.98, 0.7  # confidence that there is a drift: to say so, to sample on


class Interval(Struct, frozen=True):
    """A mean with its confidence interval, in the unit of the samples."""

    mean: float
    low: float
    high: float

    @property
    def relative_half_width(self) -> float:
        """Half the interval's width as a share of the mean."""
        return (self.high - self.low) / 2 / self.mean if self.mean else math.inf


def steady(samples: Sequence[float], window: int = WINDOW) -> bool:
    """Whether the last two windows of `samples` agree in level and spread.

    They agree when their means differ by less than 2 %. Where the noise is wider
    than that they agree when their ranges overlap, their means differ by less
    than twice the standard error of the difference, and the earlier one is not
    four times as spread as the later (a decline is). False with too few samples.
    """
    if len(samples) < 2 * window:
        return False
    before, after = samples[-2 * window : -window], samples[-window:]
    gap = abs(statistics.fmean(after) - statistics.fmean(before))
    if gap <= LEVEL_TOLERANCE * statistics.fmean(after):
        return True
    spreads = statistics.variance(before), statistics.variance(after)
    overlap = min(before) < max(after) and min(after) < max(before)
    return overlap and gap <= 2 * math.sqrt(sum(spreads) / window) and spreads[0] <= 16 * spreads[1]


def interval(samples: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Mean of `samples` with an interval that knows they are correlated; None under 8.

    See autoregression for the method. An interval about independent samples would
    be half as wide as the truth where a slow moment lasts a few samples.
    """
    if len(samples) < FEWEST:
        return None
    mean = statistics.fmean(samples)
    if autoregression.is_flat(samples):
        return Interval(mean, mean, mean)
    half = autoregression.level(samples).half_width(confidence)
    return Interval(mean, mean - half, mean + half)


def drifts(samples: Sequence[float], tolerance: float, confidence: float) -> bool:
    """Whether the series changes, from end to end, by more than `tolerance` of its mean.

    False unless that is so sure; False under 8 samples.
    """
    if len(samples) < FEWEST or autoregression.is_flat(samples):
        return False
    change = autoregression.change(samples)
    size = abs(change.centre)
    tolerated = tolerance * statistics.fmean(samples)
    return size > tolerated and size > change.half_width(confidence)


def two_state(samples: Sequence[float], tolerance: float) -> bool:
    """Whether the samples fall into two levels further apart than `tolerance` of their mean.

    The best split into two groups of at least a fifth each (and three samples) must
    leave a gap between the groups' means of so many standard deviations within a
    group as one group hardly ever shows: 4.2 + 30/n, found by simulation for normal,
    log-normal, uniform, spiked and autoregressive series of 8 to 1,000 samples (under
    0.5 % each). Fewer in the smaller group are spikes, which belong to one state.
    """
    count = len(samples)
    least = max(3, math.ceil(count / 5))
    if count < FEWEST or autoregression.is_flat(samples):
        return False
    ordered = np.sort(samples)
    mean = ordered.mean()
    ordered = ordered - mean
    low_count = np.arange(least, count - least + 1)
    sums, squares = np.cumsum(ordered), np.cumsum(ordered**2)
    low_sum = sums[low_count - 1]
    high_sum, high_count = sums[-1] - low_sum, count - low_count
    within = squares[-1] - low_sum**2 / low_count - high_sum**2 / high_count
    best = int(within.argmin())
    gap = high_sum[best] / high_count[best] - low_sum[best] / low_count[best]
    spread = math.sqrt(max(within[best], 0.0) / (count - 2))
    return bool(gap > tolerance * mean and gap > (4.2 + 30 / count) * spread)


def percentile(samples: Sequence[float], share: float) -> float:
    """Linear-interpolated percentile (numpy's default, type 7 of Hyndman and Fan 1996)."""
    return float(np.percentile(np.asarray(samples), 100 * share))
