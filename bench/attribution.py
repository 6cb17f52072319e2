"""A finding → its first suspects: what differs from the last good night, what moved with it.

Pure functions of records; what they say is what was recorded, never a guess.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from bench.findings import Finding
from bench.history import History
from bench.judging import Judgement
from bench.schema import Case, Record, columns
from bench.selectors import as_text
from bench.stats import levels, nights
from bench.stats.nights import Options

Array = np.ndarray[Any, np.dtype[Any]]

# The likeliest first; every other fact of the software follows in the order of the columns.
LIKELIEST = (
    "torch", "driver", "onnxruntime", "openvino", "tensorrt", "torch_tensorrt", "torchao",
    "torchvision", "triton", "kernel", "git_commit", "git_dirty", "environment_variables",
    "threads_used", "settings", "power_limit_w", "cpu_cores_usable", "cpu_limit_cores",
    "cpu_governor", "intraop_threads_default",
)  # fmt: skip
# Not in the fingerprint of the software, and yet causes: what a process was really given.
ALSO = (
    "threads_used",
    "settings",
    "clocks_locked",
    "other_processes",
)
NEIGHBOURS = ("device", "engine", "precision", "task", "batch_size", "recipe", "data")
BUSIER = 0.05  # more of a processor taken by others than on the good night is worth a line
CLOCK = 0.03  # and so much less clock
MACHINE_P = 0.01
CLEARLY = 3.0  # standard errors by which a neighbour has moved


class Machine(Struct, frozen=True):
    """What the sentinel says of tonight: its change as a share of speed, and the sentence."""

    slower: bool
    sentence: str


def machine(speeds: Array, size: float) -> Machine | None:
    """speeds: the sentinel's, a night each, logarithms, larger is slower; None: not known."""
    history, tonight = speeds[:-1, None], speeds[-1:]
    if not np.isfinite(tonight[0]) or np.isfinite(history).sum() < levels.FEWEST_NIGHTS:
        return None
    model = nights.learn(history, np.ones_like(history), size=size)
    judged = nights.judge(model, tonight, np.ones(1), Options(tests=1, size=size))
    change, error = float(np.expm1(-judged.effect[0])), float(judged.error[0])
    told = f"{100 * change:+.1f} % ± {100 * 1.96 * error:.1f} %"
    slower = bool(judged.p[0] < MACHINE_P and judged.effect[0] >= size / 2)
    if slower:
        return Machine(True, f"The machine: its sentinel, fixed work without a model, is at {told}")
    return Machine(False, f"Not the machine as a whole: its sentinel is at {told}")


def differences(before: Record, now: Record) -> list[str]:
    """What differs between a good night's record of a case and tonight's, the likeliest first."""
    names = [c for c in columns() if c.fingerprint == "software" or c.name in ALSO]
    found = {}
    for column in names:
        old, new = column.value(before), column.value(now)
        if old != new:
            found[column.name] = f"{_called(column.name)}: {_change(old, new)}"
    order = [n for n in LIKELIEST if n in found] + [n for n in found if n not in LIKELIEST]
    return [found[name] for name in order] + _load(before, now)


def _called(column: str) -> str:
    return column.replace("_", " ")


def _change(old: Any, new: Any) -> str:
    if isinstance(old, list) or isinstance(new, list):
        before, after = set(old or []), set(new or [])
        gone, come = sorted(before - after), sorted(after - before)
        return ", ".join([*(f"without {x}" for x in gone), *(f"now {x}" for x in come)])
    return f"{_text(old)} → {_text(new)}"


def _text(value: Any) -> str:
    if value is None:
        return "unknown"
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value}"


def _load(before: Record, now: Record) -> list[str]:
    """Other load and lower clocks, as measured while the case ran."""
    found = []
    busy = [_busy(r) for r in (before, now)]
    if None not in busy and busy[1] - busy[0] > BUSIER:  # type: ignore[operator]
        found.append(
            f"other load: other processes took {100 * busy[0]:.0f} % of a processor then, "  # type: ignore[operator]
            f"{100 * busy[1]:.0f} % tonight"  # type: ignore[operator]
        )
    clocks = [_median(r.measurement.device_windows.window_sm_clock_mhz) for r in (before, now)]
    if clocks[0] and clocks[1] and clocks[1] < (1 - CLOCK) * clocks[0]:
        found.append(f"clocks: SMs ran at {clocks[0]:.0f} MHz then, {clocks[1]:.0f} MHz tonight")
    return found


