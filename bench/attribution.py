"""A finding → its first suspects: what differs from the last good night, what moved with it.

Pure functions of records; what they say is what was recorded, never a guess.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from bench.findings import Finding
from bench.history import History
from bench.judging import Judgement
from bench.schema import Case, Record, columns
from bench.selectors import as_text
from bench.stats import nights
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


class Machine(Struct, frozen=True):
    """What the sentinel says of tonight: its change as a share of speed, and the sentence."""

    slower: bool
    sentence: str


def machine(speeds: Array, size: float) -> Machine | None:
    """speeds: the sentinel's, a night each, logarithms, larger is slower; None: not known."""
    history, tonight = speeds[:-1, None], speeds[-1:]
    if not np.isfinite(tonight[0]) or np.isfinite(history).sum() < nights.FEWEST_NIGHTS:
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


def neighbours(finding: Finding, judgement: Judgement, cases: dict[str, Case]) -> str | None:
    """Which fields the series that moved with this one have in common, and the others have not."""
    look = next((k for k in judgement.looks if k.family.metric.column == finding.metric), None)
    if look is None or finding.case_id not in cases:
        return None
    ids = judgement.history.series["case_id"]
    effects = {
        ids[s]: float(look.judged.effect[s])
        for s in np.flatnonzero(look.judged.judged)
        if ids[s] in cases
    }
    own = effects.get(finding.case_id)
    if own is None or len(effects) < 2:
        return None
    limit = judgement.options.size
    moved = {name for name, effect in effects.items() if abs(effect) >= limit and effect * own > 0}
    if len(moved) == len(effects):
        return f"all {len(effects)} cases moved with it"
    if len(moved) == 1:
        return f"it alone moved, {len(effects) - 1} neighbours did not"
    best = _distinguishing(cases[finding.case_id], cases, set(effects), moved)
    said = f"{len(moved)} of {len(effects)} cases moved"
    return f"{said}: {best}" if best else said


def _distinguishing(
    mine: Case, cases: dict[str, Case], known: set[str], moved: set[str]
) -> str | None:
    """The field whose value best tells those that moved from the others."""
    best, words_of_it = 0.5, None
    for field in NEIGHBOURS:
        value = getattr(mine, field)
        same = {n for n in known if getattr(cases[n], field) == value}
        others = known - same
        if not others or len(same) < 2:
            continue
        with_it, without = len(same & moved) / len(same), len(others & moved) / len(others)
        if with_it - without > best:
            best = with_it - without
            words_of_it = (
                f"{len(same & moved)} of {len(same)} with {field} {as_text(value)}, "
                f"{len(others & moved)} of {len(others)} others"
            )
    return words_of_it


def last_good(history: History, finding: Finding) -> str | None:
    """The night before the change."""
    since = history.index(finding.since_run or history.runs[-1])
    return None if not since else history.runs[since - 1]
