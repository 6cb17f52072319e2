"""Judging one series of samples: is it steady, how sure is its mean, is that enough.

All functions are pure. Method: non-overlapping batch means (Alexopoulos and
Seila, "Output Data Analysis", Handbook of Simulation, 1998), looked at on a
geometric schedule with two passes in a row, because a look after every sample
with a stop at the first narrow interval destroys its coverage.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from msgspec import Struct
from scipy.special import stdtrit

WINDOW = 3  # samples in each of the two windows that must agree
LEVEL_TOLERANCE = 0.02  # windows closer than this agree whatever their spread
FEWEST_BATCHES = 8


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
    """Mean of `samples` with a t interval over batch means; None under 8 samples.

    The number of batches grows with the root of the number of samples, so that
    batches become long enough to be nearly independent.
    """
    if len(samples) < FEWEST_BATCHES:
        return None
    count = max(FEWEST_BATCHES, math.isqrt(len(samples)))
    size = len(samples) // count
    recent = samples[len(samples) - count * size :]
    means = [statistics.fmean(recent[i : i + size]) for i in range(0, len(recent), size)]
    error = statistics.stdev(means) / math.sqrt(count)
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * error
    mean = statistics.fmean(samples)
    return Interval(mean, mean - half, mean + half)


def is_look(count: int, first: int) -> bool:
    """Whether the stopping rule looks when `count` samples are there.

    Looks come at `first` and then each time the number has grown by a quarter.
    """
    look = first
    while look < count:
        look = math.ceil(look * 1.25)
    return look == count


def percentile(samples: Sequence[float], share: float) -> float:
    """Linear-interpolated percentile (numpy's default, type 7 of Hyndman and Fan 1996)."""
    import numpy as np

    return float(np.percentile(np.asarray(samples), 100 * share))
