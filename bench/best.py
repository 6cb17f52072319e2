"""`bench best`: which engine, precision, batch size and threads are fastest here."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bench import analysis, processes, ready, registry, runner, store, words
from bench.environment import host
from bench.errors import WrongUse
from bench.halving import ENGINES_SHARE, FEWEST, ROUNDS, Halving, Limits
from bench.planning import Block, Plan
from bench.schedules import FINAL, SCREEN
from bench.schema import BUDGETS, Case, Record, tried
from bench.stats.spread import spread

SIZES = {"cpu": [1, 8, 32], "gpu": [1, 32, 256]}
OUTSIDE_S = 15.0  # of looking at the machine and the two sentinels
ONLY_TRAINS_FROM = 2  # BatchNorm cannot train on one small image
PRECISIONS = ["fp32", "tf32", "amp", "int8"]


class Request(Struct, frozen=True, kw_only=True):
    """The flags, checked for what can be checked without a plan."""

    axes: dict[str, list[Any]]
    limits: Limits
    minutes: float
    fidelity_images: int
    results: Path
    rebuild: bool


def execute(asked: Request) -> int:
    """Search, then say what was found. Returns the exit code; raises BenchError."""
    store.make_writable(asked.results)
    processes.start_server()
    from bench.progress import Line, announce

    announce("Loading torch and looking at the machine …")
    found = ready.prepare(plan(asked), foresee=False)
    able = [c for c in found.cases if c.case_id not in found.refusals]
    if not able:
        for case_id, reason in found.refusals.items():
            print(f"{case_id}: {reason}", file=sys.stderr)
        print("Nothing of this can run here.", file=sys.stderr)
        return 3
    cores = host.cores_usable()
    search = Halving(
        cases=able,
        threads=[n for n in (cores // 2,) if n >= 1 and "threads" not in asked.axes],
        limits=asked.limits,
        seconds=60 * asked.minutes - OUTSIDE_S,
        fidelity_images=asked.fidelity_images,
        timeout_s=60 * asked.minutes * ENGINES_SHARE,
    )
    found = msgspec.structs.replace(found, search=search, cases=able)
    line = Line(found.plan.budget)
    watch = runner.Watch(started=line.started, progress=line.progress, recorded=line.finished)
    try:
        with line:
            run_id = runner.run(found, asked.results, watch, own_cache=asked.rebuild)
    except KeyboardInterrupt:
        print("Interrupted; the tries so far are kept.", file=sys.stderr)
        return 130
    records = [r for r in store.records(asked.results, run_id) if r.purpose in (SCREEN, FINAL)]
    for sentence in told(records, asked.limits, search):
        print(sentence)
    return 0 if any(r.purpose == FINAL for r in records) else 3


def plan(asked: Request) -> Plan:
    """Every engine in every precision; what is emulated is no candidate."""
    axes: dict[str, Any] = {
        "engine": registry.names("engines"),
        "precision": PRECISIONS,
        "batch_size": SIZES,
        **asked.axes,
    }
    if asked.axes.get("task") == ["train"] and "batch_size" not in asked.axes:
        axes["batch_size"] = {k: [max(n, ONLY_TRAINS_FROM) for n in v] for k, v in SIZES.items()}
    skip = "precision" not in asked.axes
    return Plan("best", [Block(axes, skip_emulated=skip)], BUDGETS["quick"])


def limits(
    latency_ms: float | None,
    percentile: str,
    memory_mib: float | None,
    agreement: float | None,
    weights: list[Any] | None,
) -> Limits:
    """Raises WrongUse for what cannot be kept or could not be known."""
    name = f"p{percentile.replace('.', '')}"
    if name not in FEWEST:
        known = "50, 90, 95, 99, 99.9"
        raise WrongUse(f"--percentile: {percentile} is not measured; choose one of {known}.")
    for flag, value in (("--max-latency-ms", latency_ms), ("--max-memory-mib", memory_mib)):
        if value is not None and not 0 < value < float("inf"):
            raise WrongUse(f"{flag}: expected more than 0, not {value:g}.")
    if agreement is not None and (weights or ["random"]) == ["random"]:
        raise WrongUse(
            "--min-agreement needs weights that have learnt something: --weights default or a "
            "file. Random weights answer alike whatever they are shown."
        )
    return Limits(
        latency_ms=latency_ms,
        percentile=name,
        memory_bytes=None if memory_mib is None else memory_mib * 2**20,
        agreement=agreement,
    )


class Way(Struct, frozen=True):
    """A finalist: mean images/s over its rounds, its relative half-width, why it is out."""

    record: Record
    rate: float
    half_width: float | None
    rounds: int
    broken: str | None

    @property
    def name(self) -> str:
        """Case, rate and interval."""
        times = "1 process" if self.rounds == 1 else f"{self.rounds} processes"
        width = words.share(self.half_width)
        if self.half_width is None:
            width = f"({words.why_no_interval(self.record.warnings)})"
        return f"{self.record.case_id}: {words.rate(self.rate)} images/s {width} ({times})"


def told(records: list[Record], limits: Limits, search: Halving) -> list[str]:
    """The winner, what is as good, the gain, what each choice was worth, what was left out."""
    finals = [r for r in records if r.purpose == FINAL]
    found = sorted(_ways(finals, limits), key=lambda w: -w.rate)
    kept = [w for w in found if w.broken is None]
    if not kept:
        return ["Nothing that was tried keeps these limits.", *_out(records, limits)]
    best = kept[0]
    lines = [f"The fastest here: {best.name}."]
    lines += [f"  As good, within the intervals: {w.name}." for w in kept[1:] if _as_good(best, w)]
    lines += [f"  Next: {w.name}." for w in kept[1:] if not _as_good(best, w)]
    if best.rounds < ROUNDS:
        lines.append(
            f"  Processes differ by about 1 %: {ROUNDS} rounds would tell near ones apart, "
            "which take more --max-minutes."
        )
    lines += _gains(best, found)
    lines += _worth(best, [r for r in records if r.purpose == SCREEN])
    lines += _out(records, limits)
    untried = [c for c in search.engines() if not any(r.case == c for r in records)]
    if untried:
        names = ", ".join(f"{c.engine} {c.precision}" for c in untried)
        lines.append(f"Not tried for want of time (--max-minutes): {names}.")
    row: analysis.Row = dict(store.row(best.record).items())
    row["budget_name"] = "quick"
    lines.append(f"Measure it again: {analysis.command(row)} --repeats 5")
    return lines


def _ways(finals: list[Record], limits: Limits) -> list[Way]:
    ways = []
    for case_id in dict.fromkeys(r.case_id for r in finals):
        rounds = [r for r in finals if r.case_id == case_id]
        broken = [limits.broken(r.case, tried(r), short=False) for r in rounds]
        rates = [r.measurement.throughput_images_per_s for r in rounds]
        known = [rate for rate in rates if rate is not None]
        if known:
            within = [words.relative_half_width(r) for r in rounds]
            between = spread(known, within)
            half = between.half_width
            if half is None and len(known) == 1:
                half = within[0]
            why = next((b for b in broken if b), None)
            ways.append(Way(rounds[-1], between.mean, half, len(known), why))
    return ways


def _as_good(best: Way, other: Way) -> bool:
    """Whether the intervals overlap; one that is not known could be anywhere."""
    if best.half_width is None or other.half_width is None:
        return True
    return other.rate * (1 + other.half_width) >= best.rate * (1 - best.half_width)


def _gains(best: Way, found: list[Way]) -> list[str]:
    """Over eager fp32 and over the best fp32, as measured in the same rounds."""
    plain = [w for w in found if w.record.case.precision == "fp32"]
    eager = [w for w in plain if w.record.case.engine == "eager"]
    lines = []
    for name, others in (("eager fp32", eager), ("the best fp32", plain)):
        if not others:
            lines.append(f"  Against {name}: it was not measured.")
        elif others[0] is best:
            lines.append(f"  It is {name} itself.")
        else:
            other = others[0]
            widths = (best.half_width, other.half_width)
            half = None if None in widths else math.hypot(*filter(None, widths))
            gain = analysis.Ratio(other.record.case_id, best.rate / other.rate, half)
            lines.append(
                f"  {words.ratio(gain)} × {name} "
                f"({other.record.case_id}, {words.rate(other.rate)} images/s)"
            )
    return lines


AXES = ("device", "engine", "precision", "batch_size", "threads")


def _worth(best: Way, screened: list[Record]) -> list[str]:
    """The winner's short try ÷ the fastest short try with another value of each axis."""
    speeds = {r.case: r.measurement.throughput_images_per_s for r in screened}
    known = {case: rate for case, rate in speeds.items() if rate is not None}
    own = known.get(best.record.case)
    if own is None:
        return []
    found = []
    for axis in AXES:
        mine = getattr(best.record.case, axis)
        others = {c: rate for c, rate in known.items() if getattr(c, axis) != mine}
        if others:
            rival = max(others, key=lambda c: others[c])
            text = _value(rival, axis)
            found.append(
                f"{axis.replace('_', ' ')} {_value(best.record.case, axis)} "
                f"{own / others[rival]:.2f} × (then {text})"
            )
    if not found:
        return []
    return [
        "What each choice was worth, against the best of the short tries without it: "
        + "; ".join(found)
        + "."
    ]


def _value(case: Case, axis: str) -> str:
    value = getattr(case, axis)
    return "all" if value is None else str(value)


def _out(records: list[Record], limits: Limits) -> list[str]:
    """Tries that broke a limit or did not end well, each with its reason, a line a case."""
    lines: dict[str, str] = {}
    for r in records:
        why = limits.broken(r.case, tried(r), short=r.purpose == SCREEN)
        if why is not None:
            reason = f"{r.status}: {r.reason}" if r.status != "measured" else why
            lines[r.case_id] = f"Left out: {r.case_id}: {reason}."
    return list(lines.values())
