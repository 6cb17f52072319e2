"""When to stop sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from bench.schema import Budget
from bench.stats.series import SUSPECTED, drifts, interval

StopReason = Literal["target_reached", "max_seconds", "max_samples", "all_epochs"]


def enough(samples: Sequence[float], budget: Budget, left_out_s: float = 0.0) -> StopReason | None:
    """The rule that says these steady samples are enough, or None: take more.

    `target_reached` needs narrow intervals at the last two of the looks, which come
    each time the number of samples has grown by a quarter: stopping at the first
    narrow interval after any sample would destroy its coverage. Where the last samples
    seem to drift, more are taken until that is sure or gone. `max_seconds` may be exceeded,
    at most twofold, to reach the fewest samples that give an interval.
    `left_out_s` are seconds of samples that were taken but do not count.
    """
    count, seconds = len(samples), sum(samples)
    spent = seconds + left_out_s
    if count >= budget.max_samples:
        return "max_samples"
    if spent >= budget.max_seconds and (
        count >= budget.min_samples or spent >= 2 * budget.max_seconds
    ):
        return "max_seconds"
    if seconds >= budget.min_seconds:
        passed = looks(count, budget.min_samples)[-2:]
        if len(passed) == 2 and all(_passes(tuple(samples[:n]), budget.target_ci) for n in passed):
            return "target_reached"
    return None


def looks(count: int, first: int) -> list[int]:
    """The numbers of samples up to `count` at which the rule looks: 8, 10, 13, 17, …"""
    found = []
    look = first
    while look <= count:
        found.append(look)
        look = math.ceil(look * 1.25)
    return found


@lru_cache(maxsize=8)  # the same looks are asked for until the next one is passed
def _passes(samples: tuple[float, ...], target: float) -> bool:
    found = interval(samples)
    narrow = found is not None and found.relative_half_width <= target
    return narrow and not drifts(samples, target / 2, SUSPECTED)
