"""When to stop sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from bench.schema import Budget
from bench.stats.series import interval, is_look

StopReason = Literal["target_reached", "max_seconds", "max_samples", "all_epochs"]


def enough(samples: Sequence[float], budget: Budget) -> StopReason | None:
    """The rule that says these steady samples are enough, or None: take more.

    `target_reached` needs two passes in a row on the geometric schedule of
    looks. `max_seconds` may be exceeded, at most twofold, to reach the fewest
    samples that give an interval.
    """
    count, seconds = len(samples), sum(samples)
    if count >= budget.max_samples:
        return "max_samples"
    if seconds >= budget.max_seconds and (
        count >= budget.min_samples or seconds >= 2 * budget.max_seconds
    ):
        return "max_seconds"
    if seconds >= budget.min_seconds and _two_passes(samples, budget):
        return "target_reached"
    return None


def _two_passes(samples: Sequence[float], budget: Budget) -> bool:
    if not is_look(len(samples), budget.min_samples):
        return False
    before = int(len(samples) / 1.25)
    return _narrow(samples, budget) and _narrow(samples[:before], budget)


def _narrow(samples: Sequence[float], budget: Budget) -> bool:
    found = interval(samples)
    return found is not None and found.relative_half_width <= budget.target_ci
