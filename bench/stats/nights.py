"""Many series of nights → which of them moved. Pure functions of arrays.

Values are natural logarithms of a metric, larger is worse, so a difference of 0.03 is
about 3 %. A night's value is the mean of one or more processes. The model of a value is

    level + what belongs to the night + what belongs to the process

and the spread that decides is the one between nights, which series share (bench.stats.noise).
Nights that move all series at once are one accident, not many: the degrees of freedom say so
(Satterthwaite, 1946), and so do heavy tails. Where these are, no night counts for more than
BOUND of its standard deviations in a second look at the same windows (Huber, Robust estimation
of a location parameter, 1964): one odd night is nothing, three in a row are something.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from msgspec import Struct
from scipy import special

from bench.stats import noise
from bench.stats.levels import FEWEST_LEVEL, FEWEST_NIGHTS, levels_of

Array = np.ndarray[Any, np.dtype[Any]]

WINDOWS = (1, 2, 3, 5, 7)  # latest nights that are compared with the baseline
ANCHOR_NIGHTS, CREEP_NIGHTS = 14, 5
SIZE = 0.03  # the least change that is told
FALSE_NIGHTS = 0.01  # promised: nights with any false finding, over all series
INDEPENDENT = 12.0  # what the windows, the anchor and looking every night cost (alarm_study)
SUSPECT_LEVEL, SUSPECT_SIZE = 0.005, 0.5  # a suspect's p and its share of SIZE
STILL = 1 / 3  # share of the change, and of SIZE, that tonight alone must show
BOUND = 3.0  # standard deviations that one night may add where tails are heavy
FEWEST_WITHIN = 10  # degrees of freedom from which the processes' share of the noise is believed


class Options(Struct, frozen=True, kw_only=True):
    """What is judged. tests: series over all families. size: as a difference of logarithms."""

    tests: int
    size: float = float(np.log1p(SIZE))
    false_nights: float = FALSE_NIGHTS

    def level(self, shared: float) -> float:
        """One-sided p under which a series is a finding.

        shared: share of the variance that moves all series at once. Series that move together
        are fewer tests: with a common correlation r, 1 + (tests - 1) (1 - r²) (Nyholt, A simple
        correction for multiple testing, 2004).
        """
        tests = 1 + max(self.tests - 1, 0) * (1 - shared**2)
        return self.false_nights / (INDEPENDENT * tests)


class Within(Struct, frozen=True):
    """What processes of the same night say of their own noise, over all series."""

    squares: float = 0.0
    freedom: int = 0


UNKNOWN = Within()


class Model(Struct, frozen=True):
    """What earlier nights say of each series. Arrays have a place a series.

    weights: nights × series. base: nights × series, which nights are the baseline. freedom:
    of one latest night.
    """

    values: Array
    weights: Array
    labels: Array
    base: Array
    anchor: Array
    changed: Array  # first night of an open change for the worse; -1: none
    sigma: Array
    freedom: Array
    shared: float  # share of the variance that belongs to all series at once
    nights: int
    process_share: Array
    tail: float  # degrees of freedom of a t distribution with tails like these; inf: normal

    def weight(self, processes: Array) -> Array:
        """Of a night's mean over so many processes, against one of a single process."""
        return _weight(processes, self.process_share)

    @property
    def base_level(self) -> Array:
        """Weighted mean of the baseline."""
        weights = self.weights * self.base
        total = np.where(weights, np.nan_to_num(self.values), 0.0) * weights
        with np.errstate(invalid="ignore"):
            return np.asarray(total.sum(axis=0) / weights.sum(axis=0))

    def only(self, series: Array) -> Model:
        """The model of some series."""
        return Model(
            self.values[:, series], self.weights[:, series], self.labels[:, series],
            self.base[:, series], self.anchor[:, series], self.changed[series],
            self.sigma[series], self.freedom[series], self.shared, self.nights,
            self.process_share[series], self.tail,
        )  # fmt: skip


