"""Several processes that measured the same: their mean, and how much they differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from msgspec import Struct
from scipy.special import stdtrit

FEWEST_PROCESSES = 3  # fewer say nothing about the spread between them


class Spread(Struct, frozen=True):
    """Numbers of one case over its processes. Shares are of `mean`; None where unknown."""

    processes: int
    mean: float
    half_width: float | None  # of the 95 % t interval between processes, of the logarithm: a share
    between: float | None  # standard deviation between processes; a share
    within: float | None  # median of the half-widths stated inside the processes; a share


def spread(values: Sequence[float], within: Sequence[float | None]) -> Spread:
    """Of positive `values`, one a process, and `within`, each one's own relative half-width."""
    mean, count = statistics.fmean(values), len(values)
    known = [w for w in within if w is not None and not math.isnan(w)]
    deviation = statistics.stdev(values) / mean if count > 1 else None
    half = None
    if deviation is not None and count >= FEWEST_PROCESSES:
        # Of logarithms, so that no interval reaches below 0.
        error = statistics.stdev(map(math.log, values)) / math.sqrt(count)
        half = float(stdtrit(count - 1, 0.975)) * error
    return Spread(count, mean, half, deviation, statistics.median(known) if known else None)
