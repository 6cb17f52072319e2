"""A series of nights → the nights at which its level changed. Pure.

The partition with the least squared error and a price a change, found exactly by
ruptures.KernelCPD with the linear kernel (Killick et al., PELT, 2012; Truong et al.,
Selective review of offline change point detection methods, 2020). Why this library:
docs/nightly.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

# Of a change, in variances: two long levels differ by 5 standard errors, the latest night
# alone by 5 standard deviations, a single night among others (two changes) by 7.
PRICE = 25.0
WORTH_LOOKING = 10  # nights


def changes(values: Array, sigma: float) -> list[int]:
    """Positions at which a new level begins, in order; none for a short series.

    values: one number a night, no NaN. sigma: their standard deviation within a level.
    """
    if len(values) < WORTH_LOOKING or np.ptp(values) <= sigma:
        return []
    # Imported here: `bench compare` needs none of it.
    import ruptures

    model = ruptures.KernelCPD(kernel="linear", min_size=1)
    scaled = (values - values.mean()) / sigma
    ends: list[int] = model.fit_predict(scaled.reshape(-1, 1), pen=PRICE)
    return ends[:-1]


def steady(values: Array, sigma: Array) -> Array:
    """Which series `changes` finds nothing in, exactly and for many at once; False: look.

    values: nights × series with NaN for unknown. sigma: of each series.

    A partition with K changes lowers the squared error by the sum over its segments of
    (sum of deviations)² ÷ length. If no segment within the series gains more than PRICE and
    none at its ends more than half of it, K changes gain at most K × PRICE: none pays. Of
    segments over half of the series that follows from their ends.
    """
    found = np.zeros(values.shape[1], bool)
    for start in range(0, values.shape[1], CHUNK):
        some = slice(start, start + CHUNK)
        found[some] = _steady(values[:, some], sigma[some])
    return found


def _steady(values: Array, sigma: Array) -> Array:
    known = np.isfinite(values)
    counts = known.sum(axis=0)
    # Known nights first: a segment that reaches into what follows them is not the larger.
    order = np.argsort(~known, axis=0, kind="stable")
    packed = np.take_along_axis(np.where(known, values, 0.0), order, axis=0)
    inside = np.arange(len(values))[:, None] < counts
    packed -= packed.sum(axis=0) / np.maximum(counts, 1)
    sums = np.zeros((len(values) + 1, values.shape[1]), np.float32)
    np.cumsum(np.where(inside, packed, 0.0) / sigma, axis=0, out=sums[1:])
    lengths = np.arange(len(sums))[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.fmax(sums**2 / lengths, sums**2 / np.maximum(counts - lengths, 0))
    ends[~(lengths < counts)] = 0.0
    ends[0] = 0.0
    quiet = (ends <= ROUNDING * PRICE / 2).all(axis=0)
    buffer = np.empty_like(sums)
    for length in range(1, len(values) // 2 + 1):
        gained = np.subtract(sums[length:], sums[:-length], out=buffer[:-length])
        np.multiply(gained, gained, out=gained)
        quiet &= gained.max(axis=0) <= ROUNDING * PRICE * length
    return np.asarray(quiet)


CHUNK = 256  # series whose sums fit into a processor's cache
ROUNDING = 0.999  # single precision


def noise(values: Array) -> Array:
    """Standard deviation within levels of each series, from differences of neighbouring nights.

    values: nights × series with NaN for unknown. A change of level is one difference of
    many, so it hardly counts (median absolute deviation). Series share part of it: few
    nights say little.
    """
    steps = np.abs(np.diff(values, axis=0))
    known = np.isfinite(steps).sum(axis=0)
    with np.errstate(invalid="ignore"):
        own = np.zeros(values.shape[1])
        some = known > 0
        own[some] = np.nanmedian(steps[:, some], axis=0) / 0.6745 / np.sqrt(2)
    shared = np.median(own[some]) if some.any() else 0.0
    return np.asarray(
        np.sqrt((known * own**2 + SHARED_NIGHTS * shared**2) / (known + SHARED_NIGHTS))
    )


SHARED_NIGHTS = 20  # how many nights the other series' noise counts for
