"""What `bench run` prints at its end, and what `--dry-run` prints instead."""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from bench import words
from bench.schedules import FIT
from bench.schema import WARNINGS, Record
from bench.stats.spread import spread

if TYPE_CHECKING:
    from rich.table import Table

    from bench.messages import Forecast
    from bench.ready import Ready


NAMED = 2  # cases a warning names at the end of a run


def print_plan(ready: Ready) -> None:
    """Each case, and why it cannot run here if it cannot."""
    for case in ready.cases:
        reason = ready.refusals.get(case.case_id)
        need = _need(ready.forecasts.get(case.case_id), ready.memory_bytes(case))
        print(f"{case.case_id}  {'skipped: ' + reason if reason else 'would run'}{need}")
    for case in ready.searches:
        reason, most = ready.refusals.get(case.case_id), ready.ceilings.get(case.case_id)
        how = "would seek the largest batch, in one round"
        how += f", up to {most:,} by the forecast of its memory" if most else ""
        print(f"{case.case_id} and larger  {'skipped: ' + reason if reason else how}")
    rounds = f" × {ready.plan.repeats} rounds" if ready.plan.repeats > 1 else ""
    everything = [*ready.cases, *ready.searches]
    runnable = sum(c.case_id not in ready.refusals for c in everything)
    print(f"{len(everything)} cases{rounds}, {runnable} can run here; nothing was measured.")


def _need(expected: Forecast | None, memory: int | None) -> str:
    """The forecast peak beside the device's memory."""
    if expected is None or expected.peak_bytes is None:
        return ""
    of = f" of the device's {words.mebibytes(memory)}" if memory else ""
    return f"; needs at least {words.mebibytes(expected.peak_bytes)}{of}"


def tell(
    records: list[Record], folder: Path, notes: list[str], *, json: bool, interrupted: bool
) -> None:
    """The table and the warnings in plain words; one line on standard error beside --json.

    `records` are those made now, the sentinel's not among them; `notes` are sentences
    about the whole run.
    """
    out = sys.stderr if json else sys.stdout
    cases = [r for r in records if r.purpose != FIT]  # its short tries have no numbers to show
    if records and not json:
        table(cases, out)
        explain(cases, out)
        for sentence in deterministic_costs(cases):
            print(sentence, file=out)
    for note in notes:
        print(note, file=out)
    done = len(records)
    if interrupted:
        print(
            f"Interrupted: {done} finished {'record is' if done == 1 else 'records are'} kept in "
            f"{folder}; run the same command with --resume for the rest.",
            file=out,
        )
    elif not records:
        print("Every case of this run has its record already; nothing was left to do.", file=out)
    else:
        print(f"{done} records of run {records[0].run_id} in {folder}.", file=out)


def table(records: list[Record], out: IO[str]) -> None:
    """One row a record; where cases have several rounds, one row a case."""
    if any(r.round > 1 for r in records):
        _print(_rounds(records), out)
        return
    from rich.text import Text

    grid = _columns("images/s", "95 % CI", "p50 ms", "p99 ms", "peak memory")
    for r in records:
        m = r.measurement
        memory = m.peak_device_memory_bytes or m.peak_host_memory_bytes
        grid.add_row(
            Text(r.case_id),
            words.rate(m.throughput_images_per_s),
            words.half_width(m.throughput_images_per_s, m.throughput_ci_low, m.throughput_ci_high),
            words.rate(m.latency_p50_ms),
            words.rate(m.latency_p99_ms),
            words.mebibytes(memory),
            r.status + ("*" if r.warnings else ""),
        )
    _print(grid, out)


def _columns(*numbers: str) -> Table:
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("case", overflow="fold", min_width=24)
    for name in numbers:
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("status", no_wrap=True)
    return grid


