"""How often `bench regress` cries wolf and how soon it sees a change, beside others' rules.

Simulated histories of 100 series × 60 nights, judged night by night as `bench regress`
judges them, confirming runs included. Says nothing of a real machine; for your own history:
bench regress --self-test.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import multiprocessing
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from bench.stats import levels, nights

Array = np.ndarray[Any, np.dtype[Any]]
SERIES, NIGHTS, CHANGE, CHANGED = 100, 60, 40, 10
NIGHT, PROCESS = 0.010, 0.011  # standard deviations, of logarithms
ROUNDS = 6  # confirming ones at most
PROCESSES = SERIES // 2  # confirming ones a night at most: half of its own time


@dataclasses.dataclass(frozen=True)
class World:
    """One kind of history. night(rng) -> nights × series of what belongs to the night."""

    name: str
    night: Callable[[np.random.Generator], Array]
    process: Callable[[np.random.Generator, int], Array]
    change: float = 0.0  # of the first CHANGED series from night CHANGE on, a share
    creep: bool = False  # that share every night
    slow_rules: bool = False  # whether the rules that take seconds a history are asked too


def independent(rng: np.random.Generator) -> Array:
    return rng.normal(0, NIGHT, (NIGHTS, SERIES))


def shared(rng: np.random.Generator) -> Array:
    return np.repeat(rng.normal(0, NIGHT, (NIGHTS, 1)), SERIES, axis=1)


def weekly(rng: np.random.Generator) -> Array:
    weekend = (np.arange(NIGHTS) + rng.integers(7)) % 7 >= 5
    return independent(rng) - 0.02 * weekend[:, None]


def heavy(rng: np.random.Generator) -> Array:
    return rng.standard_t(3, (NIGHTS, SERIES)) * NIGHT / np.sqrt(3)


def two_state(rng: np.random.Generator) -> Array:
    """A third of the series is 4 % slower on a fifth of the nights."""
    slow = (rng.random((NIGHTS, SERIES)) < 0.2) & (np.arange(SERIES) % 3 == 0)
    return independent(rng) + 0.04 * slow


def drift(rng: np.random.Generator) -> Array:
    """Each series wanders by 1.5 % up and down in about 40 nights."""
    phase = rng.random(SERIES) * 2 * np.pi
    return independent(rng) + 0.015 * np.sin(np.arange(NIGHTS)[:, None] / 40 * 2 * np.pi + phase)


def normal(rng: np.random.Generator, count: int) -> Array:
    return rng.normal(0, PROCESS, count)


def heavy_process(rng: np.random.Generator, count: int) -> Array:
    return rng.standard_t(3, count) * PROCESS / np.sqrt(3)


BASE = {"independent nights": independent, "nights shared by the machine": shared}
WORLDS = [
    *(World(f"A/A, {name}", night, normal, slow_rules=True) for name, night in BASE.items()),
    *(
        World(
            f"{100 * size:g} % step, {name}", night, normal, size, slow_rules=size in (0.05, 0.10)
        )
        for name, night in BASE.items()
        for size in (0.02, 0.03, 0.04, 0.05, 0.10)
    ),
    *(
        World(f"creep 0.3 %, {name}", night, normal, 0.003, creep=True)
        for name, night in BASE.items()
    ),
    World("A/A, weekly cycle of 2 %", weekly, normal),
    World("A/A, heavy tails (t, 3 degrees)", heavy, heavy_process),
    World("A/A, two states 4 % apart", two_state, normal),
    World("A/A, slow drift of ± 1.5 %", drift, normal),
    World("5 % step, weekly cycle of 2 %", weekly, normal, 0.05),
    World("5 % step, heavy tails (t, 3 degrees)", heavy, heavy_process, 0.05),
    World("5 % step, two states 4 % apart", two_state, normal, 0.05),
    World("5 % step, slow drift of ± 1.5 %", drift, normal, 0.05),
    World("10 % step, heavy tails (t, 3 degrees)", heavy, heavy_process, 0.10),
    World("50 % step, heavy tails (t, 3 degrees)", heavy, heavy_process, 0.50),
]


@dataclasses.dataclass
class History:
    """What one rule did: red[night, series] of the nights judged; processes to confirm."""

    red: Array
    extra: int = 0
    judged: range = range(levels.FEWEST_NIGHTS, NIGHTS)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a rule is shown: first[night, series]; and what a further process would measure."""

    world: World
    level: Array
    first: Array
    rng: np.random.Generator

    def again(self, night: int, series: int) -> float:
        return float(self.level[night, series] + self.world.process(self.rng, 1)[0])


def truth(world: World, rng: np.random.Generator) -> Array:
    """What belongs to the night, with the change; nights × series."""
    level = world.night(rng)
    if world.creep:
        since = np.maximum(np.arange(NIGHTS) - CHANGE + 1, 0)
        level[:, :CHANGED] += np.log1p(world.change) * since[:, None]
    elif world.change:
        level[CHANGE:, :CHANGED] -= np.log1p(-world.change)
    return level


