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
from bench.halving import ENGINES_SHARE, FEWEST, ROUNDS, Halving, Limits, proving_s
from bench.planning import Block, Plan
from bench.schedules import FINAL, SCREEN
from bench.schema import BUDGETS, Case, Record, tried
from bench.stats.spread import FEWEST_PROCESSES, spread

SIZES = {"cpu": [1, 8, 32], "gpu": [1, 32, 256]}
OUTSIDE_S = 15.0  # of looking at the machine and the two sentinels
ONLY_TRAINS_FROM = 2  # BatchNorm cannot train on one small image
PRECISIONS = ["fp32", "tf32", "amp", "int8"]
PERCENTILES = {"50": "p50", "90": "p90", "95": "p95", "99": "p99", "99.9": "p999"}
WORK = ("task", "model", "image_size", "data", "weights", "classes")  # rates of two do not compare


class Request(Struct, frozen=True, kw_only=True):
    """The flags, checked for what can be checked without a plan."""

    axes: dict[str, list[Any]]
    limits: Limits
    minutes: float
    fidelity_images: int | None  # None: as many as the model's classes need
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
        seconds=_seconds(asked.minutes),
        fidelity_images=0 if asked.limits.agreement is None else _inputs(asked, able[0]),
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
    return 0 if any(w.broken is None for w in _ways(_finals(records), asked.limits)) else 3


def _seconds(minutes: float) -> float:
    """What is left for tries."""
    return 60 * minutes - OUTSIDE_S


def _inputs(asked: Request, case: Case) -> int:
    """On how many inputs agreement is judged. Raises WrongUse where it could never be stated."""
    question = msgspec.json.encode([case, asked.fidelity_images])
    answer = processes.ask("bench.fidelity", question)
    count, reason = msgspec.json.decode(answer, type=tuple[int, str | None])
    if reason is not None:
        raise WrongUse(f"--min-agreement: {reason}.")
    return count


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
    axes: dict[str, list[Any]],
    *,
    latency_ms: float | None,
    percentile: str,
    memory_mib: float | None,
    agreement: float | None,
    minutes: float,
) -> Limits:
    """What a way must keep. Raises WrongUse for what cannot be kept or could not be known."""
    name = PERCENTILES.get(percentile)
    if name is None:
        known = ", ".join(PERCENTILES)
        raise WrongUse(f"--percentile: {percentile} is not measured; choose one of {known}.")
    if "auto" in axes.get("batch_size", []):
        raise WrongUse(
            "--batch-size auto: bench best tries the sizes it is given, as --batch-size 1,8,32; "
            "bench run --batch-size auto looks for the largest that fits."
        )
    for flag, value in (("--max-latency-ms", latency_ms), ("--max-memory-mib", memory_mib)):
        if value is not None and not 0 < value < float("inf"):
            raise WrongUse(f"{flag}: expected more than 0, not {value:g}.")
    asked = Limits(
        latency_ms=latency_ms,
        percentile=name,
        memory_bytes=None if memory_mib is None else memory_mib * 2**20,
        agreement=agreement,
    )
    for axis in WORK:
        if len(axes.get(axis, [])) > 1:
            flag = f"--{axis.replace('_', '-')}"
            raise WrongUse(f"{flag}: bench best searches for one at a time; name one.")
    if axes.get("task") == ["train"]:
        _check_training(asked)
    if agreement is not None:
        _check_answers(axes)
    if latency_ms is not None:
        _check_requests(asked, percentile, minutes)
    return asked


def _check_training(asked: Limits) -> None:
    for flag, value in (
        ("--max-latency-ms", asked.latency_ms),
        ("--min-agreement", asked.agreement),
    ):
        if value is not None:
            raise WrongUse(
                f"{flag} limits inference: a training step answers no request. Leave it out, or "
                "search with --task infer."
            )


def _check_answers(axes: dict[str, list[Any]]) -> None:
    """Agreement says something of a network that has learnt, on images like those it learnt."""
    if axes.get("weights", ["random"]) == ["random"]:
        raise WrongUse(
            "--min-agreement needs weights that have learnt something: --weights default or a "
            "file. Random weights answer alike whatever they are shown."
        )
    if axes.get("data", ["synthetic"]) == ["synthetic"]:
        raise WrongUse(
            "--min-agreement needs real images, at least half as many as the model has classes: "
            "--data folder:DIR, and --fidelity-images N for another number than twice the "
            "classes. A network predicts few of its classes on noise."
        )


def _check_requests(asked: Limits, percentile: str, minutes: float) -> None:
    """A way that just keeps the limit must be provable in half of the time; the rest searches."""
    needed_s = proving_s(asked)
    if 2 * needed_s <= _seconds(minutes):
        return
    enough = math.ceil((2 * needed_s + OUTSIDE_S) / 60)
    raise WrongUse(
        f"--max-latency-ms {asked.latency_ms:g} cannot be shown at --percentile {percentile} in "
        f"--max-minutes {minutes:g}: that takes {FEWEST[asked.percentile]:,} requests of each of "
        f"the last ways, up to {words.duration(needed_s)}. Allow --max-minutes {enough}, or "
        "choose a lower percentile."
    )


class Way(Struct, frozen=True):
    """A finalist: mean images/s over its rounds, its relative half-width, why it is out."""

    record: Record
    rate: float
    half_width: float | None  # between processes; of one process, within it
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

    @property
    def between(self) -> float | None:
        """The half-width between processes: an interval within one compares nothing."""
        return self.half_width if self.rounds >= FEWEST_PROCESSES else None


def told(records: list[Record], limits: Limits, search: Halving) -> list[str]:
    """The winner, what is as good, the gain, what each choice was worth, what was left out."""
    found = sorted(_ways(_finals(records), limits), key=lambda w: -w.rate)
    kept = [w for w in found if w.broken is None]
    if not kept:
        return ["Nothing that was tried keeps these limits.", *_out(records, limits)]
    best = kept[0]
    lines = [f"The fastest here: {best.name}."]
    lines += [f"  {_standing(best, w)}: {w.name}." for w in kept[1:]]
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


def _finals(records: list[Record]) -> list[Record]:
    return [r for r in records if r.purpose == FINAL]


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


# Processes differ by about 1 %, two cores of a virtual machine by 10 % (both seen): a way
# slower than that by far needs no interval to be the slower one.
FAR = 1.25


def _standing(best: Way, other: Way) -> str:
    """How another way stands to the fastest."""
    as_good = _as_good(best, other)
    if as_good is not None:
        return "As good, within the intervals" if as_good else "Next"
    near = best.rate < FAR * other.rate
    return "Cannot be told apart (no interval)" if near else "Slower by far (no interval)"


def _as_good(best: Way, other: Way) -> bool | None:
    """Whether the intervals between processes overlap; None where one is not known."""
    if best.between is None or other.between is None:
        return None
    return other.rate * (1 + other.between) >= best.rate * (1 - best.between)


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
            half = None
            if best.between is not None and other.between is not None:
                half = math.hypot(best.between, other.between)
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
            # Its tries are as long as the search allows, which has no --timeout.
            reason = reason.replace("--timeout SECONDS", "--max-minutes")
            # What was too late in its short try has no percentile in the long one.
            lines.setdefault(r.case_id, f"Left out: {r.case_id}: {reason}.")
    return list(lines.values())