def _busy(record: Record) -> float | None:
    m = record.measurement
    if not m.window_s or m.window_foreign_cpu_s is None:
        return None
    return sum(m.window_foreign_cpu_s) / sum(m.window_s)


def _median(values: Sequence[float] | None) -> float | None:
    return statistics.median(values) if values else None


class Moves(Struct, frozen=True):
    """One metric tonight: how far each case moved, and how many there are with each value.

    Of every finding the same is asked, so that it is counted once: FIELD, VALUE → cases.
    """

    effects: dict[str, float]
    known: Counter[tuple[str, object]]
    with_it: dict[bool, Counter[tuple[str, object]]]  # of those that became worse, and better
    count: Counter[bool]


def moves(judgement: Judgement, cases: Mapping[str, Case]) -> dict[str, Moves]:
    """Of each metric."""
    found = {}
    ids, limit = judgement.history.series["case_id"], judgement.options.size
    for look in judgement.looks:
        judged = [s for s in np.flatnonzero(look.judged.judged) if ids[s] in cases]
        made = Moves(
            {ids[s]: float(look.judged.effect[s]) for s in judged},
            Counter(),
            {True: Counter(), False: Counter()},
            Counter(),
        )
        for s in judged:
            name, effect = ids[s], float(look.judged.effect[s])
            values = [(field, getattr(cases[name], field)) for field in NEIGHBOURS]
            made.known.update(values)
            # A noisy machine moves all its series a little every night.
            if abs(effect) >= max(limit, CLEARLY * look.judged.error[s]):
                made.with_it[effect > 0].update(values)
                made.count[effect > 0] += 1
        found[look.family.metric.column] = made
    return found


def neighbours(finding: Finding, moved: Moves | None, case: Case | None) -> str | None:
    """Which fields the series that moved with this one have in common, and the others have not."""
    own = None if moved is None else moved.effects.get(finding.case_id)
    if moved is None or case is None or own is None or len(moved.effects) < 2:
        return None
    count, all_ = moved.count[own > 0], len(moved.effects)
    if count == all_:
        return f"all {all_} cases moved with it"
    if count <= 1:
        return f"it alone moved, {all_ - 1} neighbours did not"
    best = _distinguishing(case, moved, worse=own > 0)
    said = f"{count} of {all_} cases moved"
    return f"{said}: {best}" if best else said


def _distinguishing(case: Case, moved: Moves, *, worse: bool) -> str | None:
    """The field whose value best tells those that moved from the others."""
    best, words_of_it = 0.5, None
    for field in NEIGHBOURS:
        value = getattr(case, field)
        same = moved.known[field, value]
        others = len(moved.effects) - same
        if not others or same < 2:
            continue
        inside = moved.with_it[worse][field, value]
        outside = moved.count[worse] - inside
        if inside / same - outside / others > best:
            best = inside / same - outside / others
            words_of_it = (
                f"{inside} of {same} with {field} {as_text(value)}, {outside} of {others} others"
            )
    return words_of_it


def last_good(history: History, finding: Finding) -> str | None:
    """The newest night before the change in which the case was measured.

    Undisturbed, where speed is the matter; another result is the same however fast it came.
    """
    since = history.index(finding.since_run or history.runs[-1]) or 0
    rows = history.rows
    mine = (rows["case_id"] == finding.case_id) & (rows["status"] == "measured")
    mine &= rows["night"] < since
    if finding.kind not in ("missing", "flaky", "differs"):
        mine &= ~rows["contaminated"].astype(bool)
    nights_of_it = rows["night"].to_numpy()[mine.to_numpy()]
    return history.runs[int(nights_of_it.max())] if len(nights_of_it) else None