def ours(seen: Seen) -> History:
    """bench regress with confirming rounds, as many as its time allows."""
    first = seen.first
    values, processes = first.copy(), np.ones_like(first)
    within = nights.Within()
    options = nights.Options(tests=SERIES)
    history = History(np.zeros(first.shape, bool))
    for night in range(levels.FEWEST_NIGHTS, NIGHTS):
        model = nights.learn(values[:night], processes[:night], within, size=options.size)
        judged = nights.judge(model, first[night], np.ones(SERIES), options)
        suspects = sorted(np.flatnonzero(judged.suspect), key=lambda s: judged.p[s])
        if not suspects:
            continue
        calm = np.where(judged.suspect, np.inf, np.abs(judged.effect))
        night_ = Confirming(seen, night, model, options, int(np.argmin(calm)))
        history.red[night, night_.confirm(suspects)] = True
        # Those for which there was no time are judged by history alone.
        late = [s for s in suspects if s not in night_.again]
        history.red[night, late] = judged.worse[late]
        history.extra += night_.extra
        for s, more in night_.again.items():
            values[night, s] = np.mean([first[night, s], *more])
            processes[night, s] = 1 + len(more)
            # First processes were chosen, for being slow or calm: they say nothing of the spread.
            within = nights.Within(
                within.squares + float(np.var(more) * len(more)), within.freedom + len(more) - 1
            )
    return history


@dataclasses.dataclass
class Confirming:
    """bench.confirming.Confirm on simulated processes."""

    seen: Seen
    night: int
    model: nights.Model
    options: nights.Options
    control: int
    again: dict[int, list[float]] = dataclasses.field(default_factory=dict)
    extra: int = 0

    def confirm(self, suspects: list[int]) -> list[int]:
        """The suspects that stand. Those without a process in `again` were not looked at."""
        red: list[int] = []
        waiting = suspects
        while waiting:
            room = (PROCESSES - self.extra) // nights.FEWEST_CONFIRMING - 1
            fitting = max(room, 0 if self.extra else 1)
            if not fitting:
                break
            red += self._rounds(np.array(waiting[:fitting]))
            waiting = waiting[fitting:]
        return red

    def _rounds(self, undecided: Array) -> list[int]:
        first, red, calm = self.seen.first[self.night], [], []
        for round_ in range(1, ROUNDS + 1):
            if self.extra + len(undecided) + 1 > PROCESSES:
                break
            for s in [*undecided, self.control]:
                self.again.setdefault(int(s), []).append(self.seen.again(self.night, int(s)))
            self.extra += len(undecided) + 1
            calm.append(self.again[self.control][-1])
            mean = np.array([np.mean([first[s], *self.again[int(s)]]) for s in undecided])
            alone = np.array([np.mean(self.again[int(s)]) for s in undecided])
            count = np.full(len(undecided), 1 + round_)
            now = nights.judge(self.model.only(undecided), mean, count, self.options)
            said = np.array(nights.confirmed(now, alone, round_, self.options))
            if np.mean(calm) - first[self.control] >= self.options.size:
                said[said == "confirmed"] = "undecided"  # the machine became slower
            red += undecided[said == "confirmed"].tolist()
            undecided = undecided[said == "undecided"]
            if not len(undecided):
                break
        return red


def alone(seen: Seen) -> History:
    """bench regress --no-confirm."""
    first = seen.first
    history = History(np.zeros(first.shape, bool))
    options = nights.Options(tests=SERIES)
    ones = np.ones_like(first)
    for night in range(levels.FEWEST_NIGHTS, NIGHTS):
        model = nights.learn(first[:night], ones[:night], size=options.size)
        history.red[night] = nights.judge(model, first[night], np.ones(SERIES), options).worse
    return history


def torchbench(seen: Seen) -> History:
    """|Δ| > 7 % against the previous night; here only what became slower."""
    speed = np.exp(-seen.first)
    red = np.zeros(speed.shape, bool)
    red[1:] = speed[1:] < 0.93 * speed[:-1]
    return History(red)


def dashboard(seen: Seen) -> History:
    """The last two nights below 0.95 × the median of the six before them."""
    speed = np.exp(-seen.first)
    red = np.zeros(speed.shape, bool)
    for night in range(7, NIGHTS):
        limit = 0.95 * np.median(speed[night - 7 : night - 1], axis=0)
        red[night] = (speed[night] < limit) & (speed[night - 1] < limit)
    return History(red)


# Slow rules judge some nights only: those around a change.
SOME = range(CHANGE - 1, CHANGE + 3)
SLOW = ("asv 5 %", "Otava's defaults")


