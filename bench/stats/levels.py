"""One series of nights → its levels: which nights are the baseline, which a change not accepted.

A level goes from one change point (bench.stats.changes) to the next.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from msgspec import Struct

from bench.stats import changes, noise

Array = np.ndarray[Any, np.dtype[Any]]

FEWEST_NIGHTS = 5  # of a baseline; fewer are inconclusive
FEWEST_LEVEL = 3  # nights; fewer that are over again were odd ones
ALIKE = 3.0  # standard errors within which a level is the baseline's own again


class _Levels(Struct):
    """What levels_of finds for one series."""

    labels: Array
    reference: int = 0
    anchored: int = 0
    changed: int = -1


def levels_of(values: Array, accepted: Array, size: float) -> tuple[Array, Array, Array, Array]:
    """Of every series: segment of each night, reference segment, anchor's start, open change.

    values: nights × series. accepted: for each series the night from which a change is
    accepted, -1 for none. size: the change for the worse that is told. The first array is
    nights × series, the others have a place a series; no open change is -1.
    """
    sigma = np.maximum(changes.noise(values), noise.LEAST_SIGMA)
    labels = np.zeros(values.shape, np.int16)
    reference, anchored = np.zeros((2, values.shape[1]), int)
    changed = np.full(values.shape[1], -1)
    for s in np.flatnonzero(~changes.steady(values, sigma) | (accepted >= 0)):
        found = _level(values[:, s], float(sigma[s]), int(accepted[s]), size)
        labels[:, s], reference[s], anchored[s], changed[s] = (
            found.labels, found.reference, found.anchored, found.changed,
        )  # fmt: skip
    return labels, reference, anchored, changed


def _level(values: Array, sigma: float, accepted: int, size: float) -> _Levels:
    """A level that is worse by `size` or more is no baseline until it is accepted.

    Any other becomes the baseline when it has FEWEST_NIGHTS; one that differs from the
    baseline by no more than noise is the baseline going on.
    """
    where = np.flatnonzero(np.isfinite(values))
    known = values[where]
    made = _Levels(np.zeros(len(values), int))
    starts = [0, *changes.changes(known, sigma)]
    begun = int(np.searchsorted(where, accepted)) if accepted >= 0 else 0
    if 0 < begun < len(known):
        starts = sorted({*starts, begun})
    level, nights = float(known[: [*starts[1:], len(known)][0]].mean()) if len(known) else 0.0, 0
    for label, (start, end) in enumerate(itertools.pairwise([*starts, len(known)])):
        first, count = int(where[start]) if len(where) else 0, end - start
        mean = float(known[start:end].mean()) if count else level
        free = accepted >= 0 and start == begun
        alike = abs(mean - level) <= ALIKE * sigma * math.sqrt(
            1 / max(count, 1) + 1 / max(nights, 1)
        )
        odd = count < FEWEST_LEVEL and end < len(known)  # a part of the spread, no level
        if label == 0 or ((alike or odd) and not free):
            made.labels[first:] = made.reference
            made.changed, nights = -1, nights + count
            continue
        made.labels[first:] = label
        if mean - level >= size and not free:
            made.changed = first
        elif count >= FEWEST_NIGHTS or free:
            if level - mean >= size or free:
                made.anchored = first
            made.reference, level, nights, made.changed = label, mean, count, -1
        else:
            made.changed = -1
    return made
