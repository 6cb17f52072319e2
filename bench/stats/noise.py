"""How noisy series are: a spread they share, noise they share, and how heavy its tails are.

Few nights tell little of one series' spread, so series share it: empirical Bayes for variances
(Smyth, Linear models and empirical Bayes methods, 2004, sections 4 and 6.2). Tails: the t
distribution with the excess kurtosis that residuals of all series show, or with their tail
index (Hill, A simple general approach to inference about the tail of a distribution, 1975).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from msgspec import Struct
from scipy import optimize, special, stats

Array = np.ndarray[Any, np.dtype[Any]]

LEAST_SIGMA = 1e-3  # nothing is called more even than 0.1 %
FEWEST_FREEDOM = 5  # from which a series' own spread is believed
UNEVEN = 50.0  # degrees of freedom of the prior under which series differ in their noise
HEAVY_KURTOSIS, HEAVY_SHARE = 0.5, 0.02  # from which, and of how many residuals, the tail index
LEAST_INDEX = 2.5  # a tail index of 2 has no variance, and no spread would mean anything
ENOUGH_FOR_TAILS = 100_000  # values
SMALLEST = 1e-300  # a p whose normal quantile is finite


class Spread(Struct, frozen=True):
    """Of each series: standard deviation that is believed, what the shared spread made of its
    variance, and that variance's degrees of freedom. prior: the shared variance."""

    sigma: Array
    variance: Array
    freedom: Array
    prior: float


def spread_of(squares: Array, freedom: Array) -> Spread:
    """From sums of squared residuals and their degrees of freedom."""
    own = squares / np.maximum(freedom, 1)
    prior_freedom, prior = squeeze(own[freedom > 0], freedom[freedom > 0])
    total = prior_freedom + freedom
    with np.errstate(invalid="ignore"):
        variance = np.where(
            np.isinf(total), prior, (prior_freedom * prior + squares) / np.maximum(total, 1)
        )
    believed = variance
    if prior_freedom < UNEVEN:
        # Shrinking what is noisier than most makes false alarms of its usual nights.
        believed = np.maximum(variance, np.where(freedom >= FEWEST_FREEDOM, own, 0.0))
    return Spread(np.maximum(np.sqrt(believed), LEAST_SIGMA), variance, total, prior)


def squeeze(variances: Array, freedom: Array) -> tuple[float, float]:
    """Degrees of freedom and variance of the prior that `variances` share.

    Smyth 2004, section 6.2: moments of the logarithms, which are a shifted log F. Infinite
    degrees of freedom: they differ by no more than chance.
    """
    if len(variances) == 0:
        return 0.0, 0.0
    positive = np.maximum(variances, max(1e-5 * float(np.median(variances)), LEAST_SIGMA**2 / 100))
    if len(positive) < 3:
        return 0.0, float(positive.mean())
    shift = np.log(positive) - special.digamma(freedom / 2) + np.log(freedom / 2)
    mean = float(shift.mean())
    left = float(shift.var(ddof=1) - special.polygamma(1, freedom / 2).mean())
    if left <= 0:
        return float("inf"), float((variances * freedom).sum() / freedom.sum())
    half = optimize.brentq(lambda x: special.polygamma(1, x) - left, 1e-6, 1e8)
    return 2 * half, float(np.exp(mean + special.digamma(half) - np.log(half)))


def shared(scaled: Array, known: Array) -> float:
    """Share of the variance that moves all series of a night together."""
    counts = known.sum(axis=1)
    rows = counts > 1
    if not rows.any():
        return 0.0
    means = scaled[rows].sum(axis=1) / counts[rows]
    alone = 1 / counts[rows]
    share = (means**2 - alone).mean() / (1 - alone).mean()
    return float(np.clip(share, 0, 1))


def tail(off: Array, use: Array, spread: Spread, together: float) -> float:
    """Degrees of freedom of a t distribution with tails like these; inf: none are shown.

    off: residuals, nights × series, of which those in `use` count. Each is measured by the
    spread of all other nights, since an odd one hides in its own; of normal noise that follows
    a t distribution. What all series share are as many numbers as nights, and shows a kurtosis
    by chance sooner.
    """
    # Some series tell of the tails as well as all would, and sooner; not every tenth one, for
    # series are products of axes.
    series = off.shape[1]
    enough = min(series, max(1, ENOUGH_FOR_TAILS // max(len(off), 1)))
    some = np.random.default_rng(0).permutation(series)[:enough]
    off, freedom = off[:, some], spread.freedom[some] - 1
    use = use[:, some] & (freedom >= 1)  # one night's spread cannot be told without it
    with np.errstate(invalid="ignore", divide="ignore"):
        others = ((freedom + 1) * spread.variance[some] - off**2) / freedom
    others = np.where(np.isinf(freedom), spread.prior, others)
    outward = (off / np.maximum(np.sqrt(np.maximum(others, 0.0)), LEAST_SIGMA))[use]
    if len(outward) < 100:
        return float("inf")
    freedom = np.broadcast_to(np.maximum(freedom, 1), use.shape)[use]
    p = special.stdtr(freedom, -np.abs(outward))
    normal = -np.sign(outward) * special.ndtri(np.maximum(p, SMALLEST))
    excess = float(stats.kurtosis(normal))
    chance = together**2 / len(use) + (1 - together) ** 2 / len(outward)
    if not excess >= 3 * np.sqrt(24 * chance):  # NaN where nothing differs at all
        return float("inf")
    by_kurtosis = 4 + 6 / excess
    if excess <= HEAVY_KURTOSIS:
        return by_kurtosis
    return min(by_kurtosis, _tail_index(np.abs(outward)))


def _tail_index(sizes: Array) -> float:
    """Hill's estimate from the largest ones: P(size > x) falls as x to the minus this.

    At least LEAST_INDEX.
    """
    count = max(10, math.ceil(HEAVY_SHARE * len(sizes)))
    largest = np.sort(sizes)[-count - 1 :]
    if largest[0] == 0:
        return LEAST_INDEX
    mean = float(np.log(largest[1:] / largest[0]).mean())
    return max(LEAST_INDEX, 1 / mean) if mean else float("inf")
