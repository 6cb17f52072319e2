"""What `bench run` was asked for, checked, run and told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bench import analysis, planning, processes, ready, runner, sentinel, store, words
from bench.errors import CannotStore, WrongUse
from bench.schema import BUDGETS, Budget, Record

NUMBERS = (
    "batch_size", "world_size", "image_size", "loader_workers", "threads", "seed", "epochs",
    "classes", "calibration_images", "fidelity_images",
)  # fmt: skip


class Request(Struct, frozen=True, kw_only=True):
    """The flags as given; None where a flag was not."""

    plan: str
    axes: dict[str, list[str]]
    full: bool
    deterministic: bool
    budget: str | None
    target_ci: str | None
    max_seconds: float | None
    repeats: int | None
    timeout_s: float | None
    rebuild: bool
    results: Path
    resume: bool
    dry_run: bool
    json: bool


def execute(asked: Request) -> int:
    """Check everything, then run it. Returns the exit code; raises BenchError."""
    plan = resolve(asked)
    if not asked.dry_run:
        store.make_writable(asked.results)
    processes.start_server()
    from bench import summary
    from bench.progress import announce

    announce("Loading torch and looking at the machine …")
    found = ready.prepare(plan, full=asked.full, fetch=not asked.dry_run)
    if asked.full and found.searches:
        raise WrongUse("--full trains whole epochs, --batch-size auto tries many sizes: not both.")
    if asked.full and not any(c.full for c in found.cases):
        raise WrongUse("--full trains whole epochs; name them with --epochs N or --plan article.")
    if asked.dry_run:
        summary.print_plan(found)
        return 0
    for sentence in found.too_large():
        print(f"Note: {sentence}", file=sys.stderr)
    return _measure(asked, plan, found)


def _measure(asked: Request, plan: planning.Plan, found: ready.Ready) -> int:
    from bench import summary
    from bench.progress import Line, Quiet

    records: list[Record] = []
    line = Quiet() if asked.json else Line(plan.budget)

    def recorded(record: Record) -> None:
        if record.purpose != sentinel.PURPOSE:
            records.append(record)
        line.finished(record)
        if asked.json:
            sys.stdout.write(as_json(record) + "\n")
            sys.stdout.flush()

    watch = runner.Watch(started=line.started, progress=line.progress, recorded=recorded)
    try:
        with line:
            run_id = runner.run(
                found, asked.results, watch, resume=asked.resume, rebuild=asked.rebuild
            )
    except KeyboardInterrupt:
        summary.tell(records, asked.results, [], json=asked.json, interrupted=True)
        return 130
    except CannotStore as error:
        if records:
            summary.tell(records, asked.results, [], json=asked.json, interrupted=False)
        if isinstance(error.record, Record):
            print(f"Not saved: {words.result(error.record)}", file=sys.stderr)
        raise
    # A resumed run is told and judged whole.
    whole = [r for r in store.records(asked.results, run_id) if r.purpose != sentinel.PURPOSE]
    frame = store.of_run(asked.results, run_id, analysis.NOTE_COLUMNS)
    notes = [*analysis.machine_changes(frame, {run_id}), *analysis.largest_batches(frame, {run_id})]
    told = whole if records else []
    summary.tell(told, asked.results, notes, json=asked.json, interrupted=False)
    return exit_code(store.statuses(asked.results, run_id))


def resolve(asked: Request) -> planning.Plan:
    """The plan with the flags put in. Raises WrongUse."""
    plan = planning.load(asked.plan)
    flags = {name: values(name, texts) for name, texts in asked.axes.items()}
    if asked.deterministic:
        flags["deterministic"] = [False, True]  # the twin without it says what it costs
    plan = planning.override(plan, flags)
    if asked.repeats is not None and asked.repeats < 1:
        raise WrongUse(f"--repeats: expected 1 or more, not {asked.repeats}.")
    return msgspec.structs.replace(
        plan, budget=_budget(asked, plan.budget), repeats=asked.repeats or plan.repeats
    )


def values(axis: str, texts: list[str]) -> list[Any]:
    """The checked values of a flag. Raises WrongUse."""
    flag = "--" + axis.replace("_", "-")
    parts = [p.strip() for text in texts for p in text.split(",") if p.strip()]
    auto = planning.AUTO if axis == "batch_size" else None
    values = [_number(flag, p) if axis in NUMBERS and p != auto else p for p in parts]
    return planning.values_of(flag, axis, values)


def _number(flag: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise WrongUse(f"{flag}: {text!r} is not a whole number.") from error


def _budget(asked: Request, budget: Budget) -> Budget:
    if asked.budget is not None:
        budget = BUDGETS[asked.budget]
    changes: dict[str, Any] = {}
    if asked.target_ci is not None:
        changes["target_ci"] = share(asked.target_ci, "--target-ci")
    if asked.max_seconds is not None:
        seconds = positive(asked.max_seconds, "--max-seconds")
        changes |= {
            "max_seconds": seconds,
            "min_seconds": min(budget.min_seconds, seconds),
            "latency_seconds": seconds,
        }
    if asked.timeout_s is not None:
        changes["timeout_s"] = positive(asked.timeout_s, "--timeout")
    return planning.changed(budget, changes)


def share(text: str, flag: str, *, whole: bool = False) -> float:
    """`1%` or `0.01` → 0.01; 100% only if `whole`. Raises WrongUse."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise WrongUse(f"{flag}: {text!r} is not a share such as 1% or 0.01.") from error
    if not (0 < value < 1 or (whole and value == 1)):
        most = "at most" if whole else "less than"
        raise WrongUse(f"{flag}: expected more than 0% and {most} 100%, not {text}.")
    return value


def positive(value: float, flag: str, unit: str = "seconds") -> float:
    """A finite number above 0. Raises WrongUse."""
    if not value > 0 or value == float("inf"):
        raise WrongUse(f"{flag}: expected more than 0 {unit}, not {value:g}.")
    return value


def as_json(record: Record) -> str:
    """One line, with the same names as the Parquet columns."""
    return msgspec.json.encode(store.row(record)).decode()


def exit_code(statuses: set[str]) -> int:
    """See cli.EXIT_CODES."""
    if statuses & {"failed", "timeout"}:
        return 4
    return 0 if "measured" in statuses else 3
