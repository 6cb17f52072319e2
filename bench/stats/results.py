"""Results that must stay what they are (losses, fidelity) → the nights outside their tolerance.

Each night is held against the good ones before it, oldest first. One that is outside is no
measure for those after it: a wrong result does not become normal by lasting.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct

Array = np.ndarray[Any, np.dtype[Any]]
# Median deviations. Where results vary by themselves (no deterministic kernels), so may tonight's.
USUAL = 6 * 1.4826


class Tolerance(Struct, frozen=True):
    """How far a result may be off: a share of it, or `least` where that is more."""

    share: float
    least: float
    only_lower: bool


class Walked(Struct, frozen=True):
    """What became of each night. Arrays are nights × series, `normal` has a place a series."""

    values: Array  # mean of the night's processes; NaN where there is none
    outside: Array  # whether every one of them was outside the tolerance
    normal: Array  # median of the good nights before the last; NaN where there is none

    def since(self, series: int) -> int:
        """The first night outside after the last good one, of a series that is outside now."""
        outside = self.outside[:, series]
        good = np.flatnonzero(np.isfinite(self.values[:, series]) & ~outside)
        begin = int(good[-1]) + 1 if len(good) else 0
        return begin + int(np.argmax(outside[begin:]))


def walk(
    night: Array, series: Array, values: Array, *, nights: int, accepted: Array, limits: Tolerance
) -> Walked:
    """night, series, values: a place a process. accepted: the night a series begins anew; -1."""
    order = np.argsort(night, kind="stable")
    night, series, values = night[order], series[order], values[order]
    begins = np.searchsorted(night, np.arange(nights + 1))
    count = len(accepted)
    means, good = np.full((nights, count), np.nan), np.full((nights, count), np.nan)
    outside = np.zeros((nights, count), bool)
    normal, limit = np.full(count, np.nan), np.full(count, np.nan)
    known, due = np.zeros(count, int), np.ones(count, int)
    for n in range(nights):
        anew = accepted == n
        good[:n, anew] = normal[anew] = np.nan
        known[anew], due[anew] = 0, 1
        # A quarter more nights hardly move a median: so often is soon enough, but for the last.
        stale = np.flatnonzero((known >= due) | ((known > 0) & (n == nights - 1)))
        normal[stale], limit[stale] = _tolerated(good[:n, stale], limits)
        due[stale] = known[stale] + 1 + known[stale] // 4
        s, x = (a[begins[n] : begins[n + 1]] for a in (series, values))
        off = normal[s] - x if limits.only_lower else np.abs(x - normal[s])
        outside[n, s] = True
        outside[n, s[~(off > limit[s])]] = False  # also where there is nothing to hold it against
        processes = np.bincount(s, minlength=count)
        sums = np.bincount(s, x, count)
        means[n] = np.where(processes > 0, sums / np.maximum(processes, 1), np.nan)
        good[n] = np.where(outside[n], np.nan, means[n])
        known += ~np.isnan(good[n])
    return Walked(means, outside, normal)


def _tolerated(good: Array, limits: Tolerance) -> tuple[Array, Array]:
    """Median of each series, which has a value, and how far from it is tolerated."""
    if not good.shape[1]:
        return np.zeros(0), np.zeros(0)
    normal = _median(good)
    usual = USUAL * _median(np.abs(good - normal))
    return normal, np.maximum(np.maximum(limits.least, limits.share * np.abs(normal)), usual)


def _median(values: Array) -> Array:
    """Of each column, NaN left out; many times faster than np.nanmedian for short columns."""
    ordered = np.sort(values, axis=0)  # NaN last
    count = (~np.isnan(values)).sum(axis=0)
    low, high = (
        np.take_along_axis(ordered, place[None, :], axis=0)[0]
        for place in ((count - 1) // 2, count // 2)
    )
    return np.asarray((low + high) / 2)
