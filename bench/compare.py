"""`bench compare A B`: reads, judges, prints."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import msgspec
from msgspec import Struct

from bench import analysis, selectors, store, verdicts, words
from bench.errors import NothingToReport, WrongUse
from bench.verdicts import Side, Verdict

PIPE_WIDTH = 1000  # a pipe has no width: wide enough, so that nothing is folded


class Request(Struct, frozen=True, kw_only=True):
    """What was asked for; shares as numbers, 0.02 for 2 %."""

    a: str
    b: str
    results: Path
    min_effect: float
    fail_if_slower: float | None
    json: bool


def execute(asked: Request) -> int:
    """Print a verdict a pair. Returns the exit code; raises WrongUse and NothingToReport."""
    if asked.fail_if_slower is not None and asked.fail_if_slower < asked.min_effect:
        raise WrongUse(
            f"--fail-if-slower {100 * asked.fail_if_slower:g}% is less than --min-effect "
            f"{100 * asked.min_effect:g}%, under which nothing is called slower; lower that too."
        )
    a, b = selectors.parse(asked.a), selectors.parse(asked.b)
    found = store.read_some(asked.results)
    for sentence in found.passed_over:
        print(f"Note: {sentence}", file=sys.stderr)
    grid = analysis.cases(found.frame)
    if grid.empty:
        raise NothingToReport(f"No record of a case in {asked.results}; measure first: bench run.")
    judged = verdicts.compare(grid, a, b, asked.min_effect)
    if asked.json:
        for verdict in judged:
            print(msgspec.json.encode(verdict).decode())
    else:
        tell(judged)
    return 0 if asked.fail_if_slower is None else exit_code(judged, asked.fail_if_slower)


def exit_code(judged: list[Verdict], limit: float) -> int:
    """1 where B is slower by at least the share `limit`; says what could not be decided."""
    undecided = sum(v.verdict in ("inconclusive", "unpaired") for v in judged)
    if undecided:
        print(
            f"--fail-if-slower could not judge {undecided} of {len(judged)} cases.",
            file=sys.stderr,
        )
    slower = (v.ratio for v in judged if v.verdict == "slower" and v.ratio is not None)
    return int(any(ratio <= 1 - limit for ratio in slower))


def tell(judged: list[Verdict]) -> None:
    """The runs, the table, the cases without a partner, what would decide, the counts."""
    pairs = [v for v in judged if v.verdict != "unpaired"]
    for name, sides in (("A", [v.a for v in pairs]), ("B", [v.b for v in pairs])):
        print(f"{name}: run {', '.join(dict.fromkeys(s.run_id for s in sides if s))}")
    _table(pairs)
    for v in judged:
        side = v.a or v.b
        if v.verdict == "unpaired" and side is not None:
            print(f"Only in {'A' if v.a else 'B'}: {side.case_id} (run {side.run_id}): {v.reason}.")
    commands = list(dict.fromkeys(v.command for v in pairs if v.command))
    if commands:
        print("\n  ".join(["To decide, measure again:", *commands]))
    counts = Counter(v.verdict for v in judged)
    said = ", ".join(f"{counts[k]} {k}" for k in verdicts.ANSWERS.values())
    print(f"Of {len(pairs)} compared: {said}. Without a partner: {counts['unpaired']}.")


def _table(pairs: list[Verdict]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("case", overflow="fold", min_width=24)
    for name in ("A images/s", "B images/s", "B ÷ A", "99 % interval"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("verdict", no_wrap=True)
    grid.add_column("reason", overflow="fold", min_width=24)
    for v in pairs:
        assert v.a is not None
        assert v.b is not None
        grid.add_row(
            Text(_name(v.a, v.b)),
            words.rate(v.a.images_per_s),
            words.rate(v.b.images_per_s),
            words.DASH if v.ratio is None else f"{v.ratio:.3f}",
            words.DASH if v.ratio_low is None else f"{v.ratio_low:.3f} – {v.ratio_high:.3f}",
            v.verdict,
            Text(v.reason),
        )
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(width=width, highlight=False).print(grid)


def _name(a: Side, b: Side) -> str:
    """The case, or A's → B's; with the device where the machines differ."""
    if a.machine_fingerprint != b.machine_fingerprint:
        return f"{a.case_id} on {a.device_name} → {b.case_id} on {b.device_name}"
    return a.case_id if a.case_id == b.case_id else f"{a.case_id} → {b.case_id}"