def _rounds(records: list[Record]) -> Table:
    """What processes agree in, and how much they differ."""
    from rich.text import Text

    grid = _columns("images/s", "95 % CI", "between processes", "within one", "p50 ms")
    for case_id in dict.fromkeys(r.case_id for r in records):
        rounds = [r for r in records if r.case_id == case_id]
        done = [r for r in rounds if r.measurement.throughput_images_per_s is not None]
        rates = [r.measurement.throughput_images_per_s or 0.0 for r in done]
        found = spread(rates, [words.relative_half_width(r) for r in done]) if rates else None
        p50 = [r.measurement.latency_p50_ms for r in done]
        known = [p for p in p50 if p is not None]
        status = f"{len(done)} of {len(rounds)} measured"
        grid.add_row(
            Text(case_id),
            words.rate(found.mean if found else None),
            words.share(found.half_width if found else None),
            words.share(found.between if found else None, sign=""),
            words.share(found.within if found else None),
            words.rate(statistics.fmean(known) if known and len(known) == len(p50) else None),
            status + ("*" if any(r.warnings for r in rounds) else ""),
        )
    return grid


def _print(grid: Table, out: IO[str]) -> None:
    """To a terminal, or to a pipe."""
    from rich.console import Console

    # A pipe has no width: wide enough for every column, so that nothing is cut.
    width = None if out.isatty() else 160
    Console(file=out, width=width, highlight=False).print(grid)


def explain(records: list[Record], out: IO[str]) -> None:
    """Reasons of what was not measured, then each warning once with the cases it touches."""
    reasons: dict[str, list[str]] = {}
    for r in records:
        if r.status != "measured":
            reasons.setdefault(f"{r.status}: {r.reason}", []).append(r.case_id)
    for reason, touched in reasons.items():
        print(f"{reason} ({_few(touched)})", file=out)
    for code, text in WARNINGS.items():
        touched = [r.case_id for r in records if code in r.warnings]
        if touched:
            # A few are named; of many, the report marks each.
            which = ", ".join(dict.fromkeys(touched))
            if len(touched) > NAMED:
                which = f"{len(touched)} of {len(records)} records"
            print(f"* {text} ({which})", file=out)


def deterministic_costs(records: list[Record]) -> list[str]:
    """What determinism cost each case that was measured with and without it, a sentence a case."""
    tries = {(r.case, r.round): r for r in records if r.status == "measured"}
    pairs: dict[str, list[tuple[Record, Record]]] = {}
    for (case, number), record in tries.items():
        twin = msgspec.structs.replace(case, deterministic=False)
        if case.deterministic and (twin, number) in tries:
            pairs.setdefault(twin.case_id, []).append((record, tries[twin, number]))
    return [_cost(case_id, found) for case_id, found in pairs.items()]


def _cost(case_id: str, pairs: list[tuple[Record, Record]]) -> str:
    """The mean over the rounds of 1 - throughput with ÷ throughput without; never a bare number."""
    ratios = [_rate(on) / _rate(off) for on, off in pairs]
    half = _half_width(ratios, pairs)
    if half is None:
        return (
            f"What deterministic algorithms cost {case_id} is not known: too few samples for an "
            "interval; give it more time with --max-seconds."
        )
    times = f"{len(pairs)} processes each"
    if len(pairs) == 1:
        times = "one process each; processes differ by about 1 %"
    names = {n for on, _ in pairs for n in on.measurement.nondeterministic_operations or []}
    but = f"; not deterministic all the same: {', '.join(sorted(names))}" if names else ""
    return (
        f"Deterministic algorithms cost {100 * (1 - statistics.fmean(ratios)):.1f} % ± "
        f"{100 * half:.1f} % of the throughput of {case_id} ({times}{but})."
    )


def _half_width(ratios: list[float], pairs: list[tuple[Record, Record]]) -> float | None:
    """Between processes from three rounds on; else as the processes' own intervals give it."""
    between = spread(ratios, []).half_width
    if between is not None:
        return between * statistics.fmean(ratios)
    widths = [[words.relative_half_width(r) for r in pair] for pair in pairs]
    known = [math.hypot(*(w for w in pair if w is not None)) for pair in widths if None not in pair]
    if len(known) < len(pairs):
        return None
    return math.hypot(*(r * w for r, w in zip(ratios, known, strict=True))) / len(pairs)


def _rate(record: Record) -> float:
    rate = record.measurement.throughput_images_per_s
    assert rate is not None, "only measured records are paired"
    return rate


def _few(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