class Judged(Struct, frozen=True):
    """Tonight against the baseline, an array over the series of each.

    effect, error, p: of the window that says most: one by which the series is worse, else
    better, else suspect, and of several the one with the least p. A difference of logarithms,
    its standard error, one-sided p for "worse" and p_better for "better". nights: of that
    window; 0: the anchor's creep.
    """

    effect: Array
    error: Array
    p: Array
    p_better: Array
    nights: Array
    baseline: Array  # the level that window is compared with
    baseline_nights: Array
    judged: Array  # whether there was enough to judge by
    worse: Array
    better: Array
    suspect: Array


def learn(
    values: Array,
    processes: Array,
    within: Within = UNKNOWN,
    *,
    size: float,
    accepted: Array | None = None,
    until: int | None = None,
) -> Model:
    """What the nights in `values` (nights × series, tonight not among them) say.

    processes: how many each value is the mean of. accepted: for each series the night from
    which a change is accepted, -1 for none. until: only the nights up to this index are a
    baseline.
    """
    nights, series = values.shape
    accepted = np.full(series, -1) if accepted is None else accepted
    labels, reference, anchored, changed = levels_of(values, accepted, size)
    chosen, known = labels, np.isfinite(values)
    row = np.arange(nights)[:, None]
    old = known if until is None else known & (row <= until)
    if until is not None:
        # Levels of later nights are no baseline; they tell of the spread all the same.
        chosen, reference, anchored, changed = levels_of(
            np.where(old, values, np.nan), accepted, size
        )
    share = _process_share(values, processes, labels, within)
    weights = np.where(known, _weight(processes, share), 0.0)
    residuals, counts, levels = _residuals(values, weights, labels)
    freedom = counts - levels
    squares = (weights * residuals**2).sum(axis=0)
    spread = noise.spread_of(squares, freedom)
    # More processes tell less of a series with more noise than most: its nights differ.
    own = within.squares / within.freedom if within.freedom else 0.0
    shares = np.minimum(share, own / spread.sigma**2)
    # A residual from a mean of n nights is smaller than the noise by sqrt(1 - 1/n).
    off = residuals * np.sqrt(weights) * np.sqrt(counts / np.maximum(freedom, 1))
    shared = noise.shared(off / spread.sigma, known)
    base = old & (chosen == reference)
    after = old & (row >= anchored)
    anchor = after & (np.cumsum(after, axis=0) <= ANCHOR_NIGHTS)
    most = int(counts.max(initial=0))
    return Model(
        values, np.where(known, _weight(processes, shares), 0.0), labels, base, anchor, changed,
        spread.sigma, spread.freedom, shared, most, shares,
        noise.tail(off, known & (row < _settled(nights)), spread, shared),
    )  # fmt: skip


def judge(model: Model, tonight: Array, processes: Array, options: Options) -> Judged:
    """Tonight's values against what was learnt."""
    count = len(tonight)
    weights = np.vstack([model.weights, model.weight(processes)[None, :]])
    values = np.vstack([model.values, tonight[None, :]])
    weights[~np.isfinite(values)] = 0.0
    filled = np.where(np.isfinite(values), values, 0.0)
    rows = len(values)
    base = np.vstack([model.base, np.zeros((1, count), bool)])
    anchor = np.vstack([model.anchor, np.zeros((1, count), bool)])
    best = _Best(count, options)
    bounded = _bounded(filled, weights, model) if np.isfinite(model.tail) else None
    for nights, side in [*((n, base) for n in WINDOWS), (0, anchor)]:
        recent = np.arange(rows)[:, None] >= rows - (nights or CREEP_NIGHTS)
        new, old = recent & (weights > 0), side & ~recent
        contrast = _contrast(filled, weights, new, old)
        if nights == 0:
            # An anchor that is the baseline itself says nothing new.
            contrast.enough[:] &= old.sum(axis=0) >= ANCHOR_NIGHTS
        best.offer(contrast, model, nights, tonight)
        if bounded is not None:
            best.offer(contrast, model, nights, tonight, _contrast(bounded, weights, new, old))
    return best.judged(np.isfinite(tonight))


def _bounded(values: Array, weights: Array, model: Model) -> Array:
    """Values no farther from the baseline than BOUND standard deviations of their night."""
    with np.errstate(divide="ignore", invalid="ignore"):
        most = BOUND * model.sigma / np.sqrt(weights)
        return np.where(
            weights > 0, np.clip(values, model.base_level - most, model.base_level + most), 0.0
        )