def new_changes(seen: Seen, look: Callable[[Array], set[int]]) -> History:
    """Red where a look at a series shows a change that earlier nights' looks did not."""
    red = np.zeros(seen.first.shape, bool)
    for s in range(SERIES):
        before = look(seen.first[: SOME.start, s])
        for night in SOME:
            now = look(seen.first[: night + 1, s])
            red[night, s] = any(all(abs(c - b) > 2 for b in before) for c in now)
            before |= now
    return History(red, judged=SOME)


def otava(seen: Seen) -> History:
    """Otava's defaults: a change point that last night's look did not show, of a slowdown."""
    from otava.analysis import compute_change_points

    def look(values: Array) -> set[int]:
        # A list, as Otava's own commands pass: of an array 0.8.0 judges the whole in each window.
        speeds = np.exp(-values).tolist()
        found, _ = compute_change_points(speeds, window_len=50, max_pvalue=0.001)
        return {c.index for c in found if c.stats.forward_rel_change() < 0}

    return new_changes(seen, look)


def asv(seen: Seen) -> History:
    """asv: a step by 5 % or more above the best that is not yet known."""
    from asv.step_detect import detect_regressions, detect_steps

    def look(values: Array) -> set[int]:
        _, _, found = detect_regressions(detect_steps(list(np.exp(values))), 0.05, 1)
        return {after for _, after, *_ in found or []}

    return new_changes(seen, look)


RULES = {
    "ours": ours,
    "ours, --no-confirm": alone,
    "TorchBench 7 %": torchbench,
    "dashboard 0.95": dashboard,
    "asv 5 %": asv,
    "Otava's defaults": otava,
}


def one(job: tuple[int, int, tuple[str, ...]]) -> dict[str, History]:
    """All rules on one history."""
    which, seed, rules = job
    world = WORLDS[which]
    rng = np.random.default_rng([which, seed])
    level = truth(world, rng)
    first = level + world.process(rng, level.size).reshape(level.shape)
    made = {}
    for name in rules:
        found = RULES[name](Seen(world, level, first, np.random.default_rng([seed, 1])))
        made[name] = found
    return made


def bounds(successes: int, count: int) -> str:
    """A share with its 95 % Clopper-Pearson interval."""
    if count == 0:
        return "-"
    found = stats.binomtest(successes, count).proportion_ci(0.95)
    return f"{100 * successes / count:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def told(world: World, found: list[History]) -> str:
    """What is said of one rule on one kind of history."""
    whole = np.stack([h.red for h in found])  # histories × nights × series
    judged = found[0].judged
    quiet = range(judged.start, min(judged.stop, CHANGE)) if world.change else judged
    wrong = whole[:, quiet.start : quiet.stop].any(axis=2)
    cells = [bounds(int(wrong.sum()), wrong.size)]
    for n in (1, 2, 3, 7):
        within = world.change and not world.creep and CHANGE + n <= judged.stop
        seen = whole[:, CHANGE : CHANGE + n, :CHANGED].any(axis=1)
        cells.append(bounds(int(seen.sum()), seen.size) if within else "-")
    # The last night on which a creep is still below 5 %.
    before = int(np.ceil(np.log1p(0.05) / np.log1p(world.change))) - 1 if world.creep else 0
    seen = whole[:, CHANGE : CHANGE + before, :CHANGED].any(axis=1)
    crept = world.creep and CHANGE + before <= judged.stop
    cells.append(bounds(int(seen.sum()), seen.size) if crept else "-")
    extra = sum(h.extra for h in found)
    share = extra / (len(found) * len(judged) * SERIES)
    cells.append(f"{100 * share:.1f}" if extra else "-")
    return " | ".join(cells)


HEAD = (
    "history", "rule", "false nights", "by night 1", "by night 2", "by night 3", "by night 7",
    "before 5 %", "confirming costs",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--histories", type=int, default=100)
    parser.add_argument("--only", default="", help="worlds whose name has this in it")
    parser.add_argument("--rules", default="", help="rules whose name has this in it")
    options = parser.parse_args()
    rules = tuple(name for name in RULES if options.rules in name and available(name))
    print("Shares in %, with their 95 % interval (Clopper and Pearson).\n")
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    with multiprocessing.Pool() as pool:
        for which, world in enumerate(WORLDS):
            if options.only not in world.name:
                continue
            asked = tuple(r for r in rules if world.slow_rules or r not in SLOW)
            jobs = [(which, seed, asked) for seed in range(options.histories)]
            made = pool.map(one, jobs, chunksize=1)
            for name in asked:
                said = told(world, [m[name] for m in made])
                print(f"| {world.name} | {name} | {said} |", flush=True)


def available(rule: str) -> bool:
    """Whether the library of a rule is installed; says so where it is not."""
    package = {"asv 5 %": "asv", "Otava's defaults": "otava"}.get(rule)
    if package is None or importlib.util.find_spec(package):
        return True
    print(f"{rule}: {package} is not installed (pip install --no-deps), so it is left out.\n")
    return False


if __name__ == "__main__":
    main()
