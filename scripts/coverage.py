"""How often the intervals of the whole procedure hold the truth.

Made-up series with a known mean go through the real timing loop (warm-up, looks,
stopping) on a fake clock. Writes docs/coverage.md.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.measure import Loop
from bench.schema import BUDGETS

NOISES = (0.005, 0.02, 0.05)
LIMITS = (10, 30, 100, 300, 1000)  # samples a budget allows
TARGETS = {10: 0.02, 30: 0.02, 100: 0.01, 300: 0.01, 1000: 0.005}
STEP_S = 0.1
BURN_IN = 100
SPARE = 10  # two single steps come first, and the last window may end after the limit

Random = np.random.Generator


def normal(random: Random, count: int, noise: float) -> Any:
    """Independent, normal."""
    return noise * random.normal(size=count)


def log_normal(random: Random, count: int, noise: float) -> Any:
    """Independent, skewed to the slow side (log-normal of shape 0.5)."""
    shape = 0.5
    values = random.lognormal(sigma=shape, size=count) - np.exp(shape**2 / 2)
    spread = np.sqrt((np.exp(shape**2) - 1) * np.exp(shape**2))
    return noise * values / spread


def autoregressive(random: Random, count: int, noise: float) -> Any:
    """AR(1), phi = 0.6."""
    phi, total = 0.6, count + BURN_IN
    pushes = random.normal(size=total) * np.sqrt(1 - phi**2)
    values = list(itertools.accumulate(pushes, lambda before, push: phi * before + push))
    return noise * np.array(values[BURN_IN:])


def spikes(random: Random, count: int, noise: float) -> Any:
    """Normal, and 5 % of the samples longer by 5 times the noise."""
    share, height = 0.05, 5.0
    tall = height * (random.random(count) < share)
    return noise * (random.normal(size=count) + tall - share * height)


def two_states(random: Random, count: int, noise: float) -> Any:
    """Two speeds 20 % apart, each kept for a twentieth of the series (but 2 samples) on average."""
    switches = random.random(count) < min(0.5, 20 / count)
    state = (np.cumsum(switches) + random.integers(2)) % 2
    return 0.2 * (state - 0.5) + noise * random.normal(size=count)


def drift(random: Random, count: int, noise: float) -> Any:
    """Slower by 10 % from the first sample to the last one allowed."""
    return 0.1 * (np.arange(count) / (count - SPARE) - 0.5) + noise * random.normal(size=count)


STATIONARY: dict[str, Callable[..., Any]] = {
    "normal": normal,
    "log-normal": log_normal,
    "AR(1), 0.6": autoregressive,
    "5 % spikes": spikes,
}
MOVING: dict[str, Callable[..., Any]] = {"two states": two_states, "drift": drift}
KINDS = STATIONARY | MOVING


class Replay:
    """A device whose steps take the seconds of a series, and its clock."""

    def __init__(self, step_s: Any) -> None:
        self.now = 0.0
        self.left: Iterator[float] = iter(step_s)
        self.last = STEP_S

    def synchronize(self) -> None:
        """Nothing is queued."""

    def reset_peak(self) -> None:
        """There is no memory."""

    def clock(self) -> float:
        return self.now

    def step(self) -> None:
        self.last = next(self.left, self.last)
        self.now += self.last


def once(random: Random, kind: str, noise: float, limit: int) -> tuple[str, int]:
    """What became of one series, and how many samples counted."""
    step_s = STEP_S * (1 + KINDS[kind](random, limit + SPARE, noise))
    device = Replay(step_s)
    budget = msgspec.structs.replace(
        BUDGETS["quick"],
        target_ci=TARGETS[limit],
        max_samples=limit,
        min_seconds=limit * STEP_S / 4,
        max_seconds=10 * limit * STEP_S,
        warmup_share=0.025,
    )
    taken = Loop(device, budget, clock=device.clock).throughput(device.step)
    found = taken.estimate(budget.target_ci)
    count = len(taken.kept_s)
    if found.codes:
        return "+".join(found.codes), count
    if found.interval is None:
        return "no interval", count
    hit = found.interval.low <= STEP_S <= found.interval.high
    tight = found.interval.relative_half_width <= budget.target_ci
    return f"{'hit' if hit else 'miss'}{' tight' if tight else ''}", count


Row = tuple[str, float, int]


def row(task: tuple[Row, int]) -> tuple[Row, Counter[str], float]:
    """All series of a row. Seeded by the row, so that each can be made again."""
    (kind, noise, limit), series = task
    random = np.random.default_rng([list(KINDS).index(kind), int(noise * 1e4), limit])
    results = [once(random, kind, noise, limit) for _ in range(series)]
    return task[0], Counter(r for r, _ in results), float(np.median([n for _, n in results]))


def as_line(found: tuple[Row, Counter[str], float]) -> tuple[str, bool]:
    """A line of the table, and whether it keeps the promise."""
    (kind, noise, limit), counts, samples = found
    total = sum(counts.values())
    hits, misses = (sum(n for r, n in counts.items() if r.startswith(w)) for w in ("hit", "miss"))
    warned = 1 - (hits + misses) / total
    tight = (counts["hit tight"] + counts["miss tight"]) / total
    head = f"| {kind} | {100 * noise:g} % | {limit} | {samples:.0f} |"
    if kind in STATIONARY:
        covered = hits / (hits + misses)
        kept = 0.90 <= covered <= 0.98 and warned <= 0.05
        return f"{head} {100 * covered:.1f} % | {100 * warned:.1f} % | |", kept
    kept = tight <= 0.05
    return f"{head} | {100 * warned:.1f} % | {100 * tight:.1f} % |", kept


INTRODUCTION = """\
# Do the intervals hold the truth?

`scripts/coverage` sends {series} made-up series a row, whose true mean is known, through the
real timing loop: warm-up, looks and stopping included. *Covered* is the share of the stated 95 %
intervals that hold the true mean (promised: 90-98 %), *refused* the share of series for which no
interval was stated and a warning was (promised: at most 5 % where the speed is steady). Where the
speed drifts or has two states no interval is honest: *tight* is the share of series that got one
as narrow as asked for, without a warning (promised: at most 5 %).

Kinds: {kinds}

| series | noise | samples allowed | counted (median) | covered | refused | tight |
| --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=2000, help="of each row")
    parser.add_argument("--limits", type=int, nargs="*", default=LIMITS)
    parser.add_argument("--out", type=Path, default=None, help="file to write (default: none)")
    options = parser.parse_args()
    rows = list(itertools.product(KINDS, NOISES, options.limits))
    lines, kept = [], []
    with multiprocessing.Pool() as pool:
        for found in pool.imap(row, [(r, options.series) for r in rows]):
            line, good = as_line(found)
            lines.append(line)
            kept.append(good)
            print(line, "" if good else " <- not kept", flush=True)
    print(f"{sum(kept)} of {len(kept)} rows keep the promise.")
    if options.out:
        kinds = "; ".join(f"*{name}*: {make.__doc__}" for name, make in KINDS.items())
        text = INTRODUCTION.format(series=f"{options.series:,}", kinds=kinds.replace(".;", ";"))
        options.out.write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(0 if all(kept) else 1)


if __name__ == "__main__":
    main()