class _Contrast(Struct):
    """Mean of the recent nights less mean of the baseline, and its variance in sigmas squared."""

    effect: Array
    variance: Array
    recent_variance: Array
    level: Array
    nights: Array
    enough: Array


def _contrast(values: Array, weights: Array, recent: Array, base: Array) -> _Contrast:
    new, old = (weights * recent).sum(axis=0), (weights * base).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        after = (values * weights * recent).sum(axis=0) / new
        before = (values * weights * base).sum(axis=0) / old
        variance = 1 / new + 1 / old
        return _Contrast(
            after - before, variance, 1 / new, before, base.sum(axis=0),
            (base.sum(axis=0) >= FEWEST_NIGHTS) & (new > 0),
        )  # fmt: skip


class _Best:
    """Keeps for each series the window that says most."""

    def __init__(self, count: int, options: Options) -> None:
        self.options = options
        self.effect, self.error = np.full(count, np.nan), np.full(count, np.nan)
        self.p, self.p_better = np.ones(count), np.ones(count)
        self.nights = np.ones(count, int)
        self.level, self.base_nights = np.full(count, np.nan), np.zeros(count, int)
        self.any = np.zeros(count, bool)
        self.said = np.full(count, NOTHING)  # the most that a window says

    def offer(
        self,
        found: _Contrast,
        model: Model,
        nights: int,
        tonight: Array,
        bounded: _Contrast | None = None,
    ) -> None:
        """One more window. bounded: the same of bounded nights, which then is the evidence."""
        size, level = self.options.size, self.options.level(model.shared)
        error = model.sigma * np.sqrt(found.variance)
        freedom, scale = _freedom(model, nights or CREEP_NIGHTS, tails=bounded is None)
        with np.errstate(invalid="ignore"):
            t = scale * (bounded or found).effect / error
            p, p_better = special.stdtr(freedom, -t), special.stdtr(freedom, t)
            # What was odd on earlier nights and is over is not told again.
            now = tonight - found.level
            still = np.abs(now) >= STILL * np.maximum(np.abs(found.effect), size)
            lasts = found.enough & still & (now * found.effect > 0)
            odd = (found.effect >= SUSPECT_SIZE * size) & (p < SUSPECT_LEVEL)
            worse = lasts & (found.effect >= size) & (p < level)
            better = lasts & (found.effect <= -size) & (p_better < level)
        said = np.select([worse, better, lasts & odd], [WORSE, BETTER, SUSPECT], NOTHING)
        mine, least = np.minimum(self.p, self.p_better), np.minimum(p, p_better)
        more = (said > self.said) | ((said == self.said) & (least < mine))
        take = found.enough & (more | ~self.any)
        for kept, offered in (
            (self.effect, found.effect), (self.error, error), (self.p, p),
            (self.p_better, p_better), (self.level, found.level), (self.said, said),
            (self.base_nights, found.nights), (self.nights, np.full(len(p), nights)),
        ):  # fmt: skip
            kept[take] = offered[take]
        self.any |= found.enough

    def judged(self, tonight: Array) -> Judged:
        """Of the series that have a value tonight."""
        said = np.where(tonight, self.said, NOTHING)
        return Judged(
            self.effect, self.error, self.p, self.p_better, self.nights, self.level,
            self.base_nights, self.any & tonight, said == WORSE, said == BETTER,
            (said == WORSE) | (said == SUSPECT),
        )  # fmt: skip


NOTHING, SUSPECT, BETTER, WORSE = range(4)


def _freedom(model: Model, nights: int, *, tails: bool = True) -> tuple[Array, float]:
    """Degrees of freedom of a contrast whose recent side has so many nights.

    And its unit: a t distribution with heavy tails has a variance above 1, while contrasts are
    in standard errors.
    """
    with np.errstate(divide="ignore"):
        together = 1 / (
            model.shared**2 / max(model.nights - 1, 1) + (1 - model.shared) ** 2 / model.freedom
        )
    if not tails or np.isinf(model.tail):
        return np.asarray(together), 1.0
    # The excess kurtosis of a mean of n is an n-th of one's; a tail index under 4 stays.
    tail = model.tail if model.tail < 4 else 4 + (model.tail - 4) * math.sqrt(nights)
    return np.minimum(together, tail), math.sqrt(tail / (tail - 2))


