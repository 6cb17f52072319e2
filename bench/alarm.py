"""`bench regress --self-test`: how often this history would have cried wolf, and what it can see.

Two answers to the first question. In order: every night judged by the nights before it, as
it would have been. Shuffled: levels and what was told red removed, whole nights in random
order, so that nothing has changed (A/A), and only the last one judged.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from msgspec import Struct
from scipy import stats

from bench.history import Family, History
from bench.stats import levels, nights
from bench.stats.nights import Options

Array = np.ndarray[Any, np.dtype[Any]]
SHUFFLES = 300
FEWEST = levels.FEWEST_NIGHTS + 1
PROCESSES = 4  # of a suspect's night: two rounds and two confirming ones


class Rate(Struct, frozen=True):
    """Nights with any red finding, of how many; with the 95 % interval (Clopper and Pearson)."""

    red: int
    nights: int

    @property
    def text(self) -> str:
        """1 of 40 nights, 2.5 % (0.1 to 13.2 %)."""
        found = stats.binomtest(self.red, self.nights).proportion_ci(0.95)
        share = 100 * self.red / self.nights
        return (
            f"{self.red} of {self.nights} nights red, {share:.1f} % "
            f"({100 * found.low:.1f} to {100 * found.high:.1f} %)"
        )


class Sight(Struct, frozen=True):
    """The least change a series shows with 95 % power, as shares; None: too few nights."""

    case_id: str
    metric: str
    one_night: float | None
    three_nights: float | None


class Budget(Struct, frozen=True):
    """The whole answer."""

    in_order: Rate | None
    shuffled: Rate | None
    sights: list[Sight]


def budget(history: History, size: float, seed: int = 0) -> Budget:
    """Of all nights of the history. size: a share."""
    families = history.families
    options = _options(families, size)
    count = len(history.runs)
    if count < FEWEST:
        return Budget(None, None, [])
    in_order = [_in_order(families, n, options) for n in range(levels.FEWEST_NIGHTS, count)]
    level_free = [_residuals(f, options) for f in families]
    for n, moved in enumerate(in_order, levels.FEWEST_NIGHTS):
        for values, mine in zip(level_free, moved, strict=True):
            values[n, mine] = np.nan  # what was told red: no A/A
    rng = np.random.default_rng(seed)
    shuffled = []
    for _ in range(SHUFFLES):
        order = rng.permutation(count)
        judged = []
        for family, values in zip(families, level_free, strict=True):
            mixed, processes = values[order], family.processes[order]
            model = nights.learn(mixed[:-1], processes[:-1], family.within, size=options.size)
            judged.append(nights.judge(model, mixed[-1], processes[-1], options).worse.any())
        shuffled.append(any(judged))
    reds = sum(any(mine.any() for mine in moved) for moved in in_order)
    return Budget(
        Rate(reds, len(in_order)),
        Rate(sum(shuffled), len(shuffled)),
        [s for f in families for s in _sights(history, f, options)],
    )


def _options(families: list[Family], size: float) -> Options:
    tests = sum(int(np.isfinite(f.values[-1]).sum()) for f in families)
    return Options(tests=tests, size=math.log1p(size))


def _in_order(families: list[Family], night: int, options: Options) -> list[Array]:
    """Which series of each family are red, judged by the nights before."""
    found = []
    for f in families:
        model = nights.learn(f.values[:night], f.processes[:night], f.within, size=options.size)
        found.append(nights.judge(model, f.values[night], f.processes[night], options).worse)
    return found


def _residuals(family: Family, options: Options) -> Array:
    """Values without the levels of their segments."""
    model = nights.learn(family.values, family.processes, family.within, size=options.size)
    values = family.values.copy()
    for label in range(int(model.labels.max(initial=0)) + 1):
        mine = (model.labels == label) & np.isfinite(values)
        total = np.where(mine, values, 0.0).sum(axis=0)
        values -= np.where(mine, total / np.maximum(mine.sum(axis=0), 1), 0.0)
    return np.asarray(values)


def _sights(history: History, family: Family, options: Options) -> list[Sight]:
    model = nights.learn(family.values, family.processes, family.within, size=options.size)
    one = nights.least_seen(model, options, 1, PROCESSES)
    three = nights.least_seen(model, options, 3, PROCESSES)
    names, title = history.series["case_id"], family.metric.title
    return [
        Sight(str(names[s]), title, _share(one[s], family), _share(three[s], family))
        for s in np.flatnonzero(np.isfinite(family.values[-1]))
    ]


def _share(effect: float, family: Family) -> float | None:
    """A change for the worse, as a share of the metric."""
    if not math.isfinite(effect):
        return None
    return -math.expm1(-effect) if family.metric.more_is_better else math.expm1(effect)


def told(found: Budget, history: History) -> list[str]:
    """The answers in sentences and lines, the blindest series first."""
    if found.in_order is None or found.shuffled is None:
        return [f"{len(history.runs)} nights are too few to judge by; {FEWEST} are needed."]
    lines = [
        f"{len(history.runs)} nights of plan {history.plan}, {len(found.sights)} series, judged by "
        "history alone:",
        f"  in order (what really changed is among them): {found.in_order.text}",
        f"  shuffled, nothing changed: {found.shuffled.text}; promised: at most "
        f"{100 * nights.FALSE_NIGHTS:g} %",
        "The least change for the worse seen with 95 % power, in one night and in three:",
    ]
    order = sorted(found.sights, key=lambda s: -(s.one_night or math.inf))
    width = max(len(s.case_id) for s in order)
    lines += [
        f"  {s.case_id:<{width}}  {s.metric:<18} {_percent(s.one_night)} {_percent(s.three_nights)}"
        for s in order
    ]
    return lines


def _percent(share: float | None) -> str:
    return f"{'–':>7}" if share is None else f"{100 * share:>5.1f} %"