def _weight(processes: Array, share: float | Array) -> Array:
    """Of a mean over so many processes, to which `share` of one's variance belongs."""
    return np.asarray(1 / (1 - share + share / np.maximum(processes, 1)))


def _residuals(values: Array, weights: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Values less the mean of their segment; how many are known, and in how many segments."""
    residuals = np.zeros_like(values)
    levels = np.zeros(values.shape[1], int)
    filled = np.where(weights > 0, values, 0.0)
    for label in range(int(labels.max(initial=0)) + 1):
        mine = (labels == label) & (weights > 0)
        weight = weights * mine
        total = weight.sum(axis=0)
        mean = (filled * weight).sum(axis=0) / np.where(total > 0, total, 1)
        residuals += np.where(mine, filled - mean, 0.0)
        levels += mine.any(axis=0)
    return residuals, (weights > 0).sum(axis=0), levels


def _process_share(values: Array, processes: Array, labels: Array, within: Within) -> float:
    """Share of a one-process night's variance that belongs to the process; 0 until known.

    The variance of a night depends on the share through its weights: a fixed point.
    """
    if within.freedom < FEWEST_WITHIN:
        return 0.0
    own = within.squares / within.freedom
    share = 0.5
    for _ in range(5):
        known = np.isfinite(values)
        weights = np.where(known, _weight(processes, share), 0.0)
        residuals, counts, levels = _residuals(values, weights, labels)
        freedom = int((counts - levels).sum())
        total = float((weights * residuals**2).sum()) / max(freedom, 1)
        share = min(own / total, 0.9) if total > 0 else 0.0
    return share


def _settled(nights: int) -> int:
    """How many nights tell of the tails: the latest may hold a change that no level shows yet."""
    return nights - FEWEST_LEVEL if nights - FEWEST_LEVEL >= 2 * FEWEST_NIGHTS else nights


def least_seen(model: Model, options: Options, nights: int, processes: int) -> Array:
    """The least change each series shows with 95 % power in so many nights; NaN: none yet.

    A difference of logarithms: it must be as large as asked, and beyond the level's critical
    value, both with 95 % probability (normal approximation of the alternative).
    """
    weight = model.weight(np.asarray(float(processes)))
    base = (model.weights * model.base).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = model.sigma * np.sqrt(1 / (nights * weight) + 1 / base)
        needed = _needed(model, options, nights, error, tails=True)
        if np.isfinite(model.tail):
            bounded = _needed(model, options, nights, error, tails=False)
            # Bounded nights add no more than that.
            reach = BOUND * model.sigma / np.sqrt(weight)
            needed = np.where(bounded <= reach, np.minimum(needed, bounded), needed)
    sure = float(special.ndtri(0.95))
    least = np.maximum(needed, options.size) + sure * error
    return np.where(model.base.sum(axis=0) >= FEWEST_NIGHTS, least, np.nan)


def _needed(model: Model, options: Options, nights: int, error: Array, *, tails: bool) -> Array:
    """The effect at the level's critical value."""
    freedom, scale = _freedom(model, nights, tails=tails)
    return np.asarray(-special.stdtrit(freedom, options.level(model.shared)) / scale * error)


def stands(now: Judged, alone: Array, options: Options) -> Array:
    """Whether confirming processes alone show it too: half of the least change that is told.

    alone: their mean, as a logarithm. Suspects were chosen by their first processes; one of
    those that is off by a factor would outweigh any number of others in a common mean.
    """
    return np.asarray(alone - now.baseline >= SUSPECT_SIZE * options.size)


def confirmed(now: Judged, alone: Array, rounds: int, options: Options) -> list[str]:
    """After so many confirming rounds: `confirmed`, `cleared` or `undecided`, each suspect.

    now: tonight's mean over all its processes, judged again. alone: see `stands`.
    """
    states = []
    for worse, suspect, seen in zip(
        now.worse, now.suspect, stands(now, alone, options), strict=True
    ):
        enough = rounds >= FEWEST_CONFIRMING
        if not suspect or (enough and not seen):
            states.append("cleared")
        else:
            states.append("confirmed" if worse and enough else "undecided")
    return states


FEWEST_CONFIRMING = 2
